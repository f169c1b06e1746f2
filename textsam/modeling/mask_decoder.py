"""Image and prompt embeddings to masks.

Source: Kirillov et al. 2023, *Segment Anything*, section 3 and appendix A; the skips are those of Ravi et al. 2024,
*SAM 2*; the presence token is the idea of Carion et al. 2025, *SAM 3*.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from textsam.modeling.decoder_inference import decode_in_chunks, is_foldable
from textsam.modeling.decoder_native import PackedTransformer, decode_natively
from textsam.modeling.layers import MLP, LayerNorm2d, is_cpu_inference, is_hooked
from textsam.modeling.mask_refiner import MaskQuality, MaskRefiner
from textsam.modeling.native_layers import PackedUpscaling, packed
from textsam.modeling.prompt_encoder import GeometryMaps
from textsam.modeling.structures import ImageEmbeddings, MaskPredictions, PromptEmbeddings
from textsam.modeling.transformer import TwoWayTransformer, spread
from textsam.native.library import kernels


class DrawingHead(nn.Module):
    """A mask to start from: the drawn prompts, weighted by the mask token.

    At the start of training a box's mask is the filled box, a text's its similarity map and a former mask itself, so
    that from the first step on the rest of the decoder learns what is different.
    """

    # Foreground clicks, background clicks, box, similarity, former mask, constant; in logits.
    initial = (3.0, -3.0, 4.0, 3.0, 3.0, -2.0)

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.mlp = MLP(embed_dim, embed_dim // 2, len(self.initial), 2)
        self.base = nn.Parameter(torch.tensor(self.initial))

    def forward(self, mask_tokens: Tensor, maps: Tensor) -> Tensor:
        """(N, M, C) tokens and (N, 5, 4h, 4w) maps -> (N, M, 4h, 4w)."""
        weights = self.base + self.mlp(mask_tokens)
        return (weights[..., :-1] @ maps.flatten(2) + weights[..., -1:]).unflatten(-1, maps.shape[-2:])


class MaskDecoder(nn.Module):
    """Predicts masks, their quality and, when there is text, whether the named thing is there at all.

    Args:
        transformer_dim: C.
        transformer: tokens and image in, tokens and image out.
        num_multimask_outputs: masks that share out an ambiguous prompt (whole, part, subpart).
        iou_head_depth, iou_head_hidden_dim: of the MLP that predicts each mask's IoU.
        dense_geometry: masks start from the prompts as they are drawn (`DrawingHead`); False in SAM.
        refinement: a look around at stride 4 first (`MaskRefiner`), for which dense_geometry must be on; False in SAM.
    """

    def __init__(
        self,
        *,
        transformer_dim: int,
        transformer: TwoWayTransformer,
        num_multimask_outputs: int = 3,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
        dense_geometry: bool = False,
        refinement: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.num_multimask_outputs = num_multimask_outputs
        self.num_mask_tokens = num_multimask_outputs + 1
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, 2, 2),
            LayerNorm2d(transformer_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(transformer_dim // 4, transformer_dim // 8, 2, 2),
            nn.GELU(),
        )
        self.whole_vectors = transformer_dim // 8 % 16 == 0  # for the compiled kernels
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(transformer_dim, transformer_dim, transformer_dim // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(transformer_dim, iou_head_hidden_dim, self.num_mask_tokens, iou_head_depth)
        self.presence_token = nn.Embedding(1, transformer_dim)
        self.presence_head = MLP(transformer_dim, iou_head_hidden_dim, 1, 3)
        self.drawing_head = DrawingHead(transformer_dim) if dense_geometry else None
        self.refiner = MaskRefiner(transformer_dim // 8, GeometryMaps.channels) if refinement else None
        self.quality = MaskQuality() if refinement else None

    def forward(
        self,
        image: ImageEmbeddings,
        image_pe: Tensor,
        prompts: PromptEmbeddings,
        multimask_output: bool | None,
        image_index: Tensor | None = None,
    ) -> MaskPredictions:
        """
        Args:
            image: B images.
            image_pe: (1, C, h, w) position encoding of the grid.
            prompts: N prompts.
            multimask_output: True: masks 1..3 of an ambiguous prompt; False: mask 0 alone; None: all.
            image_index: (N,) int64, the image of each prompt; None when B is 1 or when B is N, in order.
        Returns:
            `MaskPredictions` with M = 3, 1 or 4. Without text the tokens are exactly SAM's.
        """
        kept = {True: slice(1, None), False: slice(0, 1), None: slice(None)}[multimask_output]
        tokens = self.tokens(prompts.sparse_prompt_embeddings, prompts.has_text)
        tokens, logits = self.draw(image, image_pe, prompts, tokens, kept, image_index)
        return MaskPredictions(logits, *self._scores(tokens, logits, kept, prompts))

    def draw(
        self,
        image: ImageEmbeddings,
        image_pe: Tensor,
        prompts: PromptEmbeddings,
        tokens: Tensor,
        kept: slice,
        image_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The transformer and what is drawn after it.

        Args:
            tokens: (N, T, C), from `tokens`. kept: which masks. The rest: as in `forward`.
        Returns:
            tokens (N, T, C) after the exchange with the image, and logits (N, M, 4h, 4w).
        """
        count = tokens.shape[0]
        # A dense prompt of batch 1 is the same for all prompts: the image stays one, and its projections in the
        # first layer are computed once however many prompts there are.
        dense = prompts.dense_prompt_embeddings
        embeddings = image.image_embeddings
        if self._can_fold(image, prompts, tokens):
            compiled = kernels()
            decode = decode_in_chunks if compiled is None else partial(decode_natively, compiled)
            return decode(
                self.transformer,
                self.output_upscaling,
                lambda tokens: self._mask_weights(tokens, kept),
                image.image_embeddings,
                dense,
                image_pe,
                tokens,
                image_index,
            )
        if dense.shape[0] != 1:
            embeddings = spread(embeddings, count, image_index)
        tokens, image_map = self._exchange(embeddings + dense, image_pe, tokens, image_index)
        upscaled = self._upscale(image_map, image, prompts, image_index)
        if self.refiner is not None and prompts.drawn_prompts is not None:
            upscaled = self.refiner(upscaled, prompts.drawn_prompts.maps)
        logits = (self._mask_weights(tokens, kept) @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])
        if self.drawing_head is not None and prompts.drawn_prompts is not None:
            mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
            logits = logits + self.drawing_head(mask_tokens[:, kept], prompts.drawn_prompts.maps)
        return tokens, logits

    def _can_fold(self, image: ImageEmbeddings, prompts: PromptEmbeddings, tokens: Tensor) -> bool:
        """Whether the quicker way without gradients applies; it does not know the finer maps."""
        plain = image.high_res_features is None and prompts.drawn_prompts is None
        inference = is_cpu_inference(tokens) and tokens.shape[0] > 0
        return plain and inference and is_foldable(self.transformer, self.output_upscaling, tokens.shape[1])

    def _exchange(
        self, mixed: Tensor, image_pe: Tensor, tokens: Tensor, image_index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Images (B or N, C, h, w) and tokens (N, T, C) -> tokens (N, T, C) and images (N, C, h, w) after the
        transformer."""
        count, grid_hw = tokens.shape[0], mixed.shape[-2:]
        in_order = mixed.shape[0] in (1, count) and count > 0
        known = self.whole_vectors and in_order and not is_hooked(self.transformer)
        natively = packed(self.transformer, PackedTransformer, tokens) if known else None
        if natively is not None:
            tokens, image_map = natively(tokens, mixed.flatten(2).contiguous(), image_pe[0].flatten(1).contiguous())
            return tokens, image_map.unflatten(2, grid_hw)
        tokens, image_tokens = self.transformer(
            mixed.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2), tokens, image_index
        )
        image_map = spread(image_tokens, count, image_index).transpose(1, 2)
        return tokens, image_map.reshape(count, image_tokens.shape[-1], *grid_hw)

    def _mask_weights(self, tokens: Tensor, kept: slice) -> Tensor:
        """(N, T, C) after the transformer -> (N, M, C/8), each mask's weights of the upscaled image."""
        numbers = range(self.num_mask_tokens)[kept]
        return torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in numbers], dim=1)

    def predicted_iou(self, tokens: Tensor, logits: Tensor, kept: slice) -> Tensor:
        """(N, T, C) after the transformer and the masks (N, M, 4h, 4w) -> (N, M)."""
        iou: Tensor = self.iou_prediction_head(tokens[:, 0])[:, kept]
        return iou if self.quality is None else iou + self.quality(logits)

    def _scores(
        self, tokens: Tensor, logits: Tensor, kept: slice, prompts: PromptEmbeddings
    ) -> tuple[Tensor, Tensor | None]:
        """Predicted IoU (N, M), and presence logits (N,) when there is text."""
        iou = self.predicted_iou(tokens, logits, kept)
        if not prompts.has_text:
            return iou, None
        presence = self.presence_head(tokens[:, -1])[:, 0]
        return iou, presence if prompts.presence_logits is None else presence + prompts.presence_logits

    def tokens(self, sparse: Tensor, has_text: bool) -> Tensor:
        """[iou, 4 masks, prompts], and the presence token behind them when there is text: (N, T, C)."""
        fixed = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(sparse.shape[0], -1, -1)
        parts = [fixed, sparse.to(fixed.dtype)]
        if has_text:
            parts.append(self.presence_token.weight.expand(sparse.shape[0], -1, -1))
        return torch.cat(parts, dim=1)

    def _upscale(
        self, image_map: Tensor, image: ImageEmbeddings, prompts: PromptEmbeddings, image_index: Tensor | None
    ) -> Tensor:
        """(N, C, h, w) -> (N, C/8, 4h, 4w); the encoder's and the prompts' finer maps are added where there are any."""
        if image.high_res_features is None and prompts.drawn_prompts is None:
            return self.output_upscaling(image_map)
        fine, finer = [], []  # at strides 8 and 4
        if image.high_res_features is not None:
            finer.append(spread(image.high_res_features[0], image_map.shape[0], image_index))
            fine.append(spread(image.high_res_features[1], image_map.shape[0], image_index))
        if prompts.drawn_prompts is not None:
            finer.append(prompts.drawn_prompts.stride4)
            fine.append(prompts.drawn_prompts.stride8)
        natively = packed(self.output_upscaling, PackedUpscaling, image_map) if self.whole_vectors else None
        if natively is not None:
            return natively(image_map, (fine, finer))
        up1, norm, act1, up2, act2 = self.output_upscaling
        return act2(sum(finer, up2(act1(norm(sum(fine, up1(image_map)))))))
