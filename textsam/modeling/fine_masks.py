"""Masks at full resolution: what is drawn at stride 4 follows the colours of the input's own pixels.

The stroke of a letter is often thinner than the 4 px that a mask's cell is wide. Where text is, the low-resolution
mask says; which of the pixels there are ink, their colours say. The convolutions work on 2 x 2 px at a time (Shi et al.
2016, *Sub-Pixel Convolution*), at a quarter of the cost of full resolution. A first drawing tells what colours ink and
ground have around each place; where between the two a pixel lies then tells how much of it is ink, as in matting.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.transformer import spread

FINE_CHANNELS, REDRAW_CHANNELS = 24, 32
WINDOWS_PX = (16, 48)  # in which the colour of the minority is taken for ink: about a small and a large letter
SHARE_WINDOWS_PX = (6, 12, 24)  # in which the colours of ink and ground are taken
# Lightness, red against blue, green against both: of RGB, unit vectors at right angles.
COLOUR_AXES = ((0.577, 0.577, 0.577), (0.707, 0.0, -0.707), (0.408, -0.816, 0.408))


def local_mean(x: Tensor, window: int) -> Tensor:
    """(B, C, H, W) -> the mean around each pixel, about 1.5 `window` px wide, in x's own type."""
    coarse = F.avg_pool2d(x, window // 2, ceil_mode=True)
    coarse = F.avg_pool2d(coarse, 3, stride=1, padding=1, count_include_pad=False)
    return F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)


def oriented_contrast(x: Tensor, window: int) -> Tensor:
    """Each channel less its local mean, in local standard deviations, with the sign that makes the rarer side positive.

    Letters are fewer pixels than what they stand on, so their contrast has a known sign whether they are light on dark
    or dark on light: the sign of the local skewness. Where neither side is rarer the answer fades to zero.
    """
    difference = x - local_mean(x, window)
    variance = local_mean(difference.square(), window)
    skewness = local_mean(difference**3, window) / (variance + 1e-3) ** 1.5
    return difference / (variance + 4e-3).sqrt() * torch.tanh(2 * skewness)


@torch.no_grad()
def colour_shares(pixels: Tensor, logits: Tensor) -> Tensor:
    """How far each pixel's colour lies on the way from that of the ground around it to that of the ink around it.

    Args:
        pixels: (N, 3, H, W) of any scale near 1. logits: (N, 1, H, W) of a first drawing of the ink.
    Returns:
        (N, W, H, W) in [-1, 2] for W windows: 0 ground, 1 ink; fades to 0 where there is no ink around.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        pixels, logits = pixels.float(), logits.float()
        ink, ground = (2 * (logits - 1)).sigmoid(), (-2 * (logits + 1)).sigmoid()
        weighted = torch.cat([ink * pixels, ground * pixels, ink, ground], dim=1)
        shares = []
        for window in SHARE_WINDOWS_PX:
            ink_colour, ground_colour, inked, grounded = local_mean(weighted, window).split((3, 3, 1, 1), dim=1)
            ground_colour = ground_colour / (grounded + 1e-3)
            way = ink_colour / (inked + 1e-3) - ground_colour
            share = ((pixels - ground_colour) * way).sum(1, keepdim=True) / (way.square().sum(1, keepdim=True) + 0.02)
            shares.append(share.clamp(-1, 2) * inked / (inked + 0.02))
        return torch.cat(shares, dim=1)


class Surroundings(nn.Module):
    """What lies further away, seen at half the resolution: added to the map itself.

    Args:
        levels: how often the resolution is halved. Each level below the first adds nothing at the start of training.
    """

    def __init__(self, channels: int, levels: int = 1) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.up = nn.Conv2d(2 * channels, channels, 1)
        self.further = Surroundings(2 * channels, levels - 1) if levels > 1 else None
        if self.further is not None:
            for parameter in self.further.up.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F, h, w) -> (N, F, h, w); h and w are multiples of 2 to the power of the levels."""
        coarse = F.gelu(self.mix(F.gelu(self.down(x))))
        if self.further is not None:
            coarse = self.further(coarse)
        return x + F.interpolate(self.up(coarse), x.shape[-2:], mode="bilinear", align_corners=False)


class FineFeatures(nn.Module):
    """Colours and edges of 2 x 2 px and their surroundings, with what the encoder knows of the place.

    Args:
        skip_chans: channels of the encoder's map at stride 4.
    """

    def __init__(self, skip_chans: int, channels: int = FINE_CHANNELS) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(12 * (1 + len(WINDOWS_PX)), channels, 3, padding=1)
        self.skip = nn.Conv2d(skip_chans, channels, 1)
        self.around = Surroundings(channels, levels=3)

    def forward(self, pixel_values: Tensor, skip4: Tensor) -> Tensor:
        """(B, 3, H, W) and (B, skip_chans, H/4, W/4) -> (B, F, H/2, W/2)."""
        x = self.pixels(F.pixel_unshuffle(self.colours(pixel_values), 2))
        x = F.gelu(x + F.interpolate(self.skip(skip4), x.shape[-2:], mode="bilinear", align_corners=False))
        return self.around(x)

    def colours(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 9, H, W): the colours, and their contrasts to a near and a far surrounding.

        In float32: third powers of small differences are lost in eight bits.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):
            pixels = pixel_values.float()
            axes = torch.einsum("ac,bchw->bahw", pixels.new_tensor(COLOUR_AXES), pixels)
            contrasts = [oriented_contrast(axes, window) for window in WINDOWS_PX]
            return torch.cat([pixels, *contrasts], dim=1).to(pixel_values.dtype)


class FineMasks(nn.Module):
    """Adds to a bilinearly enlarged mask what the pixels say; nothing at the start of training.

    Args:
        skip_chans: channels of the encoder's map at stride 4.
    """

    def __init__(self, skip_chans: int, channels: int = FINE_CHANNELS) -> None:
        super().__init__()
        self.features = FineFeatures(skip_chans, channels)
        self.mask = nn.Conv2d(1, channels, 3, padding=1)
        # What is ink and what is its outline or the ground takes a look as far as a letter is wide.
        self.around = Surroundings(channels, levels=2)
        self.near = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 4, 3, padding=1)
        self.redraw = Redraw(channels)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, pixel_values: Tensor, skip4: Tensor, low_res_logits: Tensor, image_index: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            pixel_values: (B, 3, H, W). skip4: (B, skip_chans, H/4, W/4).
            low_res_logits: (N, M, h, w). image_index: (N,), None when B is 1 or N.
        Returns:
            (N, M, H, W) logits.
        """
        count, masks = low_res_logits.shape[:2]
        height, width = pixel_values.shape[-2:]

        def for_each_mask(x: Tensor) -> Tensor:
            return spread(x, count, image_index).repeat_interleave(masks, dim=0)

        features, pixels = for_each_mask(self.features(pixel_values, skip4)), for_each_mask(pixel_values)
        coarse = F.interpolate(low_res_logits, features.shape[-2:], mode="bilinear", align_corners=False)
        x = F.gelu(features + self.mask(torch.tanh(coarse.flatten(0, 1)[:, None] / 4).to(features.dtype)))
        x = F.gelu(self.around(x))
        x = F.gelu(x + self.near(x))
        whole = F.interpolate(low_res_logits, (height, width), mode="bilinear", align_corners=False)
        drawn = whole.flatten(0, 1)[:, None] + F.pixel_shuffle(self.out(x), 2)
        return self.redraw(x, pixels, drawn)[:, 0].unflatten(0, (count, masks))


class Redraw(nn.Module):
    """Corrects a first drawing by the colours that it found; nothing at the start of training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inputs = channels + 4 * (1 + len(SHARE_WINDOWS_PX))
        self.first = nn.Conv2d(inputs, REDRAW_CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(REDRAW_CHANNELS, REDRAW_CHANNELS, 3, padding=1)
        self.out = nn.Conv2d(REDRAW_CHANNELS, 4, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, pixels: Tensor, logits: Tensor) -> Tensor:
        """(N, F, H/2, W/2), (N, 3, H, W) and (N, 1, H, W) logits -> (N, 1, H, W) logits."""
        seen = torch.cat([torch.tanh(logits / 4), colour_shares(pixels, logits).to(logits.dtype)], dim=1)
        x = torch.cat([features, F.pixel_unshuffle(seen, 2).to(features.dtype)], dim=1)
        x = F.gelu(self.first(x))
        x = F.gelu(x + self.second(x))
        return logits + F.pixel_shuffle(self.out(x), 2)
