"""What a prompt's masks are drawn from, seen once more at stride 4, with a look around.

SAM's decoder reasons at stride 16, and what comes after is the same for each place by itself. That is enough at an
input of 1024 px. At 384 px a window of a house is two of the decoder's places wide: how the edge in the picture and the
edge of the box lie to each other is only to be seen at a finer stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.fine_masks import Conv3x3, Surroundings
from textsam.modeling.layers import PointwiseConv2d
from textsam.modeling.native_layers import PackedRefiner, packed

REFINER_CHANNELS = 24


class MaskRefiner(nn.Module):
    """Adds to the upscaled map of a prompt; nothing at the start of training.

    Args:
        in_chans: of the upscaled map. maps: drawn prompts (`GeometryMaps.channels`).
    """

    def __init__(self, in_chans: int, maps: int, channels: int = REFINER_CHANNELS) -> None:
        super().__init__()
        self.enter = Conv3x3(in_chans + maps, channels)
        self.around = Surroundings(channels, levels=2)
        self.near = Conv3x3(channels, channels)
        self.out = PointwiseConv2d(channels, in_chans)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, upscaled: Tensor, maps: Tensor) -> Tensor:
        """(N, F, 4h, 4w) and (N, 5, 4h, 4w) -> (N, F, 4h, 4w)."""
        natively = packed(self, PackedRefiner, upscaled)
        if natively is not None:
            return natively(upscaled, maps.to(upscaled.dtype))
        x = torch.cat([upscaled, maps.to(upscaled.dtype)], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)  # with few channels a third faster on a CPU
        x = self.around(self.enter(x, gelu=True))
        return upscaled + self.out(self.near(x, gelu=True))


class MaskQuality(nn.Module):
    """What a mask itself says of its IoU, added to what SAM's token says; nothing at the start of training.

    SAM predicts the IoU from a token that never sees the mask. How sure the mask's own pixels are says more.
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, hidden)
        self.out = nn.Linear(hidden, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, M, 4h, 4w) -> (N, M). No gradient goes into the masks: they are to be right, not to look so."""
        probability = logits.detach().float().sigmoid().flatten(2)
        inside = (probability > 0.5).float()
        area, mass, both = inside.mean(-1), probability.mean(-1), (probability * inside).mean(-1)
        sure = (probability > 0.73).float().mean(-1)  # logit 1
        features = [both / (area + mass - both + 1e-6), both / (area + 1e-6), sure / (area + 1e-6), area.sqrt()]
        return self.out(F.gelu(self.hidden(torch.stack(features, dim=-1).to(self.out.weight.dtype))))[..., 0]
