"""The compiled library's functions, on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from textsam.native.calls import integers, pointer, pointers
from textsam.native.layer_kernels import LayerKernels


class Kernels(LayerKernels):
    """The functions of the library, on tensors.

    All are contiguous, on the CPU, and float32 unless said otherwise; the C++ files tell what the functions do.

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
            pointer(qkv, h, w, 3 * channels, dtype=dtype),
            pointer(padding, 3 * channels, dtype=dtype),
            pointer(tables, 2 * sum(sides) - 2, channels // heads, dtype=dtype),
            pointer(out, h, w, channels, dtype=dtype),
            *integers(h, w, window, heads, channels // heads, torch.get_num_threads()),
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
        addresses: list[ctypes.c_void_p | None] = [None] * 6
        if write is not None:
            taken = buffer
            weight, bias = _floats(norm.weight), _floats(norm.bias)
            folded, offset, values = write
            addresses = [
                pointer(folded, n, rows, channels),
                pointer(offset, n, rows),
                pointer(values, n, channels, rows),
                pointer(weight, channels),
                pointer(bias, channels),
                pointer(taken, n, channels, positions),
            ]
        self._library.textsam_exchange(
            *integers(n, rows // heads, heads, channels, positions),
            pointer(keys, len(keys), channels, positions),
            *integers(stride),
            pointer(pe, channels, positions),
            *addresses[:5],
            ctypes.c_float(norm.eps),
            addresses[5],
            pointer(read, n, rows, channels),
            pointer(mixed, n, rows, channels),
            *integers(torch.get_num_threads()),
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
            tokens: (n, T, C), C a multiple of 16. keys: (1 or n, C, P), overwritten if there are n. pe: (C, P).
            parameters: in the order of the structs there, products as `panels` gives them.
            sizes: heads, their width, that of the MLP, and the number of blocks.
            first_without: the first block takes the place of its tokens.
        Returns:
            tokens (n, T, C) and keys (n, C, P) after the exchange.
        """
        (n, count, channels), positions = tokens.shape, pe.shape[1]
        out = torch.empty_like(tokens)
        taken = keys if len(keys) == n else keys.new_empty(n, channels, positions)
        self._library.textsam_transform(
            *integers(n, count, channels, *sizes, first_without, positions),
            ctypes.c_float(epsilon),
            pointers(parameters),
            pointer(keys, len(keys), channels, positions),
            *integers(0 if len(keys) == 1 else channels * positions),
            pointer(pe, channels, positions),
            pointer(tokens, n, count, channels),
            pointer(out, n, count, channels),
            pointer(taken, n, channels, positions),
            *integers(torch.get_num_threads()),
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
            *integers(n, masks, channels, c1, c2, h, w),
            pointer(keys, n, channels, h * w),
            pointer(up1[0], 4 * c1, channels),
            pointer(up1[1], c1),
            pointer(norm[0], c1),
            pointer(norm[1], c1),
            ctypes.c_float(norm[2]),
            pointer(up2[0], 4 * c2, c1),
            pointer(up2[1], c2),
            pointer(weights, n, masks, c2),
            pointer(logits, n, masks, 4 * h, 4 * w),
            *integers(torch.get_num_threads()),
        )
        return logits

    def contrasts(self, values: Tensor, sides: Sequence[int]) -> Tensor:
        """Oriented contrasts of each channel to its surroundings, for K sides of blocks; see fine.cpp.

        Args:
            values: (C, H, W).
        Returns:
            (K, C, H, W).
        """
        out = values.new_empty(len(sides), *values.shape)
        self._library.textsam_contrasts(
            *integers(*values.shape),
            pointer(values, *values.shape),
            *integers(len(sides)),
            (ctypes.c_int64 * len(sides))(*sides),
            pointer(out, *out.shape),
            *integers(torch.get_num_threads()),
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
            *integers(height, width),
            pointer(pixels, 3, height, width),
            pointer(logits, height, width),
            *integers(len(sides)),
            (ctypes.c_int64 * len(sides))(*sides),
            pointer(out, *out.shape),
            *integers(torch.get_num_threads()),
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
            *integers(count),
            ctypes.c_void_p(logits.data_ptr()),
            *integers(logits.stride(0), logits.stride(1)),
            (ctypes.c_int64 * 10)(rows, columns, *sizes),
            (ctypes.c_float * 3)(*thresholds),
            ctypes.c_float(least),
            ctypes.c_void_p(counts.data_ptr()),
            ctypes.c_void_p(boxes.data_ptr()),
            lengths,
            *integers(torch.get_num_threads()),
        )
        text = ctypes.create_string_buffer(sum(lengths) + 1)
        self._library.textsam_take(ctypes.c_void_p(handle), text)
        ends = list(accumulate(lengths))
        return counts, boxes, [text.raw[end - n : end] for n, end in zip(lengths, ends, strict=True)]


def _floats(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()
