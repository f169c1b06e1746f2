"""Details of one mask, seen from near: its outline drawn again in a square crop of the photo around it.

The decoder draws on cells of 4 px of an input that is smaller than the photo, the same for small things and large.
Here each mask fills the view. A U-Net (Ronneberger et al. 2015) on the photo's own pixels corrects the decoder's
logits, as in CascadePSP (Cheng et al. 2020), in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.fine_masks import Conv3x3

DETAIL_SIDE = 128  # px of a crop
CHANNELS = (32, 48, 64, 96)  # from half of the crop's resolution to a sixteenth
MAPS = 6  # red, green, blue, logits softly and hardly limited, box


class ConvPair(nn.Module):
    """Two 3 x 3 convolutions, the second added to the first."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.first = Conv3x3(in_chans, out_chans)
        self.norm = nn.GroupNorm(4, out_chans)
        self.second = Conv3x3(out_chans, out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, h, w) -> (N, out_chans, h, w)."""
        x = F.gelu(self.norm(self.first(x)))
        return x + self.second(x, gelu=True)


class MaskDetail(nn.Module):
    """Adds to the logits of a mask in its crop; nothing at the start of training."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.enter = Conv3x3(4 * MAPS, channels[0])
        inputs = (channels[0], *channels)
        self.down = nn.ModuleList(ConvPair(*each) for each in zip(inputs, channels, strict=False))
        pairs = list(zip(channels[1:], channels, strict=False))[::-1]
        self.up = nn.ModuleList(ConvPair(coarse + fine, fine) for coarse, fine in pairs)
        self.out = Conv3x3(channels[0], 4)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor, logits: Tensor, boxes: Tensor) -> Tensor:
        """
        Args:
            pixels: (N, 3, S, S) RGB in 0..255. logits: (N, 1, S, S), the decoder's.
            boxes: (N, 1, S, S), 1 inside the box that was asked for and 0 outside; 0.5 where there was none.
        Returns:
            (N, 1, S, S) logits, in the type of the weights.
        """
        dtype = self.out.weight.dtype
        colours = (pixels.float() - 120) / 60
        logits = logits.float()
        x = torch.cat([colours, torch.tanh(logits / 4), logits.clamp(-15, 15) / 10, boxes.float()], dim=1).to(dtype)
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        x = self.enter(x, gelu=True)
        seen: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if seen else x)
            seen.append(x)
        for level, fine in zip(self.up, seen[-2::-1], strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), fine], dim=1))
        return logits.to(dtype) + F.pixel_shuffle(self.out(x), 2)
