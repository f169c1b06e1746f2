"""Photos through the image encoder, unless a cache on disk has their embeddings already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from textsam.files.embedding_cache import EmbeddingCache, content_key, module_revision
from textsam.modeling.structures import ImageEmbeddings
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.encoded_image import EncodedImage, encode_images
from textsam.prompting.transforms import ImageGeometry


class CachedImageEncoder:
    """`encode_images` with a cache.

    Args:
        model: its image encoder's weights are part of every key; they are read once, so they must not change later.
        side, pad_to_square: as for `encode_images`, and part of the keys, too.
    """

    def __init__(self, cache: EmbeddingCache, model: TextSamNetwork, side: int, pad_to_square: bool) -> None:
        self.cache, self.model, self.side, self.pad_to_square = cache, model, side, pad_to_square
        config = model.config
        self.revision = module_revision(
            model.image_encoder, side, pad_to_square, list(config.pixel_mean), list(config.pixel_std), str(model.dtype)
        )
        self._other_sides: dict[int, CachedImageEncoder] = {}

    def at_side(self, side: int) -> CachedImageEncoder:
        """The same for pictures of another side, padded to a square: tiles of a large picture."""
        if side not in self._other_sides:
            self._other_sides[side] = CachedImageEncoder(self.cache, self.model, side, True)
        return self._other_sides[side]

    def __call__(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        """B times (H, W, 3) uint8 RGB -> B encoded photos, bit for bit those that the encoder gave."""
        keys = [content_key(self.revision, image) for image in images]
        encoded: dict[int, EncodedImage] = {}
        for index, key in enumerate(keys):
            tensors = self.cache.get(key)
            if tensors is not None:
                encoded[index] = self._restore(images[index], tensors)
        missing = [index for index in range(len(images)) if index not in encoded]
        fresh = encode_images(self.model, [images[index] for index in missing], self.side, self.pad_to_square)
        for index, photo in zip(missing, fresh, strict=True):
            encoded[index] = photo
            self.cache.put(keys[index], to_tensors(photo.embeddings))
        return [encoded[index] for index in range(len(images))]

    def _restore(self, pixels: np.ndarray, tensors: dict[str, Tensor]) -> EncodedImage:
        geometry = ImageGeometry.of(pixels.shape[:2], self.side, self.model.config.patch_size, self.pad_to_square)
        device = self.model.device
        on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
        return EncodedImage(pixels.copy(), geometry, from_tensors(on_device, geometry.padded_size_hw))


def to_tensors(embeddings: ImageEmbeddings) -> dict[str, Tensor]:
    """The tensors of one photo's embeddings by name, those that it has."""
    skips = embeddings.high_res_features or (None, None)
    named = {
        "image_embeddings": embeddings.image_embeddings,
        "stride4": skips[0],
        "stride8": skips[1],
        "similarity_features": embeddings.similarity_features,
        "presence_features": embeddings.presence_features,
        "pixel_values": embeddings.pixel_values,
    }
    return {name: tensor for name, tensor in named.items() if isinstance(tensor, torch.Tensor)}


def from_tensors(tensors: dict[str, Tensor], input_size: tuple[int, int]) -> ImageEmbeddings:
    """What `to_tensors` was given."""
    return ImageEmbeddings(
        tensors["image_embeddings"],
        input_size,
        (tensors["stride4"], tensors["stride8"]) if "stride4" in tensors else None,
        tensors.get("similarity_features"),
        tensors.get("presence_features"),
        tensors.get("pixel_values"),
    )
