"""Layers of the small encoder and of the head for strokes without gradients, by the compiled kernels.

The numbers are those of float32, the memory traffic is a fraction. MobileNetV2 widens its maps sixfold and narrows them
again: layer by layer, most of the time goes into writing the wide maps to memory and reading them back; the kernels
keep a few rows of them in the cache. Their maps are channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.layers import is_cpu_inference, is_hooked
from textsam.native.kernels import Kernels
from textsam.native.library import kernels

Packed = TypeVar("Packed")
Pair = tuple[Tensor, Tensor]
KNOWN = (torch.float32, torch.bfloat16, torch.float16)


class Kept(NamedTuple):
    """Of a module: what tells whether its parameters are still those that were packed, and what was made of them.

    `state` holds their places and versions. Changes through `.data`, as of averages written by hand, leave both as they
    are, so the first elements of each parameter, `starts`, are compared with the `seen` ones.
    """

    state: list[Any]
    starts: list[Tensor]
    seen: Tensor
    made: Any


# Beside the modules, not in them: a model that has run can be copied and pickled as before.
_kept: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def packed(module: nn.Module, make: Callable[[Kernels, Any], Packed], x: Tensor, widened: bool = True) -> Packed | None:
    """The weights of `module` as the kernels take them, made by `make` and kept until a parameter changes.

    None where its own operations are to serve: other devices, float64, gradients, adapters, hooks on layers within, no
    kernels. Only a change through `.data` that spares the first elements of all parameters goes unseen. With weights of
    half precision the kernels still compute in float32: as `Widened` does, or, with `widened` off, between maps that
    the caller keeps in float32.
    """
    if x.dtype not in KNOWN or not is_cpu_inference(x) or module.training:
        return None
    compiled = kernels()
    if compiled is None:
        return None
    parts, state = [module], list[Any]((compiled, make, x.dtype))
    for part in parts:  # which grows
        state.append(id(part))
        for parameter in part._parameters.values():
            if parameter is not None:
                state.append(parameter.data_ptr())
                state.append(None if parameter.is_inference() else parameter._version)
        parts += filter(None, part._modules.values())
        if part is not module and is_hooked(part):
            return None
    kept = _kept.get(module)
    if kept is None or kept.state != state or not torch.equal(torch.cat(kept.starts), kept.seen):
        plain = all(type(each).__module__.startswith(("torch.nn.modules.", "textsam.")) for each in parts)
        parameters = [each for part in parts for each in part._parameters.values() if each is not None]
        known = all(type(each) is nn.Parameter and each.dtype == x.dtype for each in parameters)
        if not (plain and known) or None in state:
            _kept.pop(module, None)
            return None
        starts = [each.detach().as_strided((min(each.numel(), 8),), (1,)) for each in parameters]
        kept = _kept[module] = Kept(state, starts, torch.cat(starts), make(compiled, module))
    made: Any = Widened(kept.made, x.dtype) if widened and x.dtype != torch.float32 else kept.made
    return made


class Widened:
    """A layer whose kernels compute in float32, between layers of half precision: twice as fast as PyTorch's operations
    of that type, which CPUs have for matrix products alone, and without their rounding."""

    def __init__(self, made: Callable[..., Any], dtype: torch.dtype) -> None:
        self.made, self.dtype = made, dtype

    def __call__(self, *inputs: Any) -> Any:
        return _cast(self.made(*_cast(inputs, torch.float32)), self.dtype)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    """The tensors in `x` in another type."""
    if isinstance(x, Tensor):
        return x.to(dtype)
    if isinstance(x, (list, tuple)):
        return type(x)(_cast(each, dtype) for each in x)
    return {key: _cast(each, dtype) for key, each in x.items()} if isinstance(x, dict) else x


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The module and all in it. `modules()` and `parameters()` take four times as long: they name what they find."""
    found = [module]
    for each in found:  # which grows
        found += [child for child in each._modules.values() if child is not None]
    return found


class PackedTrunk:
    """MobileNetV2's blocks; the first one comes with the convolution before it."""

    def __init__(self, compiled: Kernels, trunk: Any) -> None:
        self.kernels = compiled
        self.sizes, self.weights = list[tuple[int, ...]](), list[Tensor]()
        for number, block in enumerate(module for name, module in trunk.named_children() if name.startswith("block")):
            widen = block.expand if number else trunk.conv0
            wide, narrow, stride = block.depthwise.out_channels, block.project.out_channels, block.depthwise.stride[0]
            inputs = widen.weight[0].numel()
            self.sizes.append((inputs, wide, narrow, stride, bool(number and block.shortcut)))
            self.weights += _place(compiled, widen)
            self.weights += _depthwise(block.depthwise, -(-wide // compiled.panel) * compiled.panel)
            self.weights += _place(compiled, block.project)

    def __call__(self, pixel_values: Tensor, taps: dict[int, int]) -> dict[int, Tensor]:
        """As `MobileNetV2.forward_features`, with `taps` from block to stride."""
        pictures = pixel_values.contiguous()
        sizes = {stride: [-(-side // stride) for side in pictures.shape[2:]] for stride in taps.values()}
        maps = {number: _empty(pictures, *sizes[stride], self.sizes[number - 1][2]) for number, stride in taps.items()}
        for i, pixels in enumerate(pictures):
            outs = [maps[number][i] if number in maps else None for number in range(1, len(self.sizes) + 1)]
            self.kernels.trunk(pixels, self.sizes, self.weights, outs)
        return {stride: _channels_first(maps[number]) for number, stride in taps.items()}


class PackedMobile:
    """A `MobileEncoder` with skips and a head for text."""

    def __init__(self, compiled: Kernels, encoder: Any) -> None:
        self.kernels, self.trunk = compiled, PackedTrunk(compiled, encoder.trunk)
        head, compared, last = encoder.similarity_head
        self.inner = (
            encoder.lateral4.out_channels,
            encoder.lateral8.out_channels,
            encoder.lateral16.out_channels,
            encoder.context[0].num_heads if len(encoder.context) else 1,
        )
        self.blocks = len(encoder.context)
        plain = [*(block.norm1 for block in encoder.context), *list(encoder.presence_head or ())[:1]]
        self.epsilons = (plain[0].eps if plain else 0.0, last.eps)
        to = (encoder.neck[0], encoder.skip4, encoder.skip8, compared)
        self.outs = [layer.out_channels for layer in to]
        self.weights = [*_place(compiled, encoder.lateral32)]
        for block in encoder.context:
            self.weights += _context(compiled, block)
        self.weights += [*_place(compiled, encoder.lateral16), *_separable(compiled, encoder.smooth16)]
        self.weights += [*_place(compiled, encoder.neck[0]), *_norm(encoder.neck[1]), *_place(compiled, encoder.down16)]
        self.weights += [*_place(compiled, encoder.lateral8), *_separable(compiled, encoder.smooth8)]
        self.weights += [*_place(compiled, encoder.skip8), *_place(compiled, encoder.down8)]
        self.weights += [*_place(compiled, encoder.lateral4), *_separable(compiled, encoder.smooth4)]
        self.weights += _place(compiled, encoder.skip4)
        self.weights += [*_separable(compiled, head), *_place(compiled, compared), *_norm(last)]
        self.whole = 0
        if encoder.presence_head is not None:
            first, widen, _, narrow, second = encoder.presence_head
            self.whole = narrow.out_features
            mlp = [*compiled.panels(widen.weight, widen.bias), *compiled.panels(narrow.weight, narrow.bias)]
            self.weights += [*_norm(first), *mlp, *_norm(second)]

    def __call__(self, pixel_values: Tensor, taps: dict[int, int]) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps of the channels of `neck`, `skip4`, `skip8` and `similarity_head`, and (B, channels) of
        `presence_head`, none without; `taps` from block to stride."""
        found = self.trunk(pixel_values, taps)
        maps = [_channels_last(found[stride]) for stride in (4, 8, 16, 32)]
        outs = [
            _empty(maps[level], *maps[level].shape[1:3], channels)
            for level, channels in zip((2, 0, 1, 1), self.outs, strict=True)
        ]
        whole = _empty(pixel_values, self.whole)
        for i, vector in enumerate(whole):
            own, to = ([each[i] for each in group] for group in (maps, outs))
            place = vector if self.whole else None
            self.kernels.pyramid(own, self.inner, self.blocks, self.epsilons, self.weights, to, place)
        return (*map(_channels_first, outs), whole)


class PackedConvolution:
    """A 3 x 3 convolution with zeros around."""

    def __init__(self, compiled: Kernels, conv: nn.Conv2d) -> None:
        self.kernels, self.channels = compiled, conv.out_channels
        self.weights = _places(compiled, conv)

    def __call__(self, x: Tensor, other: Tensor | None, gelu: bool) -> Tensor:
        """(B, C, h, w) -> (B, channels, h, w), with `other` of that shape added before GELU."""
        rows = _channels_last(x)
        others = [None] * len(x) if other is None else _channels_last(other)
        out = _empty(rows, *rows.shape[1:3], self.channels)
        for row, add, to in zip(rows, others, out, strict=True):
            self.kernels.convolve(row, self.weights, add, gelu, to)
        return _channels_first(out)


class PackedUNet:
    """The convolutions of a `MaskDetail`."""

    def __init__(self, compiled: Kernels, detail: Any) -> None:
        self.kernels = compiled
        self.channels = [pair.second.out_channels for pair in detail.down]
        self.seen = [layer.out_channels for layer in detail.see]
        self.norm = (detail.down[0].norm.num_groups, detail.down[0].norm.eps)
        self.weights = [*_places(compiled, detail.enter), *_pair(compiled, detail.down[0])]
        for layer, pair in zip(detail.see, detail.down[1:], strict=True):
            self.weights += [*_place(compiled, layer), *_pair(compiled, pair)]
        for pair in detail.up:
            self.weights += _pair(compiled, pair)
        self.weights += _places(compiled, detail.out)
        self.results = detail.out.out_channels

    def __call__(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """(N, C, h, w) and the encoder's maps at half of it, a quarter and so on -> (N, results, h, w)."""
        rows, maps = _channels_last(x), [_channels_last(each) for each in features]
        out = _empty(rows, *rows.shape[1:3], self.results)
        for i, row in enumerate(rows):
            beside = [each[i] for each in maps]
            self.kernels.unet(row, beside, self.weights, self.channels, self.seen, *self.norm, out[i])
        return _channels_first(out)


class PackedSurroundings:
    """`Surroundings`, the further ones in it, too."""

    def __init__(self, compiled: Kernels, around: Any) -> None:
        self.kernels, self.weights = compiled, _around(compiled, around)

    def __call__(self, x: Tensor, gelu: bool) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        rows = _channels_last(x)
        out = torch.empty_like(rows)
        for row, to in zip(rows, out, strict=True):
            self.kernels.surroundings(row, self.weights, len(self.weights) // 6, gelu, to)
        return _channels_first(out)


class PackedRefiner:
    """A `MaskRefiner`."""

    def __init__(self, compiled: Kernels, refiner: Any) -> None:
        around = _around(compiled, refiner.around)
        self.kernels, self.channels, self.levels = compiled, refiner.enter.out_channels, len(around) // 6
        self.weights = [*_places(compiled, refiner.enter), *around, *_places(compiled, refiner.near)]
        self.weights += _place(compiled, refiner.out)

    def __call__(self, upscaled: Tensor, maps: Tensor) -> Tensor:
        """As `MaskRefiner.forward`."""
        rows, drawn = _channels_last(upscaled), _channels_last(maps)
        out = torch.empty_like(rows)
        for row, beside, to in zip(rows, drawn, out, strict=True):
            self.kernels.refine(row, beside, self.weights, self.channels, self.levels, to)
        return _channels_first(out)


class PackedDrawing:
    """The layers of `GeometryMaps`."""

    def __init__(self, compiled: Kernels, geometry: Any) -> None:
        self.kernels = compiled
        self.outs = [layer.out_channels for layer in (geometry.stride4, geometry.stride8, geometry.to_stride16[3])]
        self.widths = (geometry.to_stride8[0].out_channels, geometry.to_stride16[0].out_channels)
        self.weights = [*_place(compiled, geometry.stride4)]
        last = (geometry.stride8, geometry.to_stride16[3])
        for (down, norm, *_), each in zip((geometry.to_stride8, geometry.to_stride16), last, strict=True):
            self.weights += [*_places(compiled, down), *_norm(norm), *_place(compiled, each)]
            self.epsilon = norm.eps

    def __call__(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, F, 4h, 4w) -> (N, ..., 4h, 4w), (N, ..., 2h, 2w) and (N, C, h, w)."""
        rows = _channels_last(maps)
        h, w = (side // 4 for side in rows.shape[1:3])
        outs = [_empty(rows, scale * h, scale * w, n) for scale, n in zip((4, 2, 1), self.outs, strict=True)]
        for drawn, *to in zip(rows, *outs, strict=True):
            self.kernels.drawing(drawn, self.weights, self.widths, self.epsilon, to)
        stride4, stride8, stride16 = map(_channels_first, outs)
        return stride4, stride8, stride16


class PackedUpscaling:
    """`MaskDecoder.output_upscaling`, with what is added to its maps before their activations."""

    def __init__(self, compiled: Kernels, layers: Any) -> None:
        self.kernels = compiled
        up1, norm, _, up2, _ = layers
        weights = [
            compiled.panels(conv.weight.permute(2, 3, 1, 0).flatten(0, 2), conv.bias.repeat(4)) for conv in (up1, up2)
        ]
        self.stages = ((weights[0], (*_norm(norm), norm.eps), up1.out_channels), (weights[1], None, up2.out_channels))

    def __call__(self, x: Tensor, added: Sequence[Sequence[Tensor]]) -> Tensor:
        """(N, C, h, w) -> (N, C/8, 4h, 4w).

        Args:
            added: at stride 8 and at stride 4, at most two maps (N, C/4, 2h, 2w) and (N, C/8, 4h, 4w) each.
        """
        rows = _channels_last(x)
        for (weights, norm, channels), others in zip(self.stages, added, strict=True):
            more = [_channels_last(each) for each in others]
            out = _empty(rows, 2 * rows.shape[1], 2 * rows.shape[2], channels)
            for i, row in enumerate(rows):
                self.kernels.up(row, weights, [each[i] for each in more], norm, out[i])
            rows = out
        return _channels_first(rows)


def _norm(norm: Any) -> Pair:
    return norm.weight.detach().float(), norm.bias.detach().float()


def _context(compiled: Kernels, block: Any) -> list[Tensor]:
    """Of a `ContextBlock`."""
    qkv, project, widen, narrow = (
        compiled.panels(layer.weight, layer.bias) for layer in (block.qkv, block.proj, block.mlp.lin1, block.mlp.lin2)
    )
    position = _depthwise(block.position, block.position.out_channels)
    return [*position, *_norm(block.norm1), *qkv, *project, *_norm(block.norm2), *widen, *narrow]


def _separable(compiled: Kernels, block: Any) -> list[Tensor]:
    """Of a `SeparableConv`."""
    widen, narrow = (compiled.panels(layer.weight, layer.bias) for layer in (block.mlp.lin1, block.mlp.lin2))
    return [*_depthwise(block.depthwise, block.depthwise.out_channels), *_norm(block.norm), *widen, *narrow]


def _pair(compiled: Kernels, pair: Any) -> list[Tensor]:
    """Of a `ConvPair`."""
    return [*_places(compiled, pair.first), *_norm(pair.norm), *_places(compiled, pair.second)]


def _around(compiled: Kernels, around: Any) -> list[Tensor]:
    """Of `Surroundings`, level by level."""
    up = _place(compiled, around.up)
    further = [] if around.further is None else _around(compiled, around.further)
    return [*_places(compiled, around.down), *_places(compiled, around.mix), *up, *further]


def _places(compiled: Kernels, conv: nn.Conv2d) -> Pair:
    """Panels and biases of a convolution, place by place."""
    bias: Any = conv.bias
    return compiled.panels(conv.weight.permute(0, 2, 3, 1).flatten(1), bias)


def _place(compiled: Kernels, conv: nn.Conv2d) -> Pair:
    """Panels and biases of a 1 x 1 convolution."""
    bias: Any = conv.bias
    return compiled.panels(conv.weight.flatten(1), bias)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _depthwise(conv: nn.Conv2d, width: int) -> Pair:
    """Weights (9, width) and bias (width,) of a depthwise 3 x 3 convolution, with zeros behind its channels."""
    bias: Any = conv.bias
    missing = width - conv.out_channels
    weight = F.pad(conv.weight.detach().float().flatten(1).T, (0, missing))
    return weight.contiguous(), F.pad(bias.detach().float(), (0, missing))


def _channels_first(rows: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w), a view."""
    return rows.permute(0, 3, 1, 2)


def _empty(x: Tensor, *shape: int) -> Tensor:
    """(B, *shape) for a batch x of B."""
    return x.new_empty(len(x), *shape)
