"""Weights of a small model rounded to what bfloat16 holds, so that its answers hardly change.

Rounded one by one, the weights of a few depthwise convolutions change what the model sees: pixels side by side are
nearly alike, so the errors of a filter's nine weights add up, and the batch norm folded into them has made some large.
Here each weight goes up or down so that the errors cancel in what the layer really sees, and each layer makes up for
those before it (after Nagel et al. 2020, *Up or Down? Adaptive Rounding*, and Frantar et al. 2023, *GPTQ*). The model
is then the same in float32 and in bfloat16, but for the latter's rounding on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.files.coco import load_coco
from textsam.files.images import read_image
from textsam.modeling.mobile_encoder import MobileNetV2
from textsam.prompting.transforms import resize_image

PHOTOS = 48
SWEEPS = 8


def read_photos(sets: Sequence[Path], side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(PHOTOS, 3, side, side) normalised: evenly chosen pictures of COCO files.

    Raises:
        ValueError: there is none.
    """
    files = [image.path for file in sets for image in load_coco(file).images]
    if not files:
        raise ValueError(f"{', '.join(map(str, sets))} name no picture to round the weights for")
    chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(PHOTOS, len(files)))]
    pixels = np.stack([resize_image(read_image(file), (side, side)) for file in chosen])
    normalised = (torch.from_numpy(pixels).float() - torch.tensor(mean)) / torch.tensor(std)
    return normalised.permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def round_trunk(trunk: MobileNetV2, pixel_values: Tensor, tell: Callable[[str], None] = lambda _: None) -> None:
    """The convolutions, one after the other: from what those before it, now rounded, give, each gives nearly what it
    gave before from what they gave before.

    Args:
        pixel_values: (B, 3, S, S) photos, S even, that this holds for.
        tell: takes a line for each layer, its name and the relative error of what it gives.
    """
    exact = copy.deepcopy(trunk)

    def rounded(name: str, x: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds a layer, whose input was `aim` and is `x` now; returns what it gives and gave."""
        layer: nn.Conv2d = trunk.get_submodule(name)  # type: ignore[assignment]
        moments = shared = torch.zeros(())
        for now, before in zip(x, aim, strict=True):
            seen = _patches(layer, now)
            moments = moments + seen @ seen.mT
            shared = shared + (_patches(layer, before) - seen) @ seen.mT
        damping = 1e-6 * moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(moments.shape[1])
        change = torch.linalg.solve(moments + damping, shared, left=False)
        bias: Tensor = layer.bias  # type: ignore[assignment]
        weights = torch.cat([layer.weight.flatten(1), bias[:, None]], dim=1).double()
        weights = weights.unflatten(0, (layer.groups, -1))
        found = round_to_bfloat16((weights + weights @ change).flatten(0, 1), moments)
        layer.weight.copy_(found[:, :-1].reshape(layer.weight.shape))
        bias.copy_(found[:, -1])
        y, aim = layer(x), exact.get_submodule(name)(aim)
        tell(f"{name}: {float((y - aim).norm() / aim.norm()):.1e}")
        return y, aim

    x, aim = map(F.relu6, rounded("conv0", pixel_values, pixel_values))
    for name, block in trunk.named_children():
        if name.startswith("block"):
            y, aimed = x, aim
            if block.expand is not None:
                y, aimed = map(F.relu6, rounded(f"{name}.expand", y, aimed))
            y, aimed = map(F.relu6, rounded(f"{name}.depthwise", y, aimed))
            y, aimed = rounded(f"{name}.project", y, aimed)
            x, aim = (x + y, aim + aimed) if block.shortcut else (y, aimed)


def round_to_bfloat16(weights: Tensor, moments: Tensor) -> Tensor:
    """Each weight rounded up or down so that the products with the inputs change little.

    Args:
        weights: (R, n), of R outputs.
        moments: (1, n, n), or (R, n, n) one each: the sum of x x^T over the inputs x.
    Returns:
        (R, n) that bfloat16 holds; the squared error of the products is no larger than that of rounding to the nearest.
    """
    low = weights.bfloat16()
    nearest = low.to(weights.dtype)
    towards = torch.where(nearest < weights, torch.inf, -torch.inf).bfloat16()
    beyond = torch.where(nearest == weights, nearest, torch.nextafter(low, towards).to(weights.dtype))
    moments = moments.expand(len(weights), -1, -1)
    found = nearest.clone()
    slope = torch.einsum("rn,rnm->rm", nearest - weights, moments)
    for _ in range(SWEEPS):
        before = found.clone()
        for i in range(weights.shape[1]):
            step = torch.where(found[:, i] == nearest[:, i], beyond[:, i], nearest[:, i]) - found[:, i]
            step = torch.where(step * (2 * slope[:, i] + step * moments[:, i, i]) < 0, step, 0)
            found[:, i] += step
            slope += step[:, None] * moments[:, i]
        if torch.equal(found, before):
            break
    return found


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """(C, h, w) -> (groups, n + 1, positions) float64: what each weight of the layer meets, and 1 for its bias."""
    if layer.kernel_size[0] > 1:
        before = 2 - layer.stride[0]  # TensorFlow's padding: a stride of 2 on an even side has none before it
        x = F.unfold(F.pad(x, (before, 1, before, 1)), layer.kernel_size, stride=layer.stride)
    x = x.flatten(1).unflatten(0, (layer.groups, -1)).double()
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
