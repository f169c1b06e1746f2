"""Details of one mask, seen from near: its outline drawn again in a square crop of the photo around it.

The decoder draws on cells of 4 px of an input that is smaller than the photo, the same for small things and large.
Here each mask fills the view. The image encoder looks at the crop, too, and a U-Net over its features, the photo's own
pixels and the prompt corrects the decoder's logits, as CascadePSP (Cheng et al. 2020) does in several passes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.modeling.structures import ImageEmbeddings
from textsam.modeling.unet import CHANNELS, UNet

CLICK_RADIUS = 0.03  # of the crop's side
MAPS = 7  # red, green, blue, logits softly and hardly limited, box, clicks


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


class MaskDetail(UNet):
    """Adds to the logits of a mask in its crop; nothing at the start of training. Its levels lie at strides 2, 4, 8
    and 16 of the crop.

    Args:
        embed_dim: C of the encoder's embedding. similarity_dim: E of its features that are compared with text, or 0.
    """

    def __init__(self, embed_dim: int, similarity_dim: int = 0, channels: tuple[int, ...] = CHANNELS) -> None:
        stride8 = embed_dim // 4 + similarity_dim + bool(similarity_dim)
        super().__init__(4 * MAPS, (embed_dim // 8, stride8, embed_dim), 4, channels)

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
        colours, logits = (pixels.float() - 120) / 60, logits.float()
        maps = [colours, torch.tanh(logits / 4), logits.clamp(-15, 15) / 10, boxes.float(), clicks.float()]
        drawn = self.draw(F.pixel_unshuffle(torch.cat(maps, dim=1), 2), _by_stride(image, similarity))
        return logits.to(drawn.dtype) + F.pixel_shuffle(drawn, 2)


def _by_stride(image: ImageEmbeddings, similarity: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What is known at strides 4, 8 and 16."""
    if image.high_res_features is None:
        raise ValueError("mask_detail needs an encoder with high_res_skips, but image has no high_res_features.")
    stride4, stride8 = image.high_res_features
    if image.similarity_features is not None:
        asked = torch.zeros_like(stride8[:, :1]) if similarity is None else torch.tanh(similarity / 4).to(stride8)
        stride8 = torch.cat([stride8, image.similarity_features, asked], dim=1)
    return stride4, stride8, image.image_embeddings
