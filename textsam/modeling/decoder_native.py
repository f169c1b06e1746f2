"""The mask decoder without gradients by the compiled kernels: what `decoder_inference` computes, in one pass over the
image per layer.

The few tokens stay with PyTorch. Image tokens are float32 whatever the weights are, channels first, as the encoder
gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textsam.modeling.decoder_inference import (
    SharedImage,
    as_matrix,
    attend_to_self,
    blocks_of,
    fold_offers,
    fold_questions,
    read_shared,
    unfold_answers,
    write_values,
)
from textsam.modeling.transformer import Attention, TwoWayTransformer
from textsam.native.kernels import Kernels

# Elements of the image tokens of the prompts that are decoded together.
_CHUNK_ELEMENTS = 8 * 1024 * 1024
# Prompts from which on projecting their image once, for the first reading, costs less than folding into each prompt.
_WORTH_SHARING = 4


def decode_natively(
    kernels: Kernels,
    transformer: TwoWayTransformer,
    upscaling: nn.Sequential,
    mask_weights: Callable[[Tensor], Tensor],
    embeddings: Tensor,
    dense: Tensor,
    image_pe: Tensor,
    tokens: Tensor,
    image_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `decoder_inference.decode_in_chunks`."""
    count, grid = len(tokens), (embeddings.shape[-2], embeddings.shape[-1])
    pe = image_pe[0].flatten(1).float().contiguous()
    up1, norm, _, up2, _ = tuple[Any, ...](upscaling)
    scale = (norm.weight.float(), norm.bias.float(), norm.eps)
    stages = (_floats(up1), scale, _floats(up2))
    rows = torch.arange(count) if image_index is None else image_index
    one_image = len(embeddings) == 1
    shared = None
    if one_image and len(dense) == 1 and count >= _WORTH_SHARING:
        keys = (embeddings + dense)[0].flatten(1).T
        shared = SharedImage(blocks_of(transformer)[0], keys[None], keys[None] + image_pe[0].flatten(1).T)
    step = max(_CHUNK_ELEMENTS // max(embeddings[0].numel(), 1), 1)
    buffer = pe.new_empty(min(step, count), *pe.shape)
    out, logits = torch.empty_like(tokens), tokens.new_empty(count, 0, 0, 0)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        images = embeddings if one_image else embeddings[rows[part]]
        keys = (images + (dense if len(dense) == 1 else dense[part])).float().flatten(2).contiguous()
        room = buffer[: part.stop - part.start]
        out[part], keys = _run_transformer(kernels, transformer, keys, pe, tokens[part], shared, room)
        weights = mask_weights(out[part]).float().contiguous()
        drawn = kernels.upscale(keys, grid, *stages, weights)
        if not start:
            logits = tokens.new_empty(count, *drawn.shape[1:])
        logits[part] = drawn
    return out, logits


def _floats(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    weight, bias = as_matrix(conv)
    return weight.float().contiguous(), bias[: conv.out_channels].float().contiguous()


def _run_transformer(
    kernels: Kernels,
    transformer: TwoWayTransformer,
    keys: Tensor,
    pe: Tensor,
    tokens: Tensor,
    shared: SharedImage | None,
    buffer: Tensor,
) -> tuple[Tensor, Tensor]:
    """Image tokens (1 or n, C, P), tokens (n, T, C) and a buffer (n, C, P) -> tokens and image tokens (n, C, P)."""
    queries, write, norm = tokens, None, transformer.norm_final_attn

    def read(attention: Attention) -> Tensor:
        nonlocal keys
        asked = fold_questions(attention, queries + tokens).float().contiguous()
        keys, mixed = kernels.exchange(keys, pe, write, norm, asked, attention.num_heads, buffer)
        return unfold_answers(attention, mixed.to(tokens.dtype))

    for block in blocks_of(transformer):
        queries = attend_to_self(block, queries, tokens)
        reading, writing = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        answers = read_shared(reading, queries + tokens, shared) if shared else read(reading)
        queries, shared = block.norm2(queries + answers), None
        queries = block.norm3(queries + block.mlp(queries))
        folded, offset = fold_offers(writing, queries + tokens)
        values = write_values(writing, queries).transpose(1, 2)
        write = (folded.float().contiguous(), offset.float().contiguous(), values.float().contiguous())
        norm = block.norm4
    answers = read(transformer.final_attn_token_to_image)
    return transformer.norm_final_attn(queries + answers), keys
