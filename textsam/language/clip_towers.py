"""open_clip's image towers, asked for the embedding of a *part* of the picture, and for dense features.

Three kinds of tower, each with two functions: `embed_inside(pixel_values, inside)`, where `inside` (N, h, w) marks the
cells that belong to the mask, and `embed_cells(pixel_values)`, one embedding for each cell.

- open_clip's own ViT: attention of the output token in the last layer is restricted to the cells inside the mask (and
  itself), as in appendix D.5 of Kirillov et al. 2023. Towers that average their tokens average those inside; towers
  with an attention pooler restrict the pooler, which is their last layer. With every cell inside, this is the tower.
- Convolutional towers (ModifiedResNet, timm's): mean of the last map inside the mask. Where the tower itself takes a
  mean (ConvNeXt) it is the tower again when every cell is inside; ModifiedResNet's attention pool is replaced by its
  value and output projection.
- timm's ViTs: the pooling after the last layer sees only the cells inside (mean or attention pool: exact, as above);
  where it would read a class token, which has seen everything, the mean of the cells inside stands in for that token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VitTower(nn.Module):
    """open_clip's own `VisionTransformer`."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        if visual.attn_pool is not None and visual.attn_pool_contrastive is not None:
            raise TypeError(
                f"open_clip's attention pooling {visual.attn_pool_type!r} is unfinished there: choose another CLIP"
            )
        self.visual = visual
        self.grid_hw: tuple[int, int] = tuple(visual.grid_size)
        self.reads_class_token = visual.attn_pool is None and visual.pool_type == "tok"

    def embed_inside(self, pixel_values: Tensor, inside: Tensor) -> Tensor:
        """(N, 3, S, S) normalised pictures, (N, h, w) bool -> (N, D), not normalised."""
        visual = self.visual
        x = self._before_last_block(pixel_values)
        # The class token always sees itself; so the softmax is defined whatever the mask.
        inside = F.pad(inside.flatten(1), (1, 0), value=True)  # (N, 1 + h * w)
        if self.reads_class_token:
            pooled, _ = visual._pool(self._last_class_token(x, inside))
            return self._project(pooled)
        x = visual.transformer.resblocks[-1](x)
        if visual.attn_pool is not None:
            return self._project(self._attention_pool(x, inside))
        if not visual.final_ln_after_pool:
            x = visual.ln_post(x)
        weights = inside[:, 1:].to(x.dtype)
        pooled = torch.einsum("nlc,nl->nc", x[:, 1:], weights / weights.sum(1, keepdim=True).clamp(min=1))
        return self._project(visual.ln_post(pooled) if visual.final_ln_after_pool else pooled)

    def embed_cells(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, D, h, w): every cell as if the output token attended to that cell alone.

        The value and output projections of the last attention, without its residual and MLP.
        Source: Zhou et al. 2022, *MaskCLIP*; Lan et al. 2024, *ClearCLIP* (why no residual and no MLP).
        """
        visual = self.visual
        x = self._before_last_block(pixel_values)
        if visual.attn_pool is not None:
            x = visual.transformer.resblocks[-1](x)[:, 1:]
            alone = x.flatten(0, 1)[:, None]  # each cell is its own sequence
            pooled = self._attention_pool(alone, alone.new_ones(alone.shape[:2], dtype=torch.bool))
            return self._as_map(self._project(pooled).unflatten(0, x.shape[:2]))
        block = visual.transformer.resblocks[-1]
        y = block.ln_1(x[:, 1:])
        value_weight, value_bias = _value_projection(block.attn)
        y = block.attn.out_proj(F.linear(y, value_weight, value_bias))
        return self._as_map(self._project(visual.ln_post(y)))

    def _before_last_block(self, pixel_values: Tensor) -> Tensor:
        x = self.visual._embeds(pixel_values)
        for block in self.visual.transformer.resblocks[:-1]:
            x = block(x)
        return x

    def _last_class_token(self, x: Tensor, inside: Tensor) -> Tensor:
        """The last block for the class token only: (N, 1, width)."""
        block = self.visual.transformer.resblocks[-1]
        if not isinstance(block.attn, nn.MultiheadAttention):  # open_clip's custom block has no query of its own
            mask = torch.zeros(len(x), 1, x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
            mask[:, 0, 0].masked_fill_(~inside, -math.inf)
            return block(x, attn_mask=mask)[:, :1]
        y = block.ln_1(x)
        mask = torch.zeros(inside.shape, dtype=x.dtype, device=x.device).masked_fill_(~inside, -math.inf)
        mask = mask[:, None].repeat_interleave(block.attn.num_heads, dim=0)  # (N * heads, 1, L)
        attended = block.attn(y[:, :1], y, y, need_weights=False, attn_mask=mask)[0]
        token = x[:, :1] + block.ls_1(attended)
        return token + block.ls_2(block.mlp(block.ln_2(token)))

    def _attention_pool(self, x: Tensor, inside: Tensor) -> Tensor:
        """The tower's attention pooler with the tokens outside hidden from it: (N, output width)."""
        pooler = self.visual.attn_pool
        keys = pooler.ln_k(x)
        queries = pooler.ln_q(pooler.query)[None].expand(len(x), -1, -1)
        x = pooler.attn(queries, keys, keys, key_padding_mask=~inside, need_weights=False)[0]
        x = self.visual.ln_post(x)
        return x[:, 0] if self.visual.pool_type == "tok" else x[:, 1:].mean(1)

    def _project(self, x: Tensor) -> Tensor:
        return x if self.visual.proj is None else x @ self.visual.proj

    def _as_map(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, self.grid_hw)


def _value_projection(attention: Any) -> tuple[Tensor, Tensor | None]:
    width = attention.out_proj.in_features
    bias = attention.in_proj_bias
    return attention.in_proj_weight[2 * width :], None if bias is None else bias[2 * width :]


class ResNetTower(nn.Module):
    """open_clip's `ModifiedResNet` (RN50 and its kin)."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.grid_hw = (visual.image_size // 32, visual.image_size // 32)

    def embed_inside(self, pixel_values: Tensor, inside: Tensor) -> Tensor:
        """(N, 3, S, S), (N, h, w) bool -> (N, D), the mean of `embed_cells` inside the mask."""
        return _mean_inside(self.embed_cells(pixel_values), inside)

    def embed_cells(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, D, h, w), value and output projection of the attention pool (MaskCLIP)."""
        visual = self.visual
        x = visual.stem(pixel_values)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        pool = visual.attnpool
        tokens = x.flatten(2).transpose(1, 2) + pool.positional_embedding[1:].to(x.dtype)
        return pool.c_proj(pool.v_proj(tokens)).transpose(1, 2).unflatten(2, (x.shape[2], x.shape[3]))


class TimmTower(nn.Module):
    """open_clip's `TimmModel`: a convolutional network or a ViT of timm with a head."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        height, width = visual.image_size
        with torch.no_grad():
            was_training = visual.training
            features = self._features(next(visual.parameters()).new_zeros(1, 3, height, width), visual.eval().trunk)
            visual.train(was_training)
        self.has_map = features.ndim == 4
        self.prefix = 0 if self.has_map else getattr(visual.trunk, "num_prefix_tokens", 0)
        self.reads_class_token = not self.has_map and getattr(visual.trunk, "global_pool", "") == "token"
        if self.has_map:
            self.grid_hw = (features.shape[2], features.shape[3])
        else:
            rows = round(math.sqrt((features.shape[1] - self.prefix) * height / width))
            self.grid_hw = (rows, (features.shape[1] - self.prefix) // rows)

    def embed_inside(self, pixel_values: Tensor, inside: Tensor) -> Tensor:
        """(N, 3, S, S), (N, h, w) bool -> (N, D)."""
        features = self._features(pixel_values, self.visual.trunk)
        if self.has_map:
            # A constant map: every pooling of it, plain mean or attention, is that of the mean inside the mask.
            mean = _mean_inside(features, inside)
            return self._head(mean[:, :, None, None].expand_as(features))
        prefix, cells = features[:, : self.prefix], features[:, self.prefix :]
        embeddings = []
        for index, kept in enumerate(inside.flatten(1)):
            own = cells[index : index + 1, kept]
            embeddings.append(self._head(self._sequence(prefix[index : index + 1], own)))
        return torch.cat(embeddings)

    def embed_cells(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, D, h, w): the head on every cell of the last map alone.

        Raises:
            ValueError: the tower's head has an attention pool of fixed size.
        """
        if hasattr(self.visual.head, "pool"):
            raise ValueError(
                "this CLIP's image tower ends in an attention pool of fixed size and has no dense features"
            )
        features = self._features(pixel_values, self.visual.trunk)
        if self.has_map:
            cells = features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        else:
            cells = features[:, self.prefix :]
            prefix = features[:, : self.prefix, None].expand(-1, -1, cells.shape[1], -1).transpose(1, 2)
            cells = self._sequence(prefix.flatten(0, 1), cells.flatten(0, 1)[:, None])
        return self._head(cells).unflatten(0, (len(features), *self.grid_hw)).permute(0, 3, 1, 2)

    def _sequence(self, prefix: Tensor, cells: Tensor) -> Tensor:
        if self.reads_class_token:
            prefix = cells.mean(1, keepdim=True).expand_as(prefix)
        return torch.cat([prefix, cells], dim=1)

    def _features(self, pixel_values: Tensor, trunk: Any) -> Tensor:
        """Tokens (N, L, C), or a map (N, C, h, w) whatever the trunk's own order."""
        features = trunk.forward_features(pixel_values)
        return features.permute(0, 3, 1, 2) if self._channels_last(trunk) else features

    def _head(self, features: Tensor) -> Tensor:
        trunk = self.visual.trunk
        if self._channels_last(trunk):
            features = features.permute(0, 2, 3, 1)
        return self.visual.head(trunk.forward_head(features))

    @staticmethod
    def _channels_last(trunk: Any) -> bool:
        return getattr(trunk, "output_fmt", "NCHW") == "NHWC"


def _mean_inside(features: Tensor, inside: Tensor) -> Tensor:
    """(N, C, h, w), (N, h, w) bool -> (N, C)."""
    weights = inside.to(features.dtype)
    return torch.einsum("nchw,nhw->nc", features, weights / weights.sum(dim=(1, 2), keepdim=True).clamp(min=1))


Tower = VitTower | ResNetTower | TimmTower


def wrap_tower(visual: nn.Module) -> Tower:
    """The adapter for one of open_clip's image towers.

    Raises:
        TypeError: a kind of tower that is not known here.
    """
    kinds: dict[str, type[VitTower] | type[ResNetTower] | type[TimmTower]] = {
        "VisionTransformer": VitTower,
        "ModifiedResNet": ResNetTower,
        "TimmModel": TimmTower,
    }
    kind = type(visual).__name__
    if kind not in kinds:
        raise TypeError(f"expected an image tower of open_clip ({', '.join(kinds)}), not {kind}")
    return kinds[kind](visual)
