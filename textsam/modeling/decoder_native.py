"""The mask decoder without gradients by the compiled kernels: what `decoder_inference` computes, in one pass over the
image per layer.

The few tokens stay with PyTorch. Image tokens are float32 whatever the weights are, channels first, as the encoder
gives them.
"""

from __future__ import annotations

import threading
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
from textsam.modeling.native_layers import packed
from textsam.modeling.transformer import Attention, TwoWayTransformer
from textsam.native.kernels import Kernels

# Elements of the image tokens of the prompts that are decoded together.
_CHUNK_ELEMENTS = 8 * 1024 * 1024
# Prompts from which on projecting their image once, for the first reading, costs less than folding into each prompt.
_WORTH_SHARING = 4
# Of each thread, by name.
_rooms = threading.local()


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
    upscale = packed(upscaling, PackedStages, tokens, widened=False) or PackedStages(kernels, upscaling)
    rows = torch.arange(count) if image_index is None else image_index
    one_image = len(embeddings) == 1
    shared = None
    if one_image and len(dense) == 1 and count >= _WORTH_SHARING:
        keys = (embeddings + dense)[0].flatten(1).T
        shared = SharedImage(blocks_of(transformer)[0], keys[None], keys[None] + image_pe[0].flatten(1).T)
    few = shared is None and count < _WORTH_SHARING and tokens.shape[2] % 16 == 0
    whole = packed(transformer, PackedTransformer, tokens, widened=False) if few else None
    step = max(_CHUNK_ELEMENTS // max(embeddings[0].numel(), 1), 1)
    pe = image_pe[0].flatten(1)
    pe = pe.contiguous() if pe.dtype == torch.float32 else _room("pe", pe).copy_(pe)
    buffer = pe.new_empty(0 if whole else min(step, count), *pe.shape)
    out, logits = torch.empty_like(tokens), tokens.new_empty(count, 0, 0, 0)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        images = embeddings if one_image else embeddings[rows[part]]
        given = dense if len(dense) == 1 else dense[part]
        if whole is None:
            keys = (images + given).float().flatten(2).contiguous()
            room = buffer[: part.stop - part.start]
            out[part], keys = _run_transformer(kernels, transformer, keys, pe, tokens[part], shared, room)
        else:
            keys = torch.add(images, given, out=_room("keys", images, given)).flatten(2)
            out[part], keys = whole(tokens[part].float(), keys, pe)
        weights = mask_weights(out[part]).float().contiguous()
        drawn = upscale(keys, grid, weights)
        if not start:
            logits = tokens.new_empty(count, *drawn.shape[1:])
        logits[part] = drawn
    return out, logits


def _room(name: str, *like: Tensor) -> Tensor:
    """float32 of the shape that the tensors have together, in memory that stays for the thread's next call: fresh
    memory costs a single prompt more than what is done with it."""
    shape = torch.broadcast_shapes(*(each.shape for each in like))
    size, kept = shape.numel(), vars(_rooms)
    if name not in kept or len(kept[name]) < size:
        with torch.inference_mode(False):  # or it could not be written to outside of that mode
            kept[name] = torch.empty(size)
    return kept[name][:size].view(shape)


class PackedTransformer:
    """A `TwoWayTransformer`, its tokens included."""

    def __init__(self, compiled: Kernels, transformer: Any) -> None:
        self.kernels, self.kept = compiled, list[Tensor]()
        blocks, last = blocks_of(transformer), transformer.final_attn_token_to_image
        for block in blocks:
            attention: Any = block.self_attn
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
                self._linear(layer)
            self._norm(block.norm1)
            self._reading(block.cross_attn_token_to_image)
            self._norm(block.norm2)
            self._linear(block.mlp.lin1)
            self._linear(block.mlp.lin2)
            self._norm(block.norm3)
            self._writing(block.cross_attn_image_to_token)
            self._norm(block.norm4)
        self._reading(last)
        self._norm(transformer.norm_final_attn)
        inner = last.q_proj.out_features
        wide = blocks[0].mlp.lin1.out_features
        self.sizes = (last.num_heads, inner // last.num_heads, wide, len(blocks))
        self.first_without, self.epsilon = blocks[0].skip_first_layer_pe, transformer.norm_final_attn.eps

    def _linear(self, layer: nn.Linear) -> None:
        self.kept += self.kernels.panels(layer.weight, layer.bias)

    def _norm(self, norm: nn.LayerNorm) -> None:
        self.kept += [norm.weight.detach().float(), norm.bias.detach().float()]

    def _per_head(self, weights: Tensor, biases: Tensor) -> None:
        """(heads, out, in) and (heads, out)."""
        panels = [self.kernels.panels(*each) for each in zip(weights, biases, strict=True)]
        self.kept += [torch.stack(each) for each in zip(*panels, strict=True)]

    def _fold(self, layer: nn.Linear, heads: int) -> None:
        """The positions' projection turned round: from the width of a head to C."""
        turned = layer.weight.unflatten(0, (heads, -1)).transpose(1, 2)
        self._per_head(turned, torch.zeros(turned.shape[:2]))

    def _reading(self, attention: Any) -> None:
        heads = attention.num_heads
        self._linear(attention.q_proj)
        self._fold(attention.k_proj, heads)
        self._per_head(*(each.unflatten(0, (heads, -1)) for each in (attention.v_proj.weight, attention.v_proj.bias)))
        self._linear(attention.out_proj)

    def _writing(self, attention: Any) -> None:
        heads, out = attention.num_heads, attention.out_proj
        self._linear(attention.k_proj)
        self._fold(attention.q_proj, heads)
        self.kept.append(attention.q_proj.bias.detach().float())
        self._linear(attention.v_proj)
        self._per_head(out.weight.unflatten(1, (heads, -1)).transpose(0, 1), (out.bias / heads).expand(heads, -1))

    def __call__(self, tokens: Tensor, keys: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, T, C), image tokens (1 or n, C, P), which may be overwritten, and their position encoding (C, P)
        -> both after the exchange, (n, T, C) and (n, C, P)."""
        return self.kernels.transform(
            tokens.contiguous(), keys, pe, self.kept, self.sizes, self.first_without, self.epsilon
        )


class PackedStages:
    """`MaskDecoder.output_upscaling`, and the masks that are drawn with it."""

    def __init__(self, compiled: Kernels, layers: Any) -> None:
        self.kernels = compiled
        up1, norm, _, up2, _ = layers
        scale = (norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)
        self.stages = (_floats(up1), scale, _floats(up2))

    def __call__(self, keys: Tensor, grid_hw: tuple[int, int], weights: Tensor) -> Tensor:
        """Image tokens (n, C, h * w) and the masks' weights (n, M, C/8) -> logits (n, M, 4h, 4w)."""
        return self.kernels.upscale(keys, grid_hw, *self.stages, weights)


def _floats(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    weight, bias = (each.detach().float() for each in as_matrix(conv))
    return weight.contiguous(), bias[: conv.out_channels].contiguous()


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
