"""Photos after the image encoder, with all that further questions about them need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from textsam.modeling.structures import ImageEmbeddings
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.ranking import DenseTower
from textsam.prompting.transforms import ImageGeometry, features_in_input, preprocess_image

if TYPE_CHECKING:
    import supervision as sv


DENSE_STRIDE = 32  # px of the encoder's input to a cell of CLIP's features


@dataclass
class EncodedImage:
    """One photo as the model knows it.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, a copy: the user may draw on the array that was given.
        geometry: its sizes.
        embeddings: of this photo alone (B = 1).
        proposals: its automatic masks, once ranking has asked for them.
        dense_features: (D, hc, wc) of a CLIP, once ranking or a text prompt has asked for them.
    """

    pixels: np.ndarray
    geometry: ImageGeometry
    embeddings: ImageEmbeddings
    proposals: sv.Detections | None = None
    dense_features: torch.Tensor | None = None

    def look_with(self, tower: DenseTower) -> None:
        """CLIP's own features join the embeddings, once, for models with `dense_text`."""
        if self.embeddings.similarity_features is None:
            if self.dense_features is None:
                self.dense_features = tower.dense(self.pixels)
            features = features_in_input(self.dense_features, self.geometry, DENSE_STRIDE)
            self.embeddings = replace(
                self.embeddings, similarity_features=features.to(self.embeddings.image_embeddings.device)
            )


def encode_images(
    model: TextSamNetwork, images: Sequence[np.ndarray], side: int, pad_to_square: bool = True
) -> list[EncodedImage]:
    """Photos through the image encoder, those of the same input size in one call.

    Args:
        images: B times (H, W, 3) uint8 RGB, of any sizes.
        side: pixels that each long side is resized to.
        pad_to_square: see `ImageGeometry.of`.
    """
    config = model.config
    inputs = [
        preprocess_image(
            pixels,
            side=side,
            patch_size=config.patch_size,
            pixel_mean=config.pixel_mean,
            pixel_std=config.pixel_std,
            pad=pad_to_square,
        )
        for pixels in images
    ]
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, (_, geometry) in enumerate(inputs):
        by_size.setdefault(geometry.padded_size_hw, []).append(index)
    encoded: dict[int, EncodedImage] = {}
    for indices in by_size.values():
        pixel_values = torch.cat([inputs[index][0] for index in indices])
        embeddings = model.encode_image(pixel_values.to(model.device, model.dtype))
        for row, index in enumerate(indices):
            encoded[index] = EncodedImage(images[index].copy(), inputs[index][1], embeddings.select(row))
    return [encoded[index] for index in range(len(images))]
