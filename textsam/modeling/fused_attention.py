"""Attention of the image encoder on a GPU, in one Triton kernel: relative positions, windows and padding included.

It reads queries, keys and values where the projection left them and writes tokens where the next one wants them: no
window is cut out or put back, no padding token is projected or stored, and no bias is ever held. The bias of a query
and a key is a sum of two products of the query with the tables. These are computed beforehand for all offsets, 2 S - 1
of each axis, and enter in one of two ways:

- Windows, whose sides are short: the query's row of products, shifted to its place, times one-hot rows and columns of
  the keys. This is one more small product of the kind that the tensor cores do.
- Whole grids, with one image row of keys at a time: the columns' part is then the same for every row and stays in
  registers, and the rows' part is one number per query.

Source of the loop over blocks of keys: Dao 2023, *FlashAttention-2*. Without gradients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor


class Tiles(NamedTuple):
    """Queries of a program and its warps; keys of a step (0: an image row) and the steps that are loaded ahead."""

    queries: int
    keys: int
    warps: int
    stages: int


WINDOW_TILES = Tiles(128, 64, 8, 2)
GRID_TILES = Tiles(128, 0, 8, 3)
_LONGEST_WINDOW = 16  # rows or columns that the one-hot vectors have room for


def is_supported(dtype: torch.dtype, head_dim: int, window: int, width: int) -> bool:
    """Whether the kernel knows these sizes: heads of one or two powers of 2; short windows, or rows of 32, 64 or 128
    tokens."""
    wide, narrow = _widths(head_dim)
    known = wide >= 16 and wide + narrow == head_dim and (narrow == 0 or narrow >= 16)
    sides = window <= _LONGEST_WINDOW if window else width in (32, 64, 128)
    return dtype in (torch.bfloat16, torch.float16) and known and sides


def _widths(head_dim: int) -> tuple[int, int]:
    """A head's width as the largest power of 2 in it, and the largest in the rest (80: 64 and 16)."""
    wide = 1 << (head_dim.bit_length() - 1)
    rest = head_dim - wide
    return wide, (1 << (rest.bit_length() - 1)) if rest else 0


@torch.library.custom_op("textsam::relative_attention", mutates_args=())
def relative_attention(qkv: Tensor, padding: Tensor, tables: Tensor, window: int, heads: int) -> Tensor:
    """
    Args:
        qkv: (B, h, w, 3 * C) projections, contiguous. padding: (3 * C,), of a padding token.
        tables: (2 * S_h - 1 + 2 * S_w - 1, C / heads), *flipped*, rows' first; S is the window's side or the grid's.
        window: its side; 0: attention over the whole grid.
    Returns:
        (B, h, w, C).
    """
    return attend(qkv, padding, tables, window, heads)


@relative_attention.register_fake
def _(qkv: Tensor, padding: Tensor, tables: Tensor, window: int, heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


def attend(qkv: Tensor, padding: Tensor, tables: Tensor, window: int, heads: int) -> Tensor:
    """`relative_attention` as a plain function."""
    qkv = qkv.contiguous()
    b, h, w, width = qkv.shape
    channels = width // 3
    head_dim = channels // heads
    wide, narrow = _widths(head_dim)
    down, across = (math.ceil(h / window), math.ceil(w / window)) if window else (1, 1)
    side_h, side_w = (window, window) if window else (h, w)
    products = _products(qkv, tables, heads)
    out = qkv.new_empty(b, h, w, channels)
    tiles = WINDOW_TILES if window else GRID_TILES
    grid = (triton.cdiv(side_h * side_w, tiles.queries), heads, b * down * across)
    _attend[grid](
        qkv, padding.contiguous(), products, out,
        b * h * w, h, w, down * across, across, products.shape[2], head_dim**-0.5,
        CHANNELS=channels, D=head_dim, WIDE=wide, NARROW=narrow, SIDE_H=side_h, SIDE_W=side_w,
        WINDOWED=window > 0, HOT=_LONGEST_WINDOW,
        QUERIES=tiles.queries, KEYS=tiles.keys or w, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


def _products(qkv: Tensor, tables: Tensor, heads: int) -> Tensor:
    """Queries times all relative positions: (heads, B * h * w, R), R the number of tables' rows rounded up to 8s."""
    channels = qkv.shape[-1] // 3
    queries = qkv.view(-1, 3 * channels)[:, :channels].unflatten(1, (heads, -1)).transpose(0, 1)
    tables = torch.nn.functional.pad(tables, (0, 0, 0, -len(tables) % 8))
    return torch.bmm(queries, tables.T.expand(heads, -1, -1))


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, padding, products, out,
    tokens, h, w, windows, across, offsets, scale,
    CHANNELS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr,
    SIDE_H: tl.constexpr, SIDE_W: tl.constexpr, WINDOWED: tl.constexpr, HOT: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One head, QUERIES queries of one window; shapes as in `relative_attention`, products as from `_products`."""
    block, head, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    image, window = place // windows, place % windows
    top, left = (window // across) * SIDE_H, (window % across) * SIDE_W
    first = image.to(tl.int64) * h * w

    m = block * QUERIES + tl.arange(0, QUERIES)
    i, j = m // SIDE_W, m % SIDE_W
    asked = (i < SIDE_H) & (top + i < h) & (left + j < w)
    token = first + (top + i) * w + left + j
    q_row = qkv + token * (3 * CHANNELS) + head * D
    d1 = tl.arange(0, WIDE)
    q1 = tl.load(q_row[:, None] + d1[None, :], mask=asked[:, None], other=0.0)
    if NARROW > 0:
        d2 = WIDE + tl.arange(0, NARROW)
        q2 = tl.load(q_row[:, None] + d2[None, :], mask=asked[:, None], other=0.0)

    # Flipped tables: the product with the offset of key k is at k - i + S - 1.
    row = products + (head.to(tl.int64) * tokens + token) * offsets
    at_h, at_w = SIDE_H - 1 - i, 2 * SIDE_H - 1 + SIDE_W - 1 - j
    if WINDOWED:
        c = tl.arange(0, 2 * HOT)
        of_row = c < HOT
        at = tl.where(of_row[None, :], c[None, :] + at_h[:, None], c[None, :] - HOT + at_w[:, None])
        known = tl.where(of_row, c < SIDE_H, c - HOT < SIDE_W)
        bias = tl.load(row[:, None] + at, mask=asked[:, None] & known[None, :], other=0.0)
    else:
        bias = tl.load(row[:, None] + at_w[:, None] + tl.arange(0, KEYS)[None, :], mask=asked[:, None], other=0.0)

    LOG2E: tl.constexpr = 1.4426950408889634
    highest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc1 = tl.zeros([QUERIES, WIDE], tl.float32)
    if NARROW > 0:
        acc2 = tl.zeros([QUERIES, NARROW], tl.float32)
    for start in range(0, SIDE_H * SIDE_W, KEYS):
        n = start + tl.arange(0, KEYS)
        k_h, k_w = n // SIDE_W, n % SIDE_W
        k_row = qkv + (first + (top + k_h) * w + left + k_w) * (3 * CHANNELS) + head * D
        pad_row = padding + head * D
        inside = k_h < SIDE_H
        real = inside & (top + k_h < h) & (left + k_w < w)
        padded = inside & (real == 0)
        # A key is loaded from its token or from the padding's; what is masked out is zero.
        k_1, k_2, v_1, v_2 = CHANNELS, CHANNELS + WIDE, 2 * CHANNELS, 2 * CHANNELS + WIDE
        k1 = tl.load(k_row[None, :] + (k_1 + d1)[:, None], mask=real[None, :], other=0.0)
        v1 = tl.load(k_row[:, None] + (v_1 + d1)[None, :], mask=real[:, None], other=0.0)
        if WINDOWED:
            k1 += tl.load(pad_row + (k_1 + d1)[:, None] + 0 * n[None, :], mask=padded[None, :], other=0.0)
            v1 += tl.load(pad_row + (v_1 + d1)[None, :] + 0 * n[:, None], mask=padded[:, None], other=0.0)
        scores = tl.dot(q1, k1, input_precision="ieee")
        if NARROW > 0:
            d0 = tl.arange(0, NARROW)
            k2 = tl.load(k_row[None, :] + (k_2 + d0)[:, None], mask=real[None, :], other=0.0)
            v2 = tl.load(k_row[:, None] + (v_2 + d0)[None, :], mask=real[:, None], other=0.0)
            if WINDOWED:
                k2 += tl.load(pad_row + (k_2 + d0)[:, None] + 0 * n[None, :], mask=padded[None, :], other=0.0)
                v2 += tl.load(pad_row + (v_2 + d0)[None, :] + 0 * n[:, None], mask=padded[:, None], other=0.0)
            scores = tl.dot(q2, k2, scores, input_precision="ieee")
        scores *= scale * LOG2E
        if WINDOWED:
            hot = tl.where(of_row[:, None], c[:, None] == k_h[None, :], c[:, None] - HOT == k_w[None, :])
            scores += LOG2E * tl.dot(bias, hot.to(bias.dtype), input_precision="ieee")
            scores = tl.where(inside[None, :], scores, -float("inf"))
        else:
            rows_part = tl.load(row + at_h + start // SIDE_W, mask=asked, other=0.0).to(tl.float32)
            scores += LOG2E * (bias.to(tl.float32) + rows_part[:, None])
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.math.exp2(scores - new_highest[:, None])
        shrink = tl.math.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weights, 1)
        low = weights.to(v1.dtype)
        acc1 = tl.dot(low, v1, acc1 * shrink[:, None], input_precision="ieee")
        if NARROW > 0:
            acc2 = tl.dot(low, v2, acc2 * shrink[:, None], input_precision="ieee")
        highest = new_highest

    out_row = out + token * CHANNELS + head * D
    tl.store(out_row[:, None] + d1[None, :], (acc1 / total[:, None]).to(out.dtype.element_ty), mask=asked[:, None])
    if NARROW > 0:
        tl.store(out_row[:, None] + d2[None, :], (acc2 / total[:, None]).to(out.dtype.element_ty), mask=asked[:, None])
