"""Masks at full resolution: what is drawn at stride 4 follows the colours of the input's own pixels.

The stroke of a letter is often thinner than the 4 px that a mask's cell is wide. Where text is, the low-resolution
mask says; which of the pixels there are ink, their colours say. The convolutions work on 2 x 2 px at a time (Shi et al.
2016, *Sub-Pixel Convolution*), at a quarter of the cost of full resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.transformer import spread

FINE_CHANNELS = 24


class Surroundings(nn.Module):
    """What lies further away, seen at half the resolution: added to the map itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.up = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F, h, w) -> (N, F, h, w); h and w are even."""
        coarse = F.gelu(self.mix(F.gelu(self.down(x))))
        return x + F.interpolate(self.up(coarse), x.shape[-2:], mode="bilinear", align_corners=False)


class FineFeatures(nn.Module):
    """Colours and edges of 2 x 2 px and their surroundings, with what the encoder knows of the place.

    Args:
        skip_chans: channels of the encoder's map at stride 4.
    """

    def __init__(self, skip_chans: int, channels: int = FINE_CHANNELS) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(12, channels, 3, padding=1)
        self.skip = nn.Conv2d(skip_chans, channels, 1)
        self.around = Surroundings(channels)

    def forward(self, pixel_values: Tensor, skip4: Tensor) -> Tensor:
        """(B, 3, H, W) and (B, skip_chans, H/4, W/4) -> (B, F, H/2, W/2)."""
        x = self.pixels(F.pixel_unshuffle(pixel_values, 2))
        x = F.gelu(x + F.interpolate(self.skip(skip4), x.shape[-2:], mode="bilinear", align_corners=False))
        return self.around(x)


class FineMasks(nn.Module):
    """Adds to a bilinearly enlarged mask what the pixels say; nothing at the start of training."""

    def __init__(self, channels: int = FINE_CHANNELS) -> None:
        super().__init__()
        self.mask = nn.Conv2d(1, channels, 3, padding=1)
        # What is ink and what is its outline or the ground takes a look as far as a letter is wide.
        self.around = Surroundings(channels)
        self.near = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 4, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, fine_features: Tensor, low_res_logits: Tensor, image_index: Tensor | None = None) -> Tensor:
        """(B, F, H/2, W/2) and (N, M, h, w) logits -> (N, M, H, W) logits; image_index: (N,), None when B is 1 or N."""
        count, masks = low_res_logits.shape[:2]
        height, width = fine_features.shape[-2:]
        coarse = F.interpolate(low_res_logits, (height, width), mode="bilinear", align_corners=False).flatten(0, 1)
        features = spread(fine_features, count, image_index).repeat_interleave(masks, dim=0)
        x = F.gelu(features + self.mask(torch.tanh(coarse[:, None] / 4).to(features.dtype)))
        x = F.gelu(self.around(x))
        x = self.out(F.gelu(x + self.near(x)))
        whole = F.interpolate(low_res_logits, (2 * height, 2 * width), mode="bilinear", align_corners=False)
        return whole + F.pixel_shuffle(x, 2)[:, 0].unflatten(0, (count, masks))
