"""The mask decoder without gradients: the same numbers in fewer operations and without one image per prompt.

A prompt has few tokens and an image many positions, so projecting the image for each prompt is what costs. Three
identities avoid most of it. (1) q.(W x) = (W^T q).x: the projection of keys moves to the few queries, and likewise the
projections of values and outputs to the few tokens' side. (2) A bias of the keys shifts all scores of a query alike,
which softmax does not see; a bias of values passes through, because weights sum to 1. (3) As long as prompts share
an image, so do its projections. Transposed convolutions whose stride is their size are products of matrices.

Prompts are taken a few at a time on a CPU, so that an image's worth of intermediate values stays in the cache, and many
at a time elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.layers import LayerNorm2d, is_hooked, linear
from textsam.modeling.native_layers import parts_of
from textsam.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer

# Elements of the image tokens of the prompts that are decoded together.
_CHUNK_ELEMENTS = 2 * 1024 * 1024
_DEVICE_CHUNK_ELEMENTS = 128 * 1024 * 1024
# Positions upscaled together.
_UPSCALED_POSITIONS = 1024


def decode_in_chunks(
    transformer: TwoWayTransformer,
    upscaling: nn.Sequential,
    mask_weights: Callable[[Tensor], Tensor],
    embeddings: Tensor,
    dense: Tensor,
    image_pe: Tensor,
    tokens: Tensor,
    image_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The transformer, and its image tokens upscaled to masks.

    Args:
        upscaling: `MaskDecoder.output_upscaling`.
        mask_weights: tokens (n, T, C) after the transformer -> weights of the masks (n, M, C/8).
        embeddings: (B, C, h, w). dense: (1 or N, C, h, w). image_pe: (1, C, h, w).
        tokens: (N, T, C). image_index: (N,) or None; see `MaskDecoder.forward`.
    Returns:
        tokens (N, T, C) and logits (N, M, 4h, 4w).
    """
    h, w = embeddings.shape[-2:]
    count, upscale = len(tokens), MaskUpscaler(upscaling)
    located_pe = image_pe.flatten(2).transpose(1, 2).contiguous()
    shared = None
    keys = embeddings[:0]
    if len(embeddings) == 1 and len(dense) == 1:
        keys = _as_tokens(embeddings + dense)
        shared = SharedImage(blocks_of(transformer)[0], keys, keys + located_pe)
    on_cpu = tokens.device.type == "cpu"
    step = max((_CHUNK_ELEMENTS if on_cpu else _DEVICE_CHUNK_ELEMENTS) // max(embeddings[0].numel(), 1), 1)
    out, logits = torch.empty_like(tokens), []
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        if shared is None:
            rows = torch.arange(count, device=tokens.device) if image_index is None else image_index
            images = embeddings if len(embeddings) == 1 else embeddings[rows[part]]
            keys = _as_tokens(images + (dense if len(dense) == 1 else dense[part]))
        out[part], image_tokens = run_transformer(transformer, keys, located_pe, tokens[part], shared)
        weights = mask_weights(out[part])
        if on_cpu:
            logits += [upscale(image_tokens[i], weights[i], (h, w))[None] for i in range(len(weights))]
        else:
            logits.append(upscale.together(image_tokens, weights, (h, w)))
    return out, torch.cat(logits)


def is_foldable(transformer: TwoWayTransformer, upscaling: nn.Sequential, num_tokens: int) -> bool:
    """Whether this way applies: plain layers with biases and no hooks, and few enough tokens for it to save work."""
    parts = parts_of(transformer)
    if any(map(is_hooked, [*parts, *parts_of(upscaling)])):
        return False
    attentions = [module for module in parts if isinstance(module, Attention)]
    plain = all(
        type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.bias is not None
        for attention in attentions
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    )
    kinds = (nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU)
    cross = transformer.final_attn_token_to_image
    few = num_tokens * cross.num_heads <= cross.q_proj.out_features
    return plain and few and tuple(type(layer) for layer in upscaling) == kinds


def _as_tokens(image_map: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C), contiguous."""
    return image_map.flatten(2).transpose(1, 2).contiguous()


class SharedImage:
    """What the first block needs of an image that its prompts share: keys and values for tokens, queries of its own."""

    def __init__(self, block: TwoWayAttentionBlock, keys: Tensor, located: Tensor) -> None:
        reading, writing = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        self.keys_read = _heads_first(reading.k_proj(located[0]), reading.num_heads)
        self.values_read = _heads_first(reading.v_proj(keys[0]), reading.num_heads)
        self.queries_write = _heads_first(writing.q_proj(located[0]), writing.num_heads)


def run_transformer(
    transformer: TwoWayTransformer, keys: Tensor, image_pe: Tensor, tokens: Tensor, shared: SharedImage | None
) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer.forward` on a chunk of prompts.

    Args:
        keys: (n, h * w, C), or (1, h * w, C) when `shared` is given.
        image_pe: (1, h * w, C). tokens: (n, T, C).
        shared: of the first block.
    Returns:
        tokens (n, T, C) and image tokens (n, h * w, C).
    """
    queries, located = tokens, keys + image_pe
    for block in blocks_of(transformer):
        queries = attend_to_self(block, queries, tokens)
        reading, writing = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        asked = queries + tokens
        read = read_shared(reading, asked, shared) if shared else _read(reading, asked, located, keys)
        queries = block.norm2(queries + read)
        queries = block.norm3(queries + block.mlp(queries))
        offered = queries + tokens
        if shared:
            weights = _write_weights_shared(writing, offered, shared)
        else:
            weights = _write_weights(writing, offered, located)
        keys = block.norm4(torch.baddbmm(keys, weights.transpose(1, 2), write_values(writing, queries)))
        located, shared = keys + image_pe, None
    read = _read(transformer.final_attn_token_to_image, queries + tokens, located, keys)
    return transformer.norm_final_attn(queries + read), keys


def blocks_of(transformer: TwoWayTransformer) -> list[TwoWayAttentionBlock]:
    return [block for block in transformer.layers if isinstance(block, TwoWayAttentionBlock)]


def attend_to_self(block: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor) -> Tensor:
    if block.skip_first_layer_pe:
        return block.norm1(block.self_attn(queries, queries, queries))
    located = queries + tokens
    return block.norm1(queries + block.self_attn(located, located, queries))


def _heads_first(x: Tensor, num_heads: int) -> Tensor:
    """(P, heads * d) -> (heads, P, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(0, 1).contiguous()


def _fold(few: Tensor, weight: Tensor) -> Tensor:
    """Rows of tokens (n, T, heads, d) through the transposed projection (heads * d, C) -> (n, heads * T, C)."""
    heads, d = few.shape[2:]
    return _by_head(few.permute(2, 0, 1, 3), weight.view(heads, d, -1)).transpose(0, 1).flatten(1, 2)


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """(heads, n, T, a) and (heads, a, b) -> (heads, n, T, b). Einsum does the same and takes four times as long to
    find out."""
    return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])


def _project(x: Tensor, layer: nn.Linear, heads: int) -> Tensor:
    """(n, T, C) -> (n, T, heads, d)."""
    return layer(x).unflatten(-1, (heads, -1))


def _read(attention: Attention, asked: Tensor, located: Tensor, values: Tensor) -> Tensor:
    """Tokens (n, T, C) attend to image positions (n, P, C)."""
    weights = torch.bmm(fold_questions(attention, asked), located.transpose(1, 2)).softmax(dim=-1)
    return unfold_answers(attention, torch.bmm(weights, values))


def fold_questions(attention: Attention, asked: Tensor) -> Tensor:
    """What tokens (n, T, C) ask of image positions: (n, heads * T, C), to be multiplied with the positions."""
    q = _project(asked, attention.q_proj, attention.num_heads)
    return _fold(q * q.shape[-1] ** -0.5, attention.k_proj.weight)


def unfold_answers(attention: Attention, mixed: Tensor) -> Tensor:
    """Mixtures of positions (n, heads * T, C) to what the tokens get of them (n, T, C)."""
    heads = attention.num_heads
    weight = attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    out = _by_head(mixed.unflatten(1, (heads, -1)).transpose(0, 1), weight).permute(1, 2, 0, 3).flatten(2)
    return attention.out_proj(out + attention.v_proj.bias)


def read_shared(attention: Attention, asked: Tensor, shared: SharedImage) -> Tensor:
    """Tokens (n, T, C) attend to the positions of one image."""
    heads = attention.num_heads
    q = _heads_first(attention.q_proj(asked.flatten(0, 1)), heads)
    weights = torch.bmm(q * q.shape[-1] ** -0.5, shared.keys_read.transpose(1, 2)).softmax(dim=-1)
    out = torch.bmm(weights, shared.values_read).transpose(0, 1).flatten(1)
    return attention.out_proj(out).view_as(asked)


def _write_weights(attention: Attention, offered: Tensor, located: Tensor) -> Tensor:
    """How much each position (n, P, C) takes from each token (n, T, C), per head: (n, heads * T, P)."""
    folded, offset = fold_offers(attention, offered)
    scores = torch.baddbmm(offset[..., None], folded, located.transpose(1, 2))
    return scores.unflatten(1, (attention.num_heads, -1)).softmax(dim=2).flatten(1, 2)


def fold_offers(attention: Attention, offered: Tensor) -> tuple[Tensor, Tensor]:
    """What tokens (n, T, C) offer to positions: (n, heads * T, C), and (n, heads * T) to be added to the products."""
    heads = attention.num_heads
    k = _project(offered, attention.k_proj, heads)
    k = k * k.shape[-1] ** -0.5
    offset = (k * attention.q_proj.bias.view(heads, -1)).sum(-1).transpose(1, 2).flatten(1)
    return _fold(k, attention.q_proj.weight), offset


def _write_weights_shared(attention: Attention, offered: Tensor, shared: SharedImage) -> Tensor:
    """As `_write_weights`, for the positions of one image."""
    n = len(offered)
    k = _heads_first(attention.k_proj(offered.flatten(0, 1)), attention.num_heads)
    scores = torch.bmm(k * k.shape[-1] ** -0.5, shared.queries_write.transpose(1, 2))
    return scores.unflatten(1, (n, -1)).softmax(dim=2).transpose(0, 1).flatten(1, 2)


def write_values(attention: Attention, tokens: Tensor) -> Tensor:
    """What each token gives to the positions, per head, output projection and its bias included: (n, heads * T, C)."""
    heads = attention.num_heads
    v = _project(tokens, attention.v_proj, heads)
    weight = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    return _by_head(v.permute(2, 0, 1, 3), weight).transpose(0, 1).flatten(1, 2) + attention.out_proj.bias / heads


class MaskUpscaler:
    """The decoder's upscaling, and its product with the masks' weights, as products of matrices on positions.

    Behind each position lie the four of its 2 x 2 patch, and behind each of these their four.

    Args:
        layers: `MaskDecoder.output_upscaling`.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        up1, self.norm, _, up2, _ = tuple[Any, ...](layers)
        self.up1, self.up2 = as_matrix(up1), as_matrix(up2)

    def __call__(self, image_tokens: Tensor, weights: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """(h * w, C) of one prompt and its masks' weights (M, C/8) -> logits (M, 4h, 4w)."""
        (h, w), count = grid_hw, len(weights)
        logits = image_tokens.new_empty(count, h * w * 16)
        for start in range(0, h * w, _UPSCALED_POSITIONS):
            stop = min(start + _UPSCALED_POSITIONS, h * w)
            x = linear(image_tokens[start:stop], *self.up1).view(4 * (stop - start), -1)
            x = F.gelu(F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps))
            x = linear(x, *self.up2, gelu=True).view(16 * (stop - start), -1)
            torch.mm(weights, x.T, out=logits[:, 16 * start : 16 * stop])
        return _unfold_patches(logits, grid_hw)

    def together(self, image_tokens: Tensor, weights: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """(n, h * w, C) of n prompts and their masks' weights (n, M, C/8) -> logits (n, M, 4h, 4w), in few large
        products."""
        n, positions, _ = image_tokens.shape
        x = F.linear(image_tokens, *self.up1).view(n, 4 * positions, -1)
        x = F.gelu(F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps))
        x = F.gelu(F.linear(x, *self.up2)).view(n, 16 * positions, -1)
        logits = torch.bmm(weights, x.transpose(1, 2))
        return _unfold_patches(logits.flatten(0, 1), grid_hw).unflatten(0, weights.shape[:2])


def _unfold_patches(logits: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(M, h * w * 16), the places of each patch behind its position -> (M, 4h, 4w)."""
    h, w = grid_hw
    return logits.view(-1, h, w, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * h, 4 * w)


def as_matrix(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """A transposed 2 x 2 convolution of stride 2 as a linear layer to the four places of each patch: weight, bias."""
    weight = conv.weight.permute(2, 3, 1, 0).reshape(-1, conv.weight.shape[0])
    return weight, (conv.bias if conv.bias is not None else weight.new_zeros(conv.weight.shape[1])).repeat(4)
