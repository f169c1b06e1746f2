"""The model as three graphs of tensors alone: image encoder, text encoder, prompt decoder.

Everything optional becomes an axis that may have no elements or a flag, since a graph has no `None`: no points is
K = 0, no text is T = 0, no mask is `has_mask` 0. As in SAM's own ONNX file, a box is two more points, of labels 2, 3.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.language.small_clip import SmallTextEncoder
from textsam.modeling.mask_detail import draw_boxes, draw_clicks
from textsam.modeling.structures import DrawnPrompts, ImageEmbeddings, PromptEmbeddings
from textsam.modeling.text_sam import TextSamNetwork

Module = TypeVar("Module", bound=nn.Module)

# What an encoded image consists of, in this order; a model has the first and any of the others.
IMAGE_OUTPUTS = ("image_embeddings", "skip4", "skip8", "similarity_features", "presence_features")


def image_parts(image: ImageEmbeddings) -> dict[str, Tensor]:
    """The tensors of an encoded image by name, those that there are, in the order of `IMAGE_OUTPUTS`."""
    skips = image.high_res_features or (None, None)
    parts = (image.image_embeddings, *skips, image.similarity_features, image.presence_features)
    return {name: part for name, part in zip(IMAGE_OUTPUTS, parts, strict=True) if part is not None}


def as_exported(module: Module) -> Module:
    """A copy with the weights of the graphs, float32 on the CPU: the caller goes on with its own as it is."""
    return copy.deepcopy(module).float().cpu().eval()


class OnnxImageEncoder(nn.Module):
    """(1, 3, S, S) normalised pixels -> the tensors of `image_parts`."""

    def __init__(self, model: TextSamNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return tuple(image_parts(self.model.encode_image(pixel_values)).values())


class OnnxTextEncoder(nn.Module):
    """`SmallTextEncoder` after its words were cut into n-grams; names with vectors of their own are not looked up."""

    def __init__(self, encoder: SmallTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ngrams: Tensor) -> Tensor:
        """
        Args:
            ngrams: (Q, W, G) int64 buckets of `word_features`; the last word comes first; -1 fills up.
        Returns:
            (Q, D) of unit length.
        """
        used = (ngrams >= 0)[..., None].float()
        table = self.encoder.ngrams.weight
        vectors = (table[ngrams.clamp(min=0)] * used).sum(2) / used.sum(2).clamp(min=1)
        return self.encoder.embed_words(vectors, used.amax(2)[..., 0] > 0)


class OnnxPromptDecoder(nn.Module):
    """Points, boxes, masks and text on one image to masks.

    Args:
        model: one of any encoder.
        part_names: of `image_parts` for this model.
        side: of the encoder's input, px.
    """

    image_pe: Tensor

    def __init__(self, model: TextSamNetwork, part_names: list[str], side: int) -> None:
        super().__init__()
        self.model = model
        self.part_names = part_names
        self.input_size = (side, side)
        grid = side // model.config.patch_size
        with torch.no_grad():
            self.register_buffer("image_pe", model.prompt_encoder.pe_layer((grid, grid))[None].clone())

    def forward(
        self,
        parts: list[Tensor],
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
        text_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            parts: of one image, the tensors of `image_parts`.
            point_coords: (N, K, 2) xy in px of the encoder's input. point_labels: (N, K) int64, 1 foreground,
                0 background, 2 and 3 a box's top-left and bottom-right corner, -1 padding, which SAM adds once to
                points that come without a box.
            mask_input: (N, 1, 4h, 4w) logits. has_mask: (N,) 1 or 0.
            text_embeddings: (N, T, D) of unit length; T is 0 or 1.
        Returns:
            low_res_logits (N, 4, 4h, 4w) and iou_predictions (N, 4): first the single mask, then the three of an
            ambiguous prompt; presence_logits (N, T).
        """
        return self.answer(self._image(parts), point_coords, point_labels, mask_input, has_mask, text_embeddings)

    def answer(
        self,
        image: ImageEmbeddings,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
        text_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, for one image or for one of each prompt."""
        decoder = self.model.mask_decoder
        prompts = self._embed(image, point_coords, point_labels, mask_input, has_mask, text_embeddings)
        # The decoder itself adds one presence token, or none; here there are T.
        count, queries = text_embeddings.shape[:2]
        presence_tokens = decoder.presence_token.weight.expand(count, queries, -1)
        tokens = torch.cat([decoder.tokens(prompts.sparse_prompt_embeddings, False), presence_tokens], dim=1)
        tokens, logits = decoder.draw(image, self.image_pe, prompts, tokens, slice(None), None)
        iou = decoder.predicted_iou(tokens, logits, slice(None))
        presence = decoder.presence_head(tokens[:, tokens.shape[1] - queries :])[..., 0]
        if self.model.config.image_presence and image.presence_features is not None:
            presence = presence + self.model.image_presence(image, text_embeddings.flatten(0, 1)).reshape(
                count, queries
            )
        return logits, iou, presence

    def _image(self, parts: list[Tensor]) -> ImageEmbeddings:
        named: dict[str, Tensor] = dict(zip(self.part_names, parts, strict=True))
        skips = (named["skip4"], named["skip8"]) if "skip4" in named else None
        return ImageEmbeddings(
            named["image_embeddings"],
            self.input_size,
            skips,
            named.get("similarity_features"),
            named.get("presence_features"),
        )

    def _embed(
        self,
        image: ImageEmbeddings,
        coords: Tensor,
        labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
        text_embeddings: Tensor,
    ) -> PromptEmbeddings:
        encoder = self.model.prompt_encoder
        tokens = encoder.embed_points(coords, labels, self.input_size, pad=False)
        for label, corner in ((2, encoder.point_embeddings[2]), (3, encoder.point_embeddings[3])):
            tokens = tokens + corner.weight * (labels == label)[..., None]  # type: ignore[operator]
        text = encoder.text_projection(encoder.align_clip(text_embeddings)) + encoder.text_embed.weight
        given = has_mask[:, None, None, None]
        no_mask = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = given * encoder.mask_downscaling(mask_input) + (1 - given) * no_mask
        drawn = None
        if encoder.geometry_maps is not None:
            coarse, drawn = self._draw(image, coords, labels, mask_input * given, text_embeddings)
            dense = dense + coarse
        return PromptEmbeddings(torch.cat([tokens, text], dim=1), dense, False, drawn)

    def similarity(self, image: ImageEmbeddings, text_embeddings: Tensor) -> Tensor:
        """(N, T, D) texts, T 0 or 1, where each is in the image: (N, 1, hc, wc) logits, 0 without text."""
        logits: Tensor = self.model.text_similarity(image, text_embeddings.flatten(0, 1))  # type: ignore[assignment]
        return logits[0].reshape(*text_embeddings.shape[:2], *logits.shape[2:]).sum(1, keepdim=True)

    def _draw(
        self, image: ImageEmbeddings, coords: Tensor, labels: Tensor, mask_input: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, DrawnPrompts]:
        """The prompts as maps. What is not given draws zeros, as no prompt does: a box outside the image is empty."""
        height, width = self.input_size
        corners = [((labels == label)[..., None] * coords).sum(1) for label in (2, 3)]
        has_box = (labels == 3).sum(1, keepdim=True) > 0
        far_away = corners[0].new_tensor([-8.0 * width, -8.0 * height, -4.0 * width, -4.0 * height])
        boxes = torch.where(has_box, torch.cat(corners, dim=1), far_away)
        similarity = None if image.similarity_features is None else self.similarity(image, text_embeddings)
        # One point more, which draws nothing, so that there is a largest one even when K is 0.
        coords, labels = F.pad(coords, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        maps: nn.Module = self.model.prompt_encoder.geometry_maps  # type: ignore[assignment]
        return maps(coords.shape[0], self.input_size, coords, labels, boxes, similarity, mask_input)


class OnnxMaskDetail(OnnxPromptDecoder):
    """Masks redrawn near by, each in its own square crop of the photo, as `prompting.mask_details.redraw` does.

    Args:
        model: one with `mask_detail`.
        side: S, px of a crop.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: TextSamNetwork, side: int) -> None:
        super().__init__(model, [], side)
        self.register_buffer("pixel_mean", torch.tensor(model.config.pixel_mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(model.config.pixel_std).view(3, 1, 1))

    def forward(  # type: ignore[override]
        self, pixels: Tensor, logits: Tensor, point_coords: Tensor, point_labels: Tensor, text_embeddings: Tensor
    ) -> Tensor:
        """
        Args:
            pixels: (N, 3, S, S) RGB in 0..255. logits: (N, 1, S, S), the decoder's.
            point_coords, point_labels, text_embeddings: the prompts, as `OnnxPromptDecoder` takes them, in px of the
                crops.
        Returns:
            (N, 1, S, S) logits.
        """
        side = self.input_size[0]
        image = self.model.encode_image((pixels - self.pixel_mean) / self.pixel_std)
        image = replace(image, presence_features=None)  # whether the thing is there was asked before
        clicks = ((point_labels == 0) | (point_labels == 1)).sum(1)
        has_box = (point_labels == 3).sum(1) > 0
        has_text = text_embeddings.abs().sum((1, 2)) > 0
        asked = (clicks <= 1) & ((clicks == 1) | has_box | has_text)
        given = torch.ones_like(logits[:, 0, 0, 0])
        low = F.avg_pool2d(logits, 4)
        again, _, _ = self.answer(image, point_coords, point_labels, low, given, text_embeddings)
        again = F.interpolate(again[:, :1], (side, side), mode="bilinear", align_corners=False)
        logits = torch.where(asked[:, None, None, None], (logits + again) / 2, logits)
        corners = [((point_labels == label)[..., None] * point_coords).sum(1) / side for label in (2, 3)]
        drawn = draw_boxes(torch.cat(corners, dim=1), side)
        drawn = torch.where(has_box[:, None, None, None], drawn, 0.5)
        spots = draw_clicks(point_coords / side, point_labels, side)
        similarity = None if image.similarity_features is None else self.similarity(image, text_embeddings)
        return self.model.mask_detail(pixels, image, logits, drawn, spots, similarity)

    def similarity(self, image: ImageEmbeddings, text_embeddings: Tensor) -> Tensor:
        """Of N texts against N images, one each."""
        directions = self.model.text_directions(text_embeddings)
        features: Tensor = image.similarity_features  # type: ignore[assignment]
        logits = torch.einsum("nehw,nte->nthw", features, directions) + self.model.similarity_bias
        return logits.sum(1, keepdim=True)
