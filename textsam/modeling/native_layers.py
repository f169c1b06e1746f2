"""Layers of the small encoder and of the head for strokes without gradients, by the compiled kernels.

The numbers are the same, the memory traffic is a fraction. MobileNetV2 widens its maps sixfold and narrows them again:
layer by layer, most of the time goes into writing the wide maps to memory and reading them back; the kernels keep a few
rows of them in the cache. Their maps are channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.layers import is_cpu_inference
from textsam.native.kernels import Kernels
from textsam.native.library import kernels

Packed = TypeVar("Packed")
Pair = tuple[Tensor, Tensor]

# Beside the modules, not in them: a model that has run can be copied and pickled as before.
_kept: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()


def packed(module: nn.Module, make: Callable[[Kernels, Any], Packed], x: Tensor) -> Packed | None:
    """The weights of `module` as the kernels take them, made by `make` and kept until a parameter changes.

    None where its own operations are to serve: other types or devices, gradients, adapters, no kernels.
    """
    if x.dtype != torch.float32 or not is_cpu_inference(x) or module.training:
        return None
    compiled = kernels()
    modules = _modules(module)
    parameters = [each for part in modules for each in part._parameters.values() if each is not None]
    if compiled is None or any(type(each) is not nn.Parameter or each.is_inference() for each in parameters):
        return None
    plain = all(type(each).__module__.startswith(("torch.nn.modules.", "textsam.")) for each in modules)
    if not plain or any(each.dtype != torch.float32 for each in parameters):
        return None
    state = (compiled, *((each.data_ptr(), each._version) for each in parameters))
    kept = _kept.get(module)
    if kept is None or kept[0] != state:
        kept = _kept[module] = (state, make(compiled, module))
    return kept[1]


def _modules(module: nn.Module) -> list[nn.Module]:
    """The module and all in it. `modules()` and `parameters()` take four times as long: they name what they find."""
    found = [module]
    for each in found:  # which grows
        found += [child for child in each._modules.values() if child is not None]
    return found


class PackedTrunk:
    """MobileNetV2's blocks; the first one comes with the convolution before it."""

    def __init__(self, compiled: Kernels, trunk: Any) -> None:
        self.kernels = compiled
        blocks = [module for name, module in trunk.named_children() if name.startswith("block")]
        self.layers = [self._layer(blocks[0], trunk.conv0)] + [self._layer(block) for block in blocks[1:]]

    def _layer(self, block: Any, stem: nn.Conv2d | None = None) -> tuple[Any, ...]:
        """What `Kernels.squeeze` takes behind x."""
        widen: Any = block.expand if stem is None else stem
        wide, narrow = block.depthwise.out_channels, block.project.out_channels
        return (
            self.kernels.panels(widen.weight.flatten(1), widen.bias),
            _depthwise(block.depthwise, -(-wide // self.kernels.panel) * self.kernels.panel),
            self.kernels.panels(block.project.weight.flatten(1), block.project.bias),
            (wide, narrow),
            block.depthwise.stride[0] if stem is None else 0,
            block.shortcut and stem is None,
        )

    def __call__(self, pixel_values: Tensor, taps: dict[int, int]) -> dict[int, Tensor]:
        """As `MobileNetV2.forward_features`, with `taps` from block to stride."""
        maps: dict[int, list[Tensor]] = {stride: [] for stride in taps.values()}
        for pixels in pixel_values.contiguous():
            x = pixels
            for number, layer in enumerate(self.layers, start=1):
                x = self.kernels.squeeze(x, *layer)
                if number in taps:
                    maps[taps[number]].append(x)
        return {stride: _channels_first(each) for stride, each in maps.items()}


class PackedSeparable:
    """A `SeparableConv`."""

    def __init__(self, compiled: Kernels, block: Any) -> None:
        self.kernels = compiled
        norm, mlp = block.norm, block.mlp
        self.weights = (
            _depthwise(block.depthwise, block.depthwise.out_channels),
            (norm.weight.detach(), norm.bias.detach(), norm.eps),
            compiled.panels(mlp.lin1.weight, mlp.lin1.bias),
            compiled.panels(mlp.lin2.weight, mlp.lin2.bias),
            mlp.lin1.out_features,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        rows = x.permute(0, 2, 3, 1).contiguous()
        return _channels_first([self.kernels.separable(each, *self.weights) for each in rows])


class PackedConvolution:
    """A 3 x 3 convolution with zeros around."""

    def __init__(self, compiled: Kernels, conv: nn.Conv2d) -> None:
        bias: Any = conv.bias
        self.kernels, self.channels = compiled, conv.out_channels
        self.weights = compiled.panels(conv.weight.permute(0, 2, 3, 1).flatten(1), bias)

    def __call__(self, x: Tensor, other: Tensor | None, gelu: bool) -> Tensor:
        """(B, C, h, w) -> (B, channels, h, w), with `other` of that shape added before GELU."""
        rows = x.permute(0, 2, 3, 1).contiguous()
        others = [None] * len(x) if other is None else other.permute(0, 2, 3, 1).contiguous()
        found = [
            self.kernels.convolve(row, self.weights, self.channels, add, gelu)
            for row, add in zip(rows, others, strict=True)
        ]
        return _channels_first(found)


def _depthwise(conv: nn.Conv2d, width: int) -> Pair:
    """Weights (9, width) and bias (width,) of a depthwise 3 x 3 convolution, with zeros behind its channels."""
    bias: Any = conv.bias
    missing = width - conv.out_channels
    weight = F.pad(conv.weight.detach().flatten(1).T, (0, missing))
    return weight.contiguous(), F.pad(bias.detach(), (0, missing))


def _channels_first(maps: list[Tensor]) -> Tensor:
    """B times (h, w, C) -> (B, C, h, w), channels last in memory."""
    together = maps[0][None] if len(maps) == 1 else torch.stack(maps)
    return together.permute(0, 3, 1, 2)
