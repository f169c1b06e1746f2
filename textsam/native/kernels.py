"""The compiled library's functions, on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional


class Kernels:
    """The functions of the library, on tensors.

    All are contiguous, on the CPU, and float32 unless said otherwise; the C++ files tell what the functions do. Layers
    of the small models take one picture (h, w, C) and fill `out`, its place in a batch.

    Raises:
        OSError: the library cannot be loaded, or its products do not work on this CPU.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.textsam_score.restype = ctypes.c_void_p
        if not self._library.textsam_works():
            raise OSError("this PyTorch has no block products for this CPU")

    @staticmethod
    def can_attend(dtype: torch.dtype) -> bool:
        """Whether `attend` knows this type on this CPU: bfloat16 takes instructions that not every one has."""
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        bfloat16 = any(getattr(torch.cpu, name, bool)() for name in names)
        return dtype == torch.float32 or (dtype == torch.bfloat16 and bfloat16)

    def attend(self, qkv: Tensor, padding: Tensor, tables: Tensor, window: int, heads: int) -> Tensor:
        """Attention of the image encoder; see encoder.cpp.

        Args:
            qkv: (h, w, 3 * C) projections, of a type that `can_attend` knows, as all of these.
            padding: (3 * C,), of a padding token.
            tables: (2 * K_h - 1 + 2 * K_w - 1, C / heads), where K is the window, or the grid's side.
            window: its side; 0: attention over the whole grid.
        Returns:
            (h, w, C).
        """
        (h, w, width), dtype = qkv.shape, qkv.dtype
        channels = width // 3
        sides = (window, window) if window else (h, w)
        out = qkv.new_empty(h, w, channels)
        self._library.textsam_attend(
            ctypes.c_int(dtype == torch.bfloat16),
            _pointer(qkv, h, w, 3 * channels, dtype=dtype),
            _pointer(padding, 3 * channels, dtype=dtype),
            _pointer(tables, 2 * sum(sides) - 2, channels // heads, dtype=dtype),
            _pointer(out, h, w, channels, dtype=dtype),
            *_integers(h, w, window, heads, channels // heads, torch.get_num_threads()),
        )
        return out

    def exchange(
        self,
        keys: Tensor,
        pe: Tensor,
        write: tuple[Tensor, Tensor, Tensor] | None,
        norm: torch.nn.LayerNorm,
        read: Tensor,
        heads: int,
        buffer: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Image tokens take from the prompts' tokens and are read by them; see decoder.cpp.

        Args:
            keys: (1 or n, C, P). pe: (C, P).
            write: folded keys (n, heads * T, C), their offsets (n, heads * T), values (n, C, heads * T); None: nothing
                is taken. norm: of what was taken.
            read: (n, heads * T, C) folded queries.
            buffer: (n, C, P) for the keys after that; may be `keys`.
        Returns:
            the keys, those given when nothing is taken, and what was read (n, heads * T, C).
        """
        n, rows, channels = read.shape
        positions = pe.shape[1]
        stride = 0 if len(keys) == 1 else channels * positions
        taken, mixed = keys, torch.empty_like(read)
        pointers: list[ctypes.c_void_p | None] = [None] * 6
        if write is not None:
            taken = buffer
            weight, bias = _floats(norm.weight), _floats(norm.bias)
            folded, offset, values = write
            pointers = [
                _pointer(folded, n, rows, channels),
                _pointer(offset, n, rows),
                _pointer(values, n, channels, rows),
                _pointer(weight, channels),
                _pointer(bias, channels),
                _pointer(taken, n, channels, positions),
            ]
        self._library.textsam_exchange(
            *_integers(n, rows // heads, heads, channels, positions),
            _pointer(keys, len(keys), channels, positions),
            *_integers(stride),
            _pointer(pe, channels, positions),
            *pointers[:5],
            ctypes.c_float(norm.eps),
            pointers[5],
            _pointer(read, n, rows, channels),
            _pointer(mixed, n, rows, channels),
            *_integers(torch.get_num_threads()),
        )
        return taken, mixed

    def transform(
        self,
        tokens: Tensor,
        keys: Tensor,
        pe: Tensor,
        parameters: Sequence[Tensor],
        sizes: tuple[int, int, int, int],
        first_without: bool,
        epsilon: float,
    ) -> tuple[Tensor, Tensor]:
        """The decoder's transformer; see transformer.cpp.

        Args:
            tokens: (n, T, C), C a multiple of 16. keys: (1 or n, C, P). pe: (C, P).
            parameters: in the order of the structs there, products as `panels` gives them.
            sizes: heads, their width, that of the MLP, and the number of blocks.
            first_without: the first block takes the place of its tokens.
        Returns:
            tokens (n, T, C) and keys (n, C, P) after the exchange.
        """
        (n, count, channels), positions = tokens.shape, pe.shape[1]
        out, taken = torch.empty_like(tokens), keys.new_empty(n, channels, positions)
        self._library.textsam_transform(
            *_integers(n, count, channels, *sizes, first_without, positions),
            ctypes.c_float(epsilon),
            _pointers(parameters),
            _pointer(keys, len(keys), channels, positions),
            *_integers(0 if len(keys) == 1 else channels * positions),
            _pointer(pe, channels, positions),
            _pointer(tokens, n, count, channels),
            _pointer(out, n, count, channels),
            _pointer(taken, n, channels, positions),
            *_integers(torch.get_num_threads()),
        )
        return out, taken

    def upscale(
        self,
        keys: Tensor,
        grid_hw: tuple[int, int],
        up1: tuple[Tensor, Tensor],
        norm: tuple[Tensor, Tensor, float],
        up2: tuple[Tensor, Tensor],
        weights: Tensor,
    ) -> Tensor:
        """Image tokens (n, C, h * w) and weights (n, M, c2) to logits (n, M, 4h, 4w); see decoder.cpp.

        Args:
            up1: (4 * c1, C), rows place by place, and bias (c1,). up2: (4 * c2, c1) and (c2,).
            norm: weight and bias (c1,), and epsilon.
        """
        (n, channels, _), (h, w) = keys.shape, grid_hw
        masks, c1, c2 = weights.shape[1], len(up1[1]), len(up2[1])
        logits = keys.new_empty(n, masks, 4 * h, 4 * w)
        self._library.textsam_upscale(
            *_integers(n, masks, channels, c1, c2, h, w),
            _pointer(keys, n, channels, h * w),
            _pointer(up1[0], 4 * c1, channels),
            _pointer(up1[1], c1),
            _pointer(norm[0], c1),
            _pointer(norm[1], c1),
            ctypes.c_float(norm[2]),
            _pointer(up2[0], 4 * c2, c1),
            _pointer(up2[1], c2),
            _pointer(weights, n, masks, c2),
            _pointer(logits, n, masks, 4 * h, 4 * w),
            *_integers(torch.get_num_threads()),
        )
        return logits

    def trunk(
        self, pixels: Tensor, sizes: Sequence[Sequence[int]], weights: Sequence[Tensor], outs: Sequence[Tensor | None]
    ) -> None:
        """MobileNetV2; see layers.cpp.

        Args:
            pixels: (3, H, W). sizes: of each layer its channels before, widened and after, its stride and whether it
                has a shortcut; of the first one, which comes with the layer before it, 27, ..., 1, 0.
            weights: six of each layer: panels and bias that widen, of the depthwise product (9, wide) and (wide,),
                padded to panels, panels and bias that narrow.
            outs: of each layer the map (h, w, channels) that it is to fill, or None.
        """
        _, height, width = pixels.shape
        places, h, w = list[int | None](), height, width
        for number, ((_, _, narrow, stride, _), out) in enumerate(zip(sizes, outs, strict=True)):
            step = stride if number else 2
            h, w = -(-h // step), -(-w // step)
            places.append(None if out is None else _pointer(out, h, w, narrow).value)
        self._library.textsam_trunk(
            *_integers(height, width, len(sizes)),
            (ctypes.c_int64 * (5 * len(sizes)))(*(each for layer in sizes for each in layer)),
            _pointers(weights),
            _pointer(pixels, 3, height, width),
            (ctypes.c_void_p * len(places))(*places),
            *_integers(torch.get_num_threads()),
        )

    def separable(
        self,
        x: Tensor,
        depthwise: tuple[Tensor, Tensor],
        norm: tuple[Tensor, Tensor, float],
        widen: tuple[Tensor, Tensor],
        narrow: tuple[Tensor, Tensor],
        wide: int,
        out: Tensor,
    ) -> None:
        """A depthwise product, layer norm, an MLP with GELU, and x itself: (h, w, C) to (h, w, C); see layers.cpp.

        Args:
            depthwise: (9, C) and (C,). widen, narrow: panels and biases; see `panels`. wide: channels between the two.
        """
        h, w, channels = x.shape
        self._library.textsam_separable(
            *_integers(h, w, channels, wide),
            _pointer(x, h, w, channels),
            *(_pointer(each, *each.shape) for each in (*depthwise, *norm[:2])),
            ctypes.c_float(norm[2]),
            *(_pointer(each, *each.shape) for each in (*widen, *narrow)),
            _pointer(out, h, w, channels),
            *_integers(torch.get_num_threads()),
        )

    def convolve(
        self, x: Tensor, weights: tuple[Tensor, Tensor], other: Tensor | None, gelu: bool, out: Tensor
    ) -> None:
        """A 3 x 3 convolution, with zeros around, of (h, w, C) to (h, w, channels); see layers.cpp.

        Args:
            weights: panels and biases of (channels, 9 * C), place by place; see `panels`.
            other: (h, w, channels), added to it. gelu: of the sum.
        """
        (h, w, wide), channels = x.shape, out.shape[2]
        self._library.textsam_convolve(
            *_integers(h, w, wide, channels, gelu),
            _pointer(x, h, w, wide),
            *(_pointer(each, *each.shape) for each in weights),
            None if other is None else _pointer(other, h, w, channels),
            _pointer(out, h, w, channels),
            *_integers(torch.get_num_threads()),
        )

    def context(
        self,
        x: Tensor,
        heads: int,
        depthwise: tuple[Tensor, Tensor],
        norm1: tuple[Tensor, Tensor, float],
        attention: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
        norm2: tuple[Tensor, Tensor, float],
        mlp: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
        wide: int,
        out: Tensor,
    ) -> None:
        """A transformer block on (h, w, C), C and C / heads multiples of 16; see layers.cpp.

        Args:
            depthwise: weights (9, C) and bias (C,). norm1, norm2: weight, bias and epsilon.
            attention: panels and biases of (3 * C, C) and of (C, C). mlp: of (wide, C) and of (C, wide).
        """
        h, w, channels = x.shape
        layers = [(*depthwise,), (*norm1[:2],), (*attention[0], *attention[1]), (*norm2[:2],), (*mlp[0], *mlp[1])]
        position, first, attend, second, block = ([_pointer(each, *each.shape) for each in layer] for layer in layers)
        self._library.textsam_context(
            *_integers(h, w, channels, heads, wide),
            _pointer(x, h, w, channels),
            *position,
            *first,
            ctypes.c_float(norm1[2]),
            *attend,
            *second,
            ctypes.c_float(norm2[2]),
            *block,
            _pointer(out, h, w, channels),
            *_integers(torch.get_num_threads()),
        )

    def unet(
        self,
        x: Tensor,
        features: Sequence[Tensor],
        weights: Sequence[Tensor],
        channels: Sequence[int],
        seen: Sequence[int],
        groups: int,
        epsilon: float,
        out: Tensor,
    ) -> None:
        """The U-Net of `MaskDetail`; see layers.cpp.

        Args:
            x: (h, w, C). features: (h / 2, w / 2, ...), (h / 4, w / 4, ...) and so on.
            weights: in the order of their use, 3 x 3 products place by place.
            channels: of each level. seen: that the features are narrowed to. out: (h, w, n).
        """
        (h, w, n), levels = out.shape, len(channels)
        known = [each.shape[2] for each in features]
        beside = [_pointer(each, h >> i, w >> i, k) for i, (each, k) in enumerate(zip(features, known, strict=True), 1)]
        self._library.textsam_unet(
            *_integers(h, w, x.shape[2], n, levels),
            *((ctypes.c_int64 * len(each))(*each) for each in (channels, known, seen)),
            *_integers(groups),
            ctypes.c_float(epsilon),
            _pointer(x, h, w, x.shape[2]),
            (ctypes.c_void_p * len(beside))(*(each.value for each in beside)),
            _pointers(weights),
            _pointer(out, h, w, n),
            *_integers(torch.get_num_threads()),
        )

    def surroundings(self, x: Tensor, weights: Sequence[Tensor], levels: int, gelu: bool, out: Tensor) -> None:
        """(h, w, C) with what lies around each place, h and w multiples of 2 to the power of levels; see layers.cpp.

        Args:
            weights: of each level panels and biases down, of the mixture and up. gelu: of the sum.
        """
        h, w, channels = x.shape
        self._library.textsam_surroundings(
            *_integers(h, w, channels, levels, gelu),
            _pointer(x, h, w, channels),
            _pointers(weights),
            _pointer(out, h, w, channels),
            *_integers(torch.get_num_threads()),
        )

    def refine(
        self, x: Tensor, maps: Tensor, weights: Sequence[Tensor], channels: int, levels: int, out: Tensor
    ) -> None:
        """A second look at a map (h, w, C) and what is drawn beside it (h, w, F): (h, w, C); see layers.cpp.

        Args:
            weights: panels and biases in the order of their use, those of the surroundings as in `surroundings`.
            channels: between the two.
        """
        h, w, wide = x.shape
        self._library.textsam_refine(
            *_integers(h, w, wide, maps.shape[2], channels, levels),
            _pointer(x, h, w, wide),
            _pointer(maps, h, w, maps.shape[2]),
            _pointers(weights),
            _pointer(out, h, w, wide),
            *_integers(torch.get_num_threads()),
        )

    def down(self, x: Tensor, weights: tuple[Tensor, Tensor], norm: tuple[Tensor, Tensor, float], out: Tensor) -> None:
        """(2h, 2w, C) to (h, w, channels), by a convolution of 2 x 2, layer norm and GELU; see layers.cpp.

        Args:
            weights: panels and biases, place by place; see `panels`. norm: weight, bias and epsilon.
        """
        (h, w, channels), wide = out.shape, x.shape[2]
        self._library.textsam_down(
            *_integers(h, w, wide, channels),
            _pointer(x, 2 * h, 2 * w, wide),
            *(_pointer(each, *each.shape) for each in (*weights, *norm[:2])),
            ctypes.c_float(norm[2]),
            _pointer(out, *out.shape),
            *_integers(torch.get_num_threads()),
        )

    def up(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor],
        others: Sequence[Tensor],
        norm: tuple[Tensor, Tensor, float] | None,
        out: Tensor,
    ) -> None:
        """(h, w, C) to (2h, 2w, channels), by a transposed convolution of 2 x 2, and GELU; see layers.cpp.

        Args:
            weights: panels and biases of (4 * channels, C), place by place; see `panels`.
            others: at most two (2h, 2w, channels), added to it.
            norm: weight, bias and epsilon of a layer norm, or None.
        """
        (h, w, wide), channels = x.shape, out.shape[2]
        self._library.textsam_up(
            *_integers(h, w, wide, channels),
            _pointer(x, h, w, wide),
            *(_pointer(each, *each.shape) for each in weights),
            *(_pointer(each, *out.shape) for each in others),
            *[None] * (2 - len(others)),
            *((None, None) if norm is None else (_pointer(each, channels) for each in norm[:2])),
            ctypes.c_float(0 if norm is None else norm[2]),
            _pointer(out, 2 * h, 2 * w, channels),
            *_integers(torch.get_num_threads()),
        )

    @property
    def panel(self) -> int:
        """Columns of a panel of weights, and what widths are padded to between the layers of a block."""
        return int(self._library.textsam_panel())

    def panels(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(out, in) weights to (panels, in, panel) and their (out,) bias to (panels * panel,), with zeros behind."""
        padded = functional.pad(weight.detach().float(), (0, 0, 0, -len(weight) % self.panel))
        cut = padded.unflatten(0, (-1, self.panel)).transpose(1, 2).contiguous()
        return cut, functional.pad(bias.detach().float(), (0, -len(bias) % self.panel))

    def contrasts(self, values: Tensor, sides: Sequence[int]) -> Tensor:
        """Oriented contrasts of each channel to its surroundings, for K sides of blocks; see fine.cpp.

        Args:
            values: (C, H, W).
        Returns:
            (K, C, H, W).
        """
        out = values.new_empty(len(sides), *values.shape)
        self._library.textsam_contrasts(
            *_integers(*values.shape),
            _pointer(values, *values.shape),
            *_integers(len(sides)),
            (ctypes.c_int64 * len(sides))(*sides),
            _pointer(out, *out.shape),
            *_integers(torch.get_num_threads()),
        )
        return out

    def shares(self, pixels: Tensor, logits: Tensor, sides: Sequence[int]) -> Tensor:
        """Where pixels (3, H, W) lie between the colours of ground and ink, for K sides of blocks; see fine.cpp.

        Args:
            logits: (H, W) of the ink.
        Returns:
            (K, H, W).
        """
        height, width = logits.shape
        out = pixels.new_empty(len(sides), height, width)
        self._library.textsam_shares(
            *_integers(height, width),
            _pointer(pixels, 3, height, width),
            _pointer(logits, height, width),
            *_integers(len(sides)),
            (ctypes.c_int64 * len(sides))(*sides),
            _pointer(out, *out.shape),
            *_integers(torch.get_num_threads()),
        )
        return out

    def score(
        self, logits: Tensor, sizes: Sequence[int], thresholds: Sequence[float], least: float
    ) -> tuple[Tensor, Tensor, list[bytes]]:
        """Masks at the photo's size, counted, boxed and run-length encoded; see masks.cpp.

        Args:
            logits: (N, rows, columns); may be a part of larger maps.
            sizes: the rest of `Sizes` in masks.cpp, after rows and columns.
            thresholds: low, middle and high. least: stability below which there is no run-length code.
        Returns:
            (N, 2) pixels above the high and the low threshold, (N, 4) boxes, and N codes, empty when unstable.
        """
        count, rows, columns = logits.shape
        if logits.dtype != torch.float32 or logits.device.type != "cpu" or (count and logits.stride(2) != 1):
            raise ValueError(f"Expected float32 maps on the CPU, row by row, got {logits.dtype} {logits.stride()}.")
        counts, boxes = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, 4, dtype=torch.int64)
        lengths = (ctypes.c_int64 * count)()
        handle = self._library.textsam_score(
            *_integers(count),
            ctypes.c_void_p(logits.data_ptr()),
            *_integers(logits.stride(0), logits.stride(1)),
            (ctypes.c_int64 * 10)(rows, columns, *sizes),
            (ctypes.c_float * 3)(*thresholds),
            ctypes.c_float(least),
            ctypes.c_void_p(counts.data_ptr()),
            ctypes.c_void_p(boxes.data_ptr()),
            lengths,
            *_integers(torch.get_num_threads()),
        )
        text = ctypes.create_string_buffer(sum(lengths) + 1)
        self._library.textsam_take(ctypes.c_void_p(handle), text)
        ends = list(accumulate(lengths))
        return counts, boxes, [text.raw[end - n : end] for n, end in zip(lengths, ends, strict=True)]


def _floats(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()


def _pointer(x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> ctypes.c_void_p:
    """The address of a tensor that is just what the library takes it for."""
    if x.dtype != dtype or not x.is_contiguous() or x.device.type != "cpu" or tuple(x.shape) != shape:
        raise ValueError(f"Expected contiguous {dtype} {shape} on the CPU, got {x.dtype} {tuple(x.shape)}.")
    return ctypes.c_void_p(x.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Addresses of parameters."""
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))


def _integers(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]
