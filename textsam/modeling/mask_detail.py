"""Details of one mask, seen from near: its outline drawn again in a square crop of the photo around it.

The decoder draws on cells of 4 px of an input that is smaller than the photo, the same for small things and large.
Here each mask fills the view. The image encoder looks at the crop, too, and a U-Net (Ronneberger et al. 2015) over its
features, the photo's own pixels and the prompt corrects the decoder's logits, as CascadePSP (Cheng et al. 2020) does in
several passes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.fine_masks import Conv3x3
from textsam.modeling.layers import PointwiseConv2d
from textsam.modeling.native_layers import PackedUNet, packed
from textsam.modeling.structures import ImageEmbeddings

CHANNELS = (32, 48, 64, 96)  # at strides 2, 4, 8 and 16 of the crop
CLICK_RADIUS = 0.03  # of the crop's side
MAPS = 7  # red, green, blue, logits softly and hardly limited, box, clicks


class ConvPair(nn.Module):
    """Two 3 x 3 convolutions, the second added to the first."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.first = Conv3x3(in_chans, out_chans)
        self.norm = nn.GroupNorm(4, out_chans)
        self.second = Conv3x3(out_chans, out_chans)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (N, C, h, w). other: (N, in_chans - C, h, w), with which it is joined; x may then be twice or half as
                large.
        Returns:
            (N, out_chans, h, w).
        """
        if other is not None:
            x = torch.cat([_resized(x, other.shape[-1]), other], dim=1)
        x = F.gelu(self.norm(self.first(x)))
        return x + self.second(x, gelu=True)


def _resized(x: Tensor, side: int) -> Tensor:
    """A square map at `side` px, which it has, or half or twice that."""
    if x.shape[-1] > side:
        return F.max_pool2d(x, 2)
    return x if x.shape[-1] == side else F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


def draw_boxes(boxes: Tensor, side: int) -> Tensor:
    """(N, 4) xyxy in units of the crop's side, NaN where there was none -> (N, 1, S, S): the share of each place inside
    the box; 0.5 where there was none."""
    centres = torch.arange(side, device=boxes.device) + 0.5
    low, high = (boxes * side).unflatten(1, (2, 2))[..., None].unbind(1)  # (N, xy, 1) each
    inside = (centres - low + 0.5).clamp(0, 1) * (high - centres + 0.5).clamp(0, 1)
    return torch.nan_to_num(inside[:, 1, :, None] * inside[:, 0, None], nan=0.5)[:, None]


def draw_clicks(points: Tensor, labels: Tensor, side: int) -> Tensor:
    """(N, K, 2) xy in units of the crop's side, (N, K) labels 1, 0 or -1 -> (N, 1, S, S) in [-1, 1]: a soft spot at
    each foreground click, a negative one at each background click."""
    centres = (torch.arange(side, device=points.device) + 0.5) / side
    across, down = (torch.exp(-((centres - each[..., None]) / CLICK_RADIUS).square()) for each in points.unbind(-1))
    sign = (labels == 1).to(points) - (labels == 0).to(points)
    return torch.einsum("nk,nky,nkx->nyx", sign, down, across).clamp(-1, 1)[:, None]


class MaskDetail(nn.Module):
    """Adds to the logits of a mask in its crop; nothing at the start of training.

    Args:
        embed_dim: C of the encoder's embedding. similarity_dim: E of its features that are compared with text, or 0.
    """

    def __init__(self, embed_dim: int, similarity_dim: int = 0, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.enter = Conv3x3(4 * MAPS, channels[0])
        features = (0, embed_dim // 8, embed_dim // 4 + similarity_dim + bool(similarity_dim), embed_dim)
        seen = [min(have, own) for have, own in zip(features, channels, strict=True)]
        self.see = nn.ModuleList(PointwiseConv2d(*each) for each in zip(features[1:], seen[1:], strict=True))
        inputs = [below + more for below, more in zip((channels[0], *channels), seen, strict=False)]
        self.down = nn.ModuleList(ConvPair(*each) for each in zip(inputs, channels, strict=True))
        pairs = list(zip(channels[1:], channels, strict=False))[::-1]
        self.up = nn.ModuleList(ConvPair(coarse + fine, fine) for coarse, fine in pairs)
        self.out = Conv3x3(channels[0], 4)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        pixels: Tensor,
        image: ImageEmbeddings,
        logits: Tensor,
        boxes: Tensor,
        clicks: Tensor,
        similarity: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            pixels: (N, 3, S, S) RGB in 0..255. image: the same N crops after the image encoder.
            logits: (N, 1, S, S), the decoder's. boxes, clicks: (N, 1, S, S), of `draw_boxes` and `draw_clicks`.
            similarity: (N, 1, S/8, S/8) logits, of the name that was asked for; 0, or None, where there was none.
        Returns:
            (N, 1, S, S) logits, in the type of the weights.
        """
        dtype = self.out.weight.dtype
        colours, logits = (pixels.float() - 120) / 60, logits.float()
        maps = [colours, torch.tanh(logits / 4), logits.clamp(-15, 15) / 10, boxes.float(), clicks.float()]
        x = F.pixel_unshuffle(torch.cat(maps, dim=1).to(dtype), 2).contiguous(memory_format=torch.channels_last)
        features = [each.to(dtype) for each in _by_stride(image, similarity)]
        return logits.to(dtype) + F.pixel_shuffle(self._unet(x, features), 2)

    def _unet(self, x: Tensor, features: list[Tensor]) -> Tensor:
        """(N, 4 * MAPS, h, w) and the encoder's maps at half of it and so on -> (N, 4, h, w)."""
        natively = packed(self, PackedUNet, x)
        if natively is not None:
            return natively(x, features)
        seen = [self.down[0](self.enter(x, gelu=True))]
        for level, see, known in zip(self.down[1:], self.see, features, strict=True):
            seen.append(level(seen[-1], see(known)))
        x = seen.pop()
        for level, fine in zip(self.up, seen[::-1], strict=True):
            x = level(x, fine)
        return self.out(x)


def _by_stride(image: ImageEmbeddings, similarity: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What is known at strides 4, 8 and 16."""
    if image.high_res_features is None:
        raise ValueError("mask_detail needs an encoder with high_res_skips, but image has no high_res_features.")
    stride4, stride8 = image.high_res_features
    if image.similarity_features is not None:
        asked = torch.zeros_like(stride8[:, :1]) if similarity is None else torch.tanh(similarity / 4).to(stride8)
        stride8 = torch.cat([stride8, image.similarity_features, asked], dim=1)
    return stride4, stride8, image.image_embeddings
