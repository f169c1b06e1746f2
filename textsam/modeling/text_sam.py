"""TextSAM: image encoder, prompt encoder and mask decoder joined; three verbs, each one's output the next one's input.

image = model.encode_image(pixel_values)
prompts = model.encode_prompts(image, point_coords=..., point_labels=..., text_embeddings=...)
masks = model.decode_masks(image, prompts, multimask_output=True)

Plain PyTorch: `textsam.model.TextSamModel` is the same network as a model of transformers, whose import takes seconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.config import NetworkConfig
from textsam.modeling.dense_text import DenseText
from textsam.modeling.fine_masks import FineDrawing, FineMasks
from textsam.modeling.image_encoder import ImageEncoderViT
from textsam.modeling.mask_decoder import MaskDecoder
from textsam.modeling.mask_detail import MaskDetail
from textsam.modeling.mobile_encoder import MobileEncoder
from textsam.modeling.prompt_encoder import PromptEncoder
from textsam.modeling.structures import ImageEmbeddings, MaskPredictions, PromptEmbeddings
from textsam.modeling.transformer import TwoWayTransformer


def build_image_encoder(config: NetworkConfig) -> nn.Module:
    """The encoder that `config.encoder_type` names."""
    if config.encoder_type == "mobile":
        return MobileEncoder(
            out_chans=config.prompt_dim,
            similarity_dim=config.similarity_dim if config.similarity_head else None,
            presence_dim=config.similarity_dim if config.image_presence else None,
            high_res_skips=config.high_res_skips,
        )
    return ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.encoder_width,
        depth=config.encoder_depth,
        num_heads=config.encoder_heads,
        mlp_ratio=config.mlp_ratio,
        out_chans=config.prompt_dim,
        window_size=config.window_size,
        global_attn_indexes=tuple(config.global_attn_indexes),
    )


class TextSamNetwork(nn.Module):
    """Segment Anything with text beside points, boxes and masks. Every forward is differentiable."""

    config: NetworkConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.add_parts(config)

    def add_parts(self, config: NetworkConfig) -> None:
        """The submodules and parameters that the configuration asks for."""
        self.image_encoder = build_image_encoder(config)
        self.prompt_encoder = PromptEncoder(
            embed_dim=config.prompt_dim,
            mask_in_chans=config.mask_in_chans,
            clip_dim=config.clip_dim,
            text_projection=config.text_projection,
            dense_geometry=config.dense_geometry,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=config.prompt_dim,
            transformer=TwoWayTransformer(
                config.decoder_depth,
                config.prompt_dim,
                config.decoder_heads,
                config.decoder_mlp_dim,
                config.decoder_downsample_rate,
            ),
            num_multimask_outputs=config.num_multimask_outputs,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_hidden,
            dense_geometry=config.dense_geometry,
            refinement=config.mask_refinement,
        )
        if config.similarity_head:
            # A linear map of the text instead of one of the image: (W z) . t = z . (W' t), and the image has more
            # positions than there are texts. Bias: most names are absent from most places.
            self.similarity_projection = nn.Linear(config.clip_dim, config.similarity_dim, bias=False)
            self.similarity_bias = nn.Parameter(torch.tensor(-3.0))
        if config.dense_text:
            self.dense_text = DenseText()
        if config.fine_masks:
            self.fine_masks = FineMasks(config.prompt_dim // 8, finish=config.finish_masks)
        if config.mask_detail:
            self.mask_detail = MaskDetail(config.prompt_dim, config.similarity_dim if config.similarity_head else 0)
        if config.image_presence:
            self.presence_projection = nn.Linear(config.clip_dim, config.similarity_dim, bias=False)
            self.presence_bias = nn.Parameter(torch.tensor(-3.0))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(p for p in self.parameters() if p.is_floating_point()).dtype

    def text_parameter_names(self) -> list[str]:
        """Names in the state dict that a SAM checkpoint lacks and an adapter holds."""
        prefixes = (
            "prompt_encoder.text_projection.",
            "prompt_encoder.text_embed.",
            "prompt_encoder.modality_means",
            "mask_decoder.presence_token.",
            "mask_decoder.presence_head.",
            "dense_text.",
        )
        return [name for name in self.state_dict() if name.startswith(prefixes)]

    def encode_image(self, pixel_values: Tensor) -> ImageEmbeddings:
        """
        Args:
            pixel_values: (B, 3, H', W'), normalised with the config's mean and std.
        Returns:
            `ImageEmbeddings` of an h x w grid, h = H' / patch_size.
        Raises:
            ValueError: the shape is not (B, 3, H', W') with sides that are multiples of the patch size.
        """
        shape, patch = tuple(pixel_values.shape), self.config.patch_size
        if len(shape) != 4 or shape[1] != 3 or shape[2] % patch or shape[3] % patch or 0 in shape[2:]:
            raise ValueError(
                f"pixel_values must be (B, 3, H, W) with H and W multiples of {patch}, but is {shape}; "
                "pad it at the bottom and right."
            )
        out = self.image_encoder(pixel_values)
        # A plug-in encoder may return the (B, C, h, w) map alone.
        maps = (out,) if isinstance(out, Tensor) else out
        image = ImageEmbeddings(maps[0], (shape[2], shape[3]), *maps[1:])
        return replace(image, pixel_values=pixel_values) if self.config.fine_masks else image

    def encode_prompts(
        self,
        image: ImageEmbeddings,
        *,
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        text_embeddings: Tensor | None = None,
        modality: str = "text",
        image_index: Tensor | None = None,
    ) -> PromptEmbeddings:
        """
        Args:
            image: from `encode_image`; gives the frame, and the features that text is compared with.
            point_coords: (N, K, 2) xy in px of the encoder's input. point_labels: (N, K) 1 foreground,
                0 background, -1 padding.
            boxes: (N, 4) xyxy in px of the encoder's input.
            mask_input: (N, 1, 4h, 4w) logits, as `decode_masks` gives them.
            text_embeddings: (N, D) CLIP embeddings of unit length.
            modality: the CLIP tower they come from: "text", or "image" for crops, as in training.
            image_index: (N,) the image of each prompt; None when B is 1 or N.
        Returns:
            `PromptEmbeddings` of N prompts.
        Raises:
            ValueError: points without labels, or prompts or an `image_index` that differ in N.
        """
        given = {
            "point_coords": point_coords,
            "point_labels": point_labels,
            "boxes": boxes,
            "mask_input": mask_input,
            "text_embeddings": text_embeddings,
        }
        counts = {name: len(value) for name, value in given.items() if value is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"All prompts must have the same N, but have {counts}; give each object one row.")
        if (point_coords is None) != (point_labels is None):
            raise ValueError("point_coords and point_labels must come together; give one label per point.")
        count = next(iter(counts.values()), len(image.image_embeddings if image_index is None else image_index))
        _check_index(image, image_index, count)

        similarity = presence = None
        if text_embeddings is not None:
            if self.config.image_presence:
                every = self.image_presence(image, text_embeddings, modality)
                rows = torch.arange(count, device=every.device)
                presence = every[0] if len(every) == 1 else every[rows if image_index is None else image_index, rows]
            if self.config.dense_text and mask_input is None and image.similarity_features is not None:
                mask_input = self._dense_mask_input(image, text_embeddings, image_index)
            text_embeddings = self.prompt_encoder.align_clip(text_embeddings, modality)
            if self.config.similarity_head:
                similarity = self._similarity_of_pairs(image, text_embeddings, image_index)
        return self.prompt_encoder(
            image.input_size,
            point_coords=point_coords,
            point_labels=point_labels,
            boxes=boxes,
            mask_input=mask_input,
            text_embeddings=text_embeddings,
            similarity=similarity,
            presence_logits=presence,
            count=count,
            grid_hw=tuple(image.image_embeddings.shape[-2:]),
        )

    def decode_masks(
        self,
        image: ImageEmbeddings,
        prompts: PromptEmbeddings,
        *,
        multimask_output: bool | None,
        image_index: Tensor | None = None,
    ) -> MaskPredictions:
        """
        Args:
            image: B images. prompts: N prompts.
            multimask_output: True: M = 3 masks for an ambiguous prompt; False: M = 1; None: all 4, the single mask
                first, as training needs them.
            image_index: (N,) the image of each prompt; None when B is 1 or N.
        Returns:
            `MaskPredictions`: low_res_logits (N, M, 4h, 4w), iou_predictions (N, M), presence_logits (N,) or None.
        Raises:
            ValueError: an `image_index` that is missing or differs in N.
        """
        image, image_index = _in_order(image, image_index, len(prompts.sparse_prompt_embeddings))
        grid_hw = tuple(image.image_embeddings.shape[-2:])
        image_pe = self.prompt_encoder.pe_layer(grid_hw)[None]
        return self.mask_decoder(image, image_pe, prompts, multimask_output, image_index)

    def refine_masks(self, image: ImageEmbeddings, low_res_logits: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Masks redrawn at the input's full resolution, along the edges of its colours.

        Args:
            image: B images of a model whose config has `fine_masks`.
            low_res_logits: (N, M, 4h, 4w), from `decode_masks`. image_index: (N,) as there.
        Returns:
            (N, M, H, W) logits, H x W the input's size; threshold 0.
        Raises:
            ValueError: the image has no `pixel_values`, or an `image_index` is missing or differs in N.
        """
        return self.draw_masks(image, low_res_logits, image_index).logits

    def draw_masks(
        self, image: ImageEmbeddings, low_res_logits: Tensor, image_index: Tensor | None = None
    ) -> FineDrawing:
        """As `refine_masks`, with what `fine_masks.finish_drawing` goes on from."""
        image, image_index = _in_order(image, image_index, len(low_res_logits))
        if image.pixel_values is None or image.high_res_features is None:
            raise ValueError("image must come from encode_image of a model with fine_masks, but has no pixel_values.")
        return self.fine_masks(image.pixel_values, image.high_res_features[0], low_res_logits, image_index)

    def text_similarity(self, image: ImageEmbeddings, text_embeddings: Tensor, modality: str = "text") -> Tensor | None:
        """Where in the image each text is.

        Args:
            image: B images. text_embeddings: (Q, D) CLIP embeddings of unit length.
        Returns:
            (B, Q, hc, wc) float32 logits, > 0 where the concept is likely; None without a similarity head and without
            CLIP's features (`dense_text`).
        """
        if image.similarity_features is None:
            return None
        if self.config.dense_text:
            return self.dense_text(image.similarity_features, text_embeddings[None])
        directions = self.text_directions(text_embeddings, modality)
        return torch.einsum("behw,qe->bqhw", image.similarity_features.float(), directions) + self.similarity_bias

    def text_directions(self, text_embeddings: Tensor, modality: str = "text") -> Tensor:
        """(..., D) CLIP embeddings of unit length -> (..., E) float32, what an image's similarity features are
        multiplied with."""
        return _directions(self.similarity_projection, self.prompt_encoder.align_clip(text_embeddings, modality))

    def image_presence(self, image: ImageEmbeddings, text_embeddings: Tensor, modality: str = "text") -> Tensor:
        """Is each text in each image at all, by a vector of the whole image: (B, Q) float32 logits.

        Args:
            image: B images of a model whose config has `image_presence`. text_embeddings: (Q, D) of unit length.
        """
        if image.presence_features is None:
            raise ValueError("image must come from encode_image of this model, but has no presence_features.")
        directions = _directions(self.presence_projection, self.prompt_encoder.align_clip(text_embeddings, modality))
        return image.presence_features.float() @ directions.T + self.presence_bias

    def _dense_mask_input(self, image: ImageEmbeddings, texts: Tensor, image_index: Tensor | None) -> Tensor:
        """(N, D) texts, where CLIP sees each in its image: (N, 1, 4h, 4w) logits, as of a former mask."""
        features: Any = image.similarity_features
        if len(features) == 1:
            logits = self.dense_text(features, texts[None])[0][:, None]
        else:
            logits = self.dense_text(features if image_index is None else features[image_index], texts[:, None])
        size = [4 * side for side in image.image_embeddings.shape[-2:]]
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def similarity_of_pairs(self, image: ImageEmbeddings, text_embeddings: Tensor) -> Tensor:
        """(N, D) CLIP text embeddings of unit length against N images, one each: (N, 1, hc, wc) float32 logits."""
        return self._similarity_of_pairs(image, self.prompt_encoder.align_clip(text_embeddings, "text"), None)

    def _similarity_of_pairs(self, image: ImageEmbeddings, aligned: Tensor, image_index: Tensor | None) -> Tensor:
        """(N, D) texts against the image of each: (N, 1, hc, wc) logits."""
        features, directions = image.similarity_features, _directions(self.similarity_projection, aligned)
        if features is None:
            raise ValueError("image must come from encode_image of this model, but has no similarity_features.")
        features = features.float()
        if image_index is None and len(features) == 1:
            logits = torch.einsum("ehw,ne->nhw", features[0], directions)
        else:
            # One product of all texts with all images, then the pairs: gathering the wide features would copy them.
            every = torch.einsum("behw,ne->bnhw", features, directions)
            rows = torch.arange(len(aligned), device=aligned.device)
            logits = every[rows if image_index is None else image_index, rows]
        return (logits + self.similarity_bias)[:, None]

    def forward(
        self,
        pixel_values: Tensor,
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        text_embeddings: Tensor | None = None,
        multimask_output: bool = True,
        image_index: Tensor | None = None,
        original_sizes: Tensor | None = None,
        reshaped_input_sizes: Tensor | None = None,
    ) -> MaskPredictions:
        """The three verbs in one call; arguments and result as there. The sizes, which `TextSamProcessor` gives along
        for the way back, are not used."""
        image = self.encode_image(pixel_values)
        prompts = self.encode_prompts(
            image,
            point_coords=point_coords,
            point_labels=point_labels,
            boxes=boxes,
            mask_input=mask_input,
            text_embeddings=text_embeddings,
            image_index=image_index,
        )
        return self.decode_masks(image, prompts, multimask_output=multimask_output, image_index=image_index)


def _check_index(image: ImageEmbeddings, image_index: Tensor | None, count: int) -> None:
    images = len(image.image_embeddings)
    if image_index is None and images not in (1, count):
        raise ValueError(f"Prompts (N = {count}) on {images} images need image_index; give the image of each prompt.")
    if image_index is not None and len(image_index) != count:
        raise ValueError(
            f"image_index must name the image of each of {count} prompts, but has {len(image_index)}; "
            "give each prompt one entry."
        )


def _in_order(image: ImageEmbeddings, image_index: Tensor | None, count: int) -> tuple[ImageEmbeddings, Tensor | None]:
    """With as many prompts as images, the image of each prompt in its place: further down, what is of an image and what
    is of a prompt can be told apart by number alone."""
    _check_index(image, image_index, count)
    images = len(image.image_embeddings)
    if image_index is None or images == 1 or images != count:
        return image, image_index
    return image.take(image_index), None


def _directions(projection: nn.Linear, aligned: Tensor) -> Tensor:
    """(N, D) texts -> (N, E) float32, scaled so that their products with image features start near unit size."""
    weight = projection.weight.float()
    return F.linear(aligned, weight) * weight.shape[0] ** -0.5 * 4
