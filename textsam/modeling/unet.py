"""A U-Net (Ronneberger et al. 2015) over an image's own maps, for the parts that draw masks a second time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.fine_masks import Conv3x3
from textsam.modeling.layers import PointwiseConv2d
from textsam.modeling.native_layers import PackedUNet, packed

CHANNELS = (32, 48, 64, 96)  # of its levels, each at twice the stride of the one before


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
            x = torch.cat([_resized(x, other.shape[-2:]), other], dim=1)
        x = F.gelu(self.norm(self.first(x)))
        return x + self.second(x, gelu=True)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map at `size`, which it has, or half or twice that."""
    if x.shape[-1] > size[-1]:
        return F.max_pool2d(x, 2)
    return x if x.shape[-1] == size[-1] else F.interpolate(x, size, mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Draws nothing at the start of training.

    Args:
        in_chans: of what is drawn on. features: channels of the image's maps, one for each level behind the first.
        out_chans: of the drawing. channels: of each level.
    """

    def __init__(
        self, in_chans: int, features: Sequence[int], out_chans: int, channels: tuple[int, ...] = CHANNELS
    ) -> None:
        super().__init__()
        self.enter = Conv3x3(in_chans, channels[0])
        seen = [min(have, own) for have, own in zip(features, channels[1:], strict=True)]
        self.see = nn.ModuleList(PointwiseConv2d(*each) for each in zip(features, seen, strict=True))
        inputs = [below + more for below, more in zip((channels[0], *channels), (0, *seen), strict=False)]
        self.down = nn.ModuleList(ConvPair(*each) for each in zip(inputs, channels, strict=True))
        pairs = list(zip(channels[1:], channels, strict=False))[::-1]
        self.up = nn.ModuleList(ConvPair(coarse + fine, fine) for coarse, fine in pairs)
        self.out = Conv3x3(channels[0], out_chans)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def draw(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """
        Args:
            x: (N, in_chans, h, w), of any type. features: the image's maps at half of it, a quarter and so on.
        Returns:
            (N, out_chans, h, w) in the type of the weights.
        """
        dtype = self.out.weight.dtype
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        features = [each.to(dtype) for each in features]
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
