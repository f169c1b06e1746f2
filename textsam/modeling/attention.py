"""Attention of the image encoder: windowed or global, with decomposed relative position bias.

The score of a query at (i, j) and a key at (k, l) is q.k / sqrt(d) + q.R_h[i - k] + q.R_w[j - l], with learned tables
R_h and R_w. There are three ways through, of equal results:

- `augmented_attention` makes the bias part of the product: the queries are extended by their products with the tables,
  the keys by one-hot vectors of their row and column. It is differentiable, never holds a bias, and runs on the fused
  kernels of any device.
- `blocked_attention`, for inference on a CPU, writes the bias of a few image rows into a buffer that fits the cache,
  adds the scores to it, and goes on from there. Nothing of the size N x N exists.
- `fused_attention`, for inference on an NVIDIA GPU, is one kernel, used where TEXTSAM_FUSED=1 asks for it.

Source: Li et al. 2022, *Exploring Plain Vision Transformer Backbones for Object Detection* (windows), and Li et al.
2022, *MViTv2* (decomposed relative positions); the details are those of the released SAM code.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Bytes of scores held at a time: few enough for the caches, enough that threads rarely wait for each other.
_SCORE_BYTES_PER_THREAD = 8 * 1024 * 1024
_MOST_SCORE_BYTES = 64 * 1024 * 1024


def is_gpu_inference(x: Tensor) -> bool:
    """No gradients, on an NVIDIA GPU, and neither under autocast nor being traced for another runtime; `torch.compile`
    takes this way too."""
    if x.device.type != "cuda" or torch.version.cuda is None or torch.is_grad_enabled():
        return False
    exporting = getattr(torch.compiler, "is_exporting", lambda: False)()  # PyTorch 2.7 and newer
    return not (exporting or torch.is_autocast_enabled("cuda") or torch.jit.is_tracing())


def resize_table(table: Tensor, size: int, trained_size: int) -> Tensor:
    """Relative positions for `size` tokens on a side whose longest extent, in training, was `trained_size`.

    A table holds offsets -(trained_size - 1) .. trained_size - 1; the middle of it serves fewer tokens.

    Args:
        table: (2 * S - 1, d) as trained.
        size: tokens along this axis; trained_size: tokens that S is to stand for, >= size.
    Returns:
        (2 * size - 1, d), interpolated linearly when `trained_size` is not S.
    """
    length = 2 * trained_size - 1
    if len(table) != length:
        table = F.interpolate(table.T[None].float(), size=length, mode="linear")[0].T.to(table.dtype)
    return table[trained_size - size : trained_size + size - 1]


def augmented_attention(q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor) -> Tensor:
    """Differentiable attention on whole windows or images.

    Args:
        q, k, v: (B, heads, h, w, d).
        table_h, table_w: (2 * h - 1, d) and (2 * w - 1, d) relative positions.
    Returns:
        (B, heads, h, w, d).
    """
    h, w, d = q.shape[-3:]
    bias_h = torch.einsum("bnhwd,hkd->bnhwk", q, _offsets(table_h, h))
    bias_w = torch.einsum("bnhwd,wkd->bnhwk", q, _offsets(table_w, w))
    rows = torch.eye(h, dtype=k.dtype, device=k.device)[:, None].expand(h, w, h)
    columns = torch.eye(w, dtype=k.dtype, device=k.device)[None].expand(h, w, w)
    places = torch.cat([rows, columns], dim=-1).expand(*k.shape[:2], h, w, h + w)
    queries = torch.cat([q * d**-0.5, bias_h, bias_w], dim=-1).flatten(2, 3)
    keys = torch.cat([k, places], dim=-1).flatten(2, 3)
    # Fused kernels want widths that are multiples of 8; on a CPU also values as wide as the keys.
    extra = -queries.shape[-1] % 8
    queries, keys, values = F.pad(queries, (0, extra)), F.pad(keys, (0, extra)), v.flatten(2, 3)
    if q.device.type == "cpu":
        values = F.pad(values, (0, queries.shape[-1] - d))
    out = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return out[..., :d].unflatten(2, (h, w))


def _offsets(table: Tensor, size: int) -> Tensor:
    """(2 * size - 1, d) -> (size, size, d), the row of offset i - k at (i, k)."""
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor, scale: float, buffer: Tensor
) -> Tensor:
    """Attention of one image or window in cache-sized blocks, without gradients.

    Args:
        q: (heads, h, w, d); at the top-left of the keys' grid, which may be larger.
        k, v: (heads, K_h, K_w, d), contiguous.
        table_h, table_w: (2 * K_h - 1, d) and (2 * K_w - 1, d), *flipped*: row t holds the offset K - 1 - t.
        scale: of q.k.
        buffer: from `score_buffer`.
    Returns:
        (heads, h * w, d).
    """
    heads, h, w, d = q.shape
    key_h, key_w = k.shape[1:3]
    keys, values = k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2)
    rows_per_block = max(min(buffer.numel() // (w * key_h * key_w), h), 1)
    heads_per_block = max(buffer.numel() // (rows_per_block * w * key_h * key_w), 1)
    tables = torch.cat([table_h, table_w]).T
    out = q.new_empty(heads, h * w, d)
    for a in range(0, heads, heads_per_block):
        group = slice(a, min(a + heads_per_block, heads))
        queries = q[group].flatten(1, 2)
        # Products with every offset; the bias of (i, k) is at k - i + K_h - 1, a view whose rows shift by one.
        products = queries.reshape(-1, d) @ tables
        count, width = len(queries), tables.shape[1]
        for row in range(0, h, rows_per_block):
            rows = min(rows_per_block, h - row)
            block = buffer[: count * rows * w * key_h * key_w]
            start = row * w * width
            stride = (h * w * width, w * width - 1, width)
            bias_h = products.as_strided((count, rows, w, key_h), (*stride, 1), start + key_h - 1 - row)
            stride = (h * w * width, w * width, width - 1)
            bias_w = products.as_strided((count, rows, w, key_w), (*stride, 1), start + 2 * key_h - 1 + key_w - 1)
            grid = block.view(count, rows, w, key_h, key_w)
            torch.add(bias_h[..., :, None], bias_w[..., None, :], out=grid)
            scores = block.view(count, rows * w, key_h * key_w)
            part = slice(row * w, (row + rows) * w)
            torch.baddbmm(scores, queries[:, part], keys[group], alpha=scale, out=scores)
            torch.softmax(scores, dim=-1, out=scores)
            torch.bmm(scores, values[group], out=out[group, part])
    return out


def score_buffer(h: int, w: int, heads: int, dtype: torch.dtype) -> Tensor:
    """The buffer for `blocked_attention` on an h x w grid: what the caches hold, at least one image row of queries."""
    row = w * h * w
    cached = min(_SCORE_BYTES_PER_THREAD * torch.get_num_threads(), _MOST_SCORE_BYTES) // dtype.itemsize
    return torch.empty(max(min(cached, heads * h * row), row), dtype=dtype)


class Attention(nn.Module):
    """Multi-head attention with relative positions; parameters only, `image_encoder.Block` runs it.

    Args:
        dim: width. num_heads: number of heads.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        input_size: tokens on a side of the grid or window, in training.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, input_size: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide the encoder's width {dim}, but is {num_heads}.")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size - 1, self.head_dim))

    def tables(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Relative positions (2 * h - 1, d), (2 * w - 1, d) for an h x w grid.

        A grid that is not square is the top-left part of its padded square, as photos are in training.
        """
        side = max(h, w)
        return resize_table(self.rel_pos_h, h, side), resize_table(self.rel_pos_w, w, side)

    def padding_row(self, x: Tensor) -> Tensor:
        """(3 * dim,) what the projection makes of a padding token. Windows are padded with zeros after the
        normalisation: a padding token's query, key and value are the projection's bias."""
        if type(self.qkv) is nn.Linear:
            return x.new_zeros(self.qkv.out_features) if self.qkv.bias is None else self.qkv.bias
        return self.qkv(x.new_zeros(1, x.shape[-1]))[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C), differentiable."""
        return self.proj(self.attend(self.qkv(x)))

    def attend(self, qkv: Tensor) -> Tensor:
        """(B, h, w, 3 * C) projections -> (B, h, w, C) before the output projection."""
        h, w = qkv.shape[1:3]
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(3, 0, 4, 1, 2, 5)
        out = augmented_attention(q, k, v, *self.tables(h, w))
        return out.permute(0, 2, 3, 1, 4).flatten(3)

    def can_fuse(self, x: Tensor, window: int) -> bool:
        """Whether `attend_fused` knows these tokens (B, h, w, C); x has the dtype that the projections will have.

        It has to be asked for with TEXTSAM_FUSED=1: so far the kernel has run in Triton's interpreter alone.
        """
        if os.environ.get("TEXTSAM_FUSED") != "1" or not is_gpu_inference(x):
            return False
        try:
            from textsam.modeling.fused_attention import is_supported
        except ImportError:  # Triton comes with PyTorch for CUDA, but not on every system
            return False
        return is_supported(x.dtype, self.head_dim, window, x.shape[2])

    def attend_fused(self, qkv: Tensor, window: int) -> Tensor:
        """(B, h, w, 3 * C) projections -> (B, h, w, C) before the output projection.

        Args:
            window: its side; windows lie side by side from the top-left. 0: attention over the whole grid.
        """
        from textsam.modeling.fused_attention import relative_attention

        h, w = (window, window) if window else qkv.shape[1:3]
        tables = torch.cat([table.flip(0) for table in self.tables(h, w)])
        padding = self.padding_row(qkv.new_zeros(1, qkv.shape[-1] // 3))
        return relative_attention(qkv, padding, tables, window, self.num_heads)
