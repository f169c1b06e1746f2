"""Masks at full resolution: what is drawn at stride 4 follows the colours of the input's own pixels.

The stroke of a letter is often thinner than the 4 px that a mask's cell is wide. Where text is, the low-resolution
mask says; which of the pixels there are ink, their colours say. The convolutions work on 2 x 2 px at a time (Shi et al.
2016, *Sub-Pixel Convolution*), at a quarter of the cost of full resolution. A first drawing tells what colours ink and
ground have around each place; where between the two a pixel lies then tells how much of it is ink, as in matting.
Where a picture was looked at in several places of the model's rasters, a last drawing starts from all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.layers import PointwiseConv2d, is_cpu_inference
from textsam.modeling.native_layers import PackedConvolution, PackedSurroundings, packed
from textsam.modeling.transformer import spread
from textsam.native.library import kernels

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
        # A run of training must not change its last digits when the kernels are ready in the midst of it.
        compiled = kernels() if is_cpu_inference(pixels) and not logits.requires_grad else None
        pixels, logits = pixels.float(), logits.float()
        if compiled is not None:
            pixels, logits = pixels.contiguous(), logits.contiguous()
            sides = [window // 2 for window in SHARE_WINDOWS_PX]
            return torch.stack([compiled.shares(*each, sides) for each in zip(pixels, logits[:, 0], strict=True)])
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


def squares(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4 * C, H / 2, W / 2): `pixel_unshuffle` by 2, channels last in memory."""
    return F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution with zeros around it."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(in_chans, out_chans, 3, padding=1)

    def forward(self, x: Tensor, other: Tensor | None = None, gelu: bool = False) -> Tensor:
        """(B, in_chans, h, w) -> (B, out_chans, h, w).

        Args:
            other: of the result's shape, added to it. gelu: of the sum.
        """
        natively = packed(self, PackedConvolution, x)
        if natively is not None:
            return natively(x, other, gelu)
        y = super().forward(x)
        y = y if other is None else other + y
        return F.gelu(y) if gelu else y


class Surroundings(nn.Module):
    """What lies further away, seen at half the resolution: added to the map itself.

    Args:
        levels: how often the resolution is halved. Each level below the first adds nothing at the start of training.
    """

    def __init__(self, channels: int, levels: int = 1) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.mix = Conv3x3(2 * channels, 2 * channels)
        self.up = PointwiseConv2d(2 * channels, channels)
        self.further = Surroundings(2 * channels, levels - 1) if levels > 1 else None
        if self.further is not None:
            for parameter in self.further.up.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(N, F, h, w) -> (N, F, h, w), and GELU of it where asked for; h and w are multiples of 2 to the power of the
        levels."""
        natively = packed(self, PackedSurroundings, x)
        if natively is not None:
            return natively(x, gelu)
        coarse = self.mix(F.gelu(self.down(x)), gelu=True)
        if self.further is not None:
            coarse = self.further(coarse)
        x = x + F.interpolate(self.up(coarse), x.shape[-2:], mode="bilinear", align_corners=False)
        return F.gelu(x) if gelu else x


class FineFeatures(nn.Module):
    """Colours and edges of 2 x 2 px and their surroundings, with what the encoder knows of the place.

    Args:
        skip_chans: channels of the encoder's map at stride 4.
    """

    def __init__(self, skip_chans: int, channels: int = FINE_CHANNELS) -> None:
        super().__init__()
        self.pixels = Conv3x3(12 * (1 + len(WINDOWS_PX)), channels)
        self.skip = PointwiseConv2d(skip_chans, channels)
        self.around = Surroundings(channels, levels=3)

    def forward(self, pixel_values: Tensor, skip4: Tensor) -> Tensor:
        """(B, 3, H, W) and (B, skip_chans, H/4, W/4) -> (B, F, H/2, W/2)."""
        x = squares(self.colours(pixel_values))
        skip = F.interpolate(self.skip(skip4), x.shape[-2:], mode="bilinear", align_corners=False)
        return self.around(self.pixels(x, skip, gelu=True))

    def colours(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 9, H, W): the colours, and their contrasts to a near and a far surrounding.

        In float32: third powers of small differences are lost in eight bits.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):
            pixels = pixel_values.float()
            axes = torch.einsum("ac,bchw->bahw", pixels.new_tensor(COLOUR_AXES), pixels)
            compiled = kernels() if is_cpu_inference(axes) else None
            if compiled is None:
                contrasts = [oriented_contrast(axes, window) for window in WINDOWS_PX]
            else:
                sides = [window // 2 for window in WINDOWS_PX]
                found = [compiled.contrasts(each, sides).flatten(0, 1) for each in axes.contiguous()]
                contrasts = [torch.stack(found)]
            return torch.cat([pixels, *contrasts], dim=1).to(pixel_values.dtype)


class FineDrawing(NamedTuple):
    """Masks at full resolution.

    Attributes:
        logits: (N, M, H, W).
        features: (N * M, F, H/2, W/2), what they were drawn from. pixels: (N * M, 3, H, W), the pictures.
    """

    logits: Tensor
    features: Tensor
    pixels: Tensor


class FineMasks(nn.Module):
    """Adds to a bilinearly enlarged mask what the pixels say; nothing at the start of training.

    Args:
        skip_chans: channels of the encoder's map at stride 4.
        finish: with a part for a last drawing, see `finish_drawing`.
    """

    def __init__(self, skip_chans: int, channels: int = FINE_CHANNELS, *, finish: bool = False) -> None:
        super().__init__()
        self.features = FineFeatures(skip_chans, channels)
        self.mask = Conv3x3(1, channels)
        # What is ink and what is its outline or the ground takes a look as far as a letter is wide.
        self.around = Surroundings(channels, levels=2)
        self.near = Conv3x3(channels, channels)
        self.out = Conv3x3(channels, 4)
        self.redraw = Redraw(channels)
        self.finish = Redraw(channels, maps=1) if finish else None
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, pixel_values: Tensor, skip4: Tensor, low_res_logits: Tensor, image_index: Tensor | None = None
    ) -> FineDrawing:
        """
        Args:
            pixel_values: (B, 3, H, W). skip4: (B, skip_chans, H/4, W/4).
            low_res_logits: (N, M, h, w). image_index: (N,), None when B is 1 or N.
        """
        count, masks = low_res_logits.shape[:2]
        height, width = pixel_values.shape[-2:]

        def for_each_mask(x: Tensor) -> Tensor:
            x = spread(x, count, image_index)
            return x if masks == 1 else x.repeat_interleave(masks, dim=0)

        features, pixels = for_each_mask(self.features(pixel_values, skip4)), for_each_mask(pixel_values)
        coarse = F.interpolate(low_res_logits, features.shape[-2:], mode="bilinear", align_corners=False)
        x = self.mask(torch.tanh(coarse.flatten(0, 1)[:, None] / 4).to(features.dtype), features, gelu=True)
        x = self.around(x, gelu=True)
        x = self.near(x, x, gelu=True)
        whole = F.interpolate(low_res_logits, (height, width), mode="bilinear", align_corners=False)
        drawn = whole.flatten(0, 1)[:, None] + F.pixel_shuffle(self.out(x), 2)
        return FineDrawing(self.redraw(x, pixels, drawn)[:, 0].unflatten(0, (count, masks)), x, pixels)

    def finish_drawing(self, drawing: FineDrawing, logits: Tensor, difference: Tensor) -> Tensor:
        """The last drawing, from what several views of the same picture show together.

        Args:
            drawing: of one view. logits: (N, M, H, W), the mean over the views, in this one's place.
            difference: (N, M, H, W) >= 0, how far the views are apart; 0 where there is but one.
        Returns:
            (N, M, H, W) logits.
        Raises:
            ValueError: the model has no such part.
        """
        if self.finish is None:
            raise ValueError("a last drawing needs a model with finish_masks=True")
        shape = logits.shape
        logits, difference = (x.reshape(-1, 1, *shape[-2:]).to(drawing.logits.dtype) for x in (logits, difference))
        return self.finish(drawing.features, drawing.pixels, logits, difference).reshape(shape)


class Redraw(nn.Module):
    """Corrects a first drawing by the colours that it found; nothing at the start of training.

    Args:
        maps: further maps that it is shown.
    """

    def __init__(self, channels: int, maps: int = 0) -> None:
        super().__init__()
        inputs = channels + 4 * (1 + len(SHARE_WINDOWS_PX) + maps)
        self.first = Conv3x3(inputs, REDRAW_CHANNELS)
        self.second = Conv3x3(REDRAW_CHANNELS, REDRAW_CHANNELS)
        self.out = Conv3x3(REDRAW_CHANNELS, 4)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, pixels: Tensor, logits: Tensor, *maps: Tensor) -> Tensor:
        """(N, F, H/2, W/2), (N, 3, H, W), (N, 1, H, W) logits and (N, 1, H, W) maps -> (N, 1, H, W) logits."""
        shares = colour_shares(pixels, logits).to(logits.dtype)
        seen = torch.cat([torch.tanh(logits / 4), shares, *(torch.tanh(x / 4) for x in maps)], dim=1)
        x = torch.cat([features, squares(seen).to(features.dtype)], dim=1)
        x = self.first(x, gelu=True)
        x = self.second(x, x, gelu=True)
        return logits + F.pixel_shuffle(self.out(x), 2)
