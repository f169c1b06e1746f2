"""The two-way transformer: prompt tokens and image positions attend to each other.

Source: Kirillov et al. 2023, *Segment Anything*, appendix A (mask decoder), figure 14.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.layers import MLPBlock


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the embedding.

    Batch axes of 1 are shared: an image's keys and values are projected once for all of its prompts.
    """

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        internal_dim = embedding_dim // downsample_rate
        if internal_dim % num_heads:
            raise ValueError(f"num_heads must divide the inner width {internal_dim}, but is {num_heads}.")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embedding_dim, internal_dim)
        self.k_proj = nn.Linear(embedding_dim, internal_dim)
        self.v_proj = nn.Linear(embedding_dim, internal_dim)
        self.out_proj = nn.Linear(internal_dim, embedding_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, image_index: Tensor | None = None) -> Tensor:
        """(N or B, Tq, C), (N or B, Tk, C), (N or B, Tk, C) -> (N, Tq, C); `image_index` (N,) spreads B over N."""
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        count = (q if q.shape[0] != 1 else k).shape[0] if image_index is None else image_index.shape[0]
        q, k, v = (spread(x, count, image_index).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        return self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))


def spread(x: Tensor, count: int, image_index: Tensor | None) -> Tensor:
    """Give per-image rows to each prompt: a view when there is one image, a gather when there are several."""
    if x.shape[0] == count:  # not len(), which torch.export takes for a constant
        return x
    return x.expand(count, *x.shape[1:]) if image_index is None or x.shape[0] == 1 else x[image_index]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention. The fused kernel's backward is several times slower than plain products on a CPU."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class TwoWayAttentionBlock(nn.Module):
    """Tokens to themselves, tokens to image, MLP on tokens, image to tokens; residual and LayerNorm after each."""

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int,
        attention_downsample_rate: int,
        skip_first_layer_pe: bool,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, attention_downsample_rate)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, attention_downsample_rate)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, image_index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.skip_first_layer_pe:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)

        located = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, located, keys, image_index))
        queries = self.norm3(queries + self.mlp(queries))
        update = self.cross_attn_image_to_token(located, queries + query_pe, queries, image_index)
        return queries, self.norm4(spread(keys, queries.shape[0], image_index) + update)


class TwoWayTransformer(nn.Module):
    """Decoder transformer of `depth` two-way blocks and a last attention from tokens to image."""

    def __init__(
        self, depth: int, embedding_dim: int, num_heads: int, mlp_dim: int, attention_downsample_rate: int = 2
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim, attention_downsample_rate, i == 0)
            for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, attention_downsample_rate)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(
        self, image_tokens: Tensor, image_pe: Tensor, tokens: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            image_tokens: (B, h * w, C) shared by the prompts of an image, or (N, h * w, C).
            image_pe: (1, h * w, C). tokens: (N, T, C).
            image_index: (N,) the image of each prompt; None when B is 1 or N.
        Returns:
            tokens (N, T, C) and image_tokens (N, h * w, C) after the exchange.
        """
        queries, keys = tokens, image_tokens
        for layer in self.layers:
            index = None if keys.shape[0] == tokens.shape[0] else image_index
            queries, keys = layer(queries, keys, tokens, image_pe, index)
        attended = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + attended), keys
