"""What flows between the three verbs: encode the image, encode the prompts, decode the masks.

Dimension key: B images, N prompts (objects), T prompt tokens, M masks per prompt, C embedding, D CLIP width,
h w embedding grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageEmbeddings:
    """Images after the image encoder; reusable for any number of prompts."""

    image_embeddings: Tensor  # (B, C, h, w)
    input_size: tuple[int, int]  # (height, width) of the encoder's input, px
    high_res_features: tuple[Tensor, Tensor] | None = None  # (B, C/8, 4h, 4w) and (B, C/4, 2h, 2w)
    similarity_features: Tensor | None = None  # (B, E, hc, wc), to compare with projected text; CLIP's: with text
    presence_features: Tensor | None = None  # (B, E), to compare with projected text
    pixel_values: Tensor | None = None  # (B, 3, H, W) the encoder's input, where masks can be redrawn upon it

    def select(self, index: int) -> ImageEmbeddings:
        """The image `index` of the batch, with its batch axis kept."""
        return self.take(slice(index, index + 1))

    def take(self, rows: slice | Tensor) -> ImageEmbeddings:
        """Images of the batch; rows (N,) int64 may name one several times."""
        skips = self.high_res_features
        return ImageEmbeddings(
            self.image_embeddings[rows],
            self.input_size,
            None if skips is None else (skips[0][rows], skips[1][rows]),
            None if self.similarity_features is None else self.similarity_features[rows],
            None if self.presence_features is None else self.presence_features[rows],
            None if self.pixel_values is None else self.pixel_values[rows],
        )


@dataclass(frozen=True)
class DrawnPrompts:
    """Prompts drawn as maps, for models that want them so; see `GeometryMaps`."""

    maps: Tensor  # (N, 5, 4h, 4w) in [-1, 1]
    stride4: Tensor  # (N, C/8, 4h, 4w), for the upscaling
    stride8: Tensor  # (N, C/4, 2h, 2w), for the upscaling


@dataclass(frozen=True)
class PromptEmbeddings:
    """Prompts after the prompt encoder."""

    sparse_prompt_embeddings: Tensor  # (N, T, C)
    dense_prompt_embeddings: Tensor  # (N, C, h, w), or (1, C, h, w) when all prompts share it
    has_text: bool = False
    drawn_prompts: DrawnPrompts | None = None
    presence_logits: Tensor | None = None  # (N,) of text against the whole image, for models that compare them


@dataclass(frozen=True)
class MaskPredictions:
    """Masks of N prompts."""

    low_res_logits: Tensor  # (N, M, 4h, 4w), threshold 0
    iou_predictions: Tensor  # (N, M), not clipped to [0, 1]
    presence_logits: Tensor | None = None  # (N,), > 0: the named thing is in the image; None without text
