"""The image encoder of SAM: a plain vision transformer with windows, four global blocks and a neck.

Source: Kirillov et al. 2023, *Segment Anything*, appendix A; Li et al. 2022, *Exploring Plain Vision Transformer
Backbones for Object Detection*. Parameter names are those of the released SAM code.

Windows lie side by side from the top-left corner. A strip of `window_size` rows therefore depends on itself alone in a
windowed block; without gradients, on a CPU, a block goes strip by strip, so that what it computes stays in the cache
and peak memory does not grow with the image. Only real tokens are projected: padding tokens of a window are constants.
On a GPU one kernel does all of a block's attention, so that the rest is a chain of plain layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.attention import Attention, blocked_attention, score_buffer
from textsam.modeling.layers import LayerNorm2d, MLPBlock, drop_path, is_cpu_inference, linear_layer
from textsam.native.kernels import Kernels
from textsam.native.library import kernels


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: (B, in_chans, H, W) -> (B, H / patch, W / patch, embed_dim)."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Block(nn.Module):
    """One transformer block, windowed when `window_size` > 0, global otherwise.

    Args:
        dim: width. num_heads, mlp_ratio, qkv_bias: as usual.
        window_size: tokens on a window's side; 0: attention over the whole grid.
        input_size: tokens on a side of the whole grid, in training.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, window_size: int, input_size: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, window_size or input_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio))
        self.window_size = window_size
        self.drop_path_rate = 0.0  # training may raise it

    def forward(self, x: Tensor, in_place: bool = False) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C).

        Args:
            in_place: overwrite x, in blocks that fit the cache; for inference on a CPU.
        """
        if in_place:
            for image in x:
                self._run_in_place(image)
            return x
        y = self.norm1(x)
        if self.attn.can_fuse(y, self.window_size):
            y = self.attn.proj(self.attn.attend_fused(self.attn.qkv(y), self.window_size))
        else:
            y = self._windowed(y) if self.window_size else self.attn(y)
        if self.training and self.drop_path_rate:
            x = x + drop_path(y, self.drop_path_rate)
            return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate)
        x = x + y
        return x + self.mlp(self.norm2(x))

    def _windowed(self, x: Tensor) -> Tensor:
        """Attention inside windows: (B, h, w, C) normalised tokens -> (B, h, w, C)."""
        size = self.window_size
        b, h, w, c = x.shape
        down, across = math.ceil(h / size), math.ceil(w / size)
        qkv = self.attn.qkv(x)
        if (h % size) or (w % size):
            row = self.attn.padding_row(x).to(qkv.dtype)
            qkv = torch.cat([qkv, row.expand(b, h, across * size - w, -1)], dim=2)
            qkv = torch.cat([qkv, row.expand(b, down * size - h, across * size, -1)], dim=1)
        windows = qkv.view(b, down, size, across, size, 3 * c).transpose(2, 3).flatten(0, 2)
        out = self.attn.attend(windows).view(b, down, across, size, size, c)
        out = out.transpose(2, 3).reshape(b, down * size, across * size, c)
        return self.attn.proj(out[:, :h, :w])

    def _run_in_place(self, x: Tensor) -> None:
        """The whole block on one image: (h, w, C) in the dtype of the residual, overwritten."""
        compiled = kernels()
        if compiled is not None and compiled.can_attend(self.norm1.weight.dtype) and self.attn.head_dim % 2 == 0:
            strips = self._attend_natively(x, compiled)
        else:
            strips = self._attend_windows(x) if self.window_size else self._attend_globally(x)
        for strip, attended in strips:
            strip += linear_layer(attended, self.attn.proj)
            hidden = linear_layer(self._normalise(strip, self.norm2), self.mlp.lin1, self.mlp.act)
            strip += linear_layer(hidden, self.mlp.lin2)

    def _normalise(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """LayerNorm in the residual's dtype, result in that of the weights."""
        return F.layer_norm(x, norm.normalized_shape, _as(norm.weight, x), _as(norm.bias, x), norm.eps).to(
            norm.weight.dtype
        )

    def _attend_natively(self, x: Tensor, compiled: Kernels) -> Iterator[tuple[Tensor, Tensor]]:
        """As `_attend_windows` and `_attend_globally`."""
        size, attn = self.window_size, self.attn
        (h, w, c), dtype = x.shape, self.norm1.weight.dtype
        padding = attn.padding_row(x.new_zeros(1, c, dtype=dtype))
        tables = torch.cat([table.flip(0) for table in attn.tables(size or h, size or w)])
        if size:
            for strip in x.split(size):
                qkv = linear_layer(self._normalise(strip, self.norm1), attn.qkv)
                yield strip, compiled.attend(qkv, padding, tables, size, attn.num_heads)
            return
        qkv = x.new_empty(h, w, 3 * c, dtype=dtype)
        rows = max(1024 // w, 1)
        for strip, part in zip(x.split(rows), qkv.split(rows), strict=True):
            part.copy_(linear_layer(self._normalise(strip, self.norm1), attn.qkv))
        attended = compiled.attend(qkv, padding, tables, 0, attn.num_heads)
        del qkv
        yield from zip(x.split(rows), attended.split(rows), strict=True)

    def _attend_windows(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Strips of windows of x (h, w, C), each with what its tokens gathered, (rows, w, C)."""
        size, attn = self.window_size, self.attn
        heads, d = attn.num_heads, attn.head_dim
        dtype = self.norm1.weight.dtype
        table_h, table_w = (table.flip(0) for table in attn.tables(size, size))
        padding = attn.padding_row(x.new_zeros(1, x.shape[-1], dtype=dtype)).view(3, 1, heads, 1, 1, d)
        across, narrow = divmod(x.shape[1], size)  # whole windows, and the columns of the last one
        buffer = score_buffer(size, size, max(across, 1) * heads, dtype)
        for strip in x.split(size):
            rows = len(strip)
            qkv = linear_layer(self._normalise(strip, self.norm1), attn.qkv).unflatten(-1, (3, heads, d))
            gathered = torch.empty(rows, x.shape[1], heads, d, dtype=dtype)
            for left, count, columns in ((0, across, size), (across * size, 1, narrow)):
                if not count * columns:
                    continue
                span = slice(left, left + count * columns)
                part = qkv[:, span].unflatten(1, (count, columns)).permute(3, 1, 4, 0, 2, 5)
                windows = torch.empty(3, count, heads, size, size, d, dtype=dtype)
                if rows < size or columns < size:
                    windows.copy_(padding.expand_as(windows))
                windows[..., :rows, :columns, :].copy_(part)
                q, k, v = windows.flatten(1, 2)
                out = blocked_attention(q[:, :rows, :columns], k, v, table_h, table_w, d**-0.5, buffer)
                out = out.view(count, heads, rows, columns, d).permute(2, 0, 3, 1, 4)
                gathered[:, span].unflatten(1, (count, columns)).copy_(out)
            yield strip, gathered.flatten(2)

    def _attend_globally(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Strips of x (h, w, C), each with what its tokens gathered over the whole grid, (rows, w, C)."""
        h, w = x.shape[:2]
        attn = self.attn
        heads, d = attn.num_heads, attn.head_dim
        dtype = self.norm1.weight.dtype
        rows = max(1024 // w, 1)
        qkv = x.new_empty(3, heads, h, w, d, dtype=dtype)
        for strip, part in zip(x.split(rows), qkv.split(rows, dim=2), strict=True):
            projected = linear_layer(self._normalise(strip, self.norm1), attn.qkv).unflatten(-1, (3, heads, d))
            part.copy_(projected.permute(2, 3, 0, 1, 4))
        table_h, table_w = (table.flip(0) for table in attn.tables(h, w))
        buffer = score_buffer(h, w, heads, dtype)
        q, k, v = qkv.unbind(0)
        out = blocked_attention(q, k, v, table_h, table_w, d**-0.5, buffer)
        del qkv, q, k, v, buffer
        out = out.view(heads, h, w, d).permute(1, 2, 0, 3)
        for strip, part in zip(x.split(rows), out.split(rows), strict=True):
            yield strip, part.flatten(2)


def _as(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


class ImageEncoderViT(nn.Module):
    """(B, in_chans, H, W) normalised pixels -> (B, out_chans, H / patch, W / patch).

    Args:
        img_size: input side in training, px. patch_size: px.
        in_chans: channels of the input.
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias: of the transformer.
        out_chans: channels of the output.
        window_size: tokens on a window's side; 0: every block is global.
        global_attn_indexes: blocks whose attention spans the whole grid.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        qkv_bias: bool = True,
        window_size: int = 14,
        global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11),
    ) -> None:
        super().__init__()
        if img_size <= 0 or img_size % patch_size:
            raise ValueError(f"img_size must be a positive multiple of patch_size {patch_size}, but is {img_size}.")
        self.img_size = img_size
        self.patch_size = patch_size
        grid = img_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, 0 if i in global_attn_indexes else window_size, grid)
            for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def position_embedding(self, h: int, w: int) -> Tensor:
        """(1, h, w, embed_dim): the learned embedding, interpolated when the grid is not the one of training.

        SAM pads photos at the bottom and right, so a grid that is not square is the top-left part of its padded
        square: positions keep their meaning when a photo is encoded without its padding.
        """
        side = max(h, w)
        embedding: Tensor = self.pos_embed
        if side != embedding.shape[1]:
            channels_first = embedding.permute(0, 3, 1, 2).float()
            resized = F.interpolate(channels_first, (side, side), mode="bicubic", align_corners=False)
            embedding = resized.permute(0, 2, 3, 1).to(embedding.dtype)
        return embedding[:, :h, :w]

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (B, in_chans, H, W) float, H and W multiples of the patch size; need not be `img_size`, nor equal.
        Returns:
            (B, out_chans, H / patch_size, W / patch_size).
        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        if x.ndim != 4 or x.shape[-2] % self.patch_size or x.shape[-1] % self.patch_size or 0 in x.shape[-2:]:
            raise ValueError(
                f"Expected (B, C, H, W) with H and W multiples of {self.patch_size}, got {tuple(x.shape)}: "
                "pad at the bottom and right."
            )
        tokens = self.patch_embed(x)
        in_place = is_cpu_inference(x)
        if in_place and tokens.dtype in (torch.bfloat16, torch.float16):
            tokens = tokens.float()  # the residual: short of bits it would lose what the blocks add
        # Row by row, whatever order the convolution left: every norm and every residual would stumble over another one.
        tokens = (tokens + self.position_embedding(*tokens.shape[1:3])).contiguous()
        for block in self.blocks:
            tokens = block(tokens, in_place=in_place)
        return self.neck(tokens.to(self.pos_embed.dtype).permute(0, 3, 1, 2))
