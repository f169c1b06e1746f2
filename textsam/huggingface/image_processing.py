"""`TextSamImageProcessor`: photos to the encoder's input, and masks back, under transformers' names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from textsam.config import NetworkConfig
from textsam.files.images import read_image
from textsam.prompting.transforms import ImageGeometry, postprocess_masks, preprocess_image

# Of `TextSam.predict` and of other processors -> the name here.
PROMPT_NAMES = {
    **dict.fromkeys(("texts", "input_text", "prompt", "prompts", "labels", "negative_text"), "text"),
    **dict.fromkeys(("points", "point", "point_coords", "input_point"), "input_points"),
    **dict.fromkeys(("point_labels", "input_label"), "input_labels"),
    **dict.fromkeys(("boxes", "box", "bbox", "bboxes", "input_box"), "input_boxes"),
    **dict.fromkeys(("mask_input", "mask_inputs", "mask", "masks", "input_mask"), "input_masks"),
    **{name: name for name in ("text", "input_points", "input_labels", "input_boxes", "input_masks")},
}


def refuse_prompts(options: Collection[str]) -> None:
    """
    Args:
        options: names of arguments that a processor does not need.
    Raises:
        TypeError: one is meant as a prompt, which would be lost.
    """
    for option in options:
        if option in PROMPT_NAMES:
            raise TypeError(f"Expected {PROMPT_NAMES[option]}=... of TextSamProcessor, got {option}.")


class TextSamImageProcessor(BaseImageProcessor):
    """Resize, normalise and pad exactly as `TextSam` does.

    Args:
        size: {"longest_edge": S}, the model's side in px.
        patch_size: the side is a multiple of it.
        pixel_mean, pixel_std: of RGB in 0..255.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: dict[str, int] | None = None,
        patch_size: int = 16,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = dict(size or {"longest_edge": 1024})
        self.patch_size = patch_size
        self.pixel_mean = list(pixel_mean)
        self.pixel_std = list(pixel_std)

    @classmethod
    def of_config(cls, config: NetworkConfig) -> TextSamImageProcessor:
        """The one that a model of this configuration needs."""
        return cls({"longest_edge": config.image_size}, config.patch_size, config.pixel_mean, config.pixel_std)

    def preprocess(self, images: Any, return_tensors: str = "pt", **options: Any) -> BatchFeature:  # type: ignore[override]
        """
        Args:
            images: one photo or a list of B: all that `textsam.files.images.read_image` takes.
            options: others of transformers' are taken and not needed.
        Returns:
            pixel_values (B, 3, S, S) float32; original_sizes and reshaped_input_sizes, both (B, 2) int64, height and
            width before and after the resizing.
        Raises:
            ValueError: return_tensors is not "pt"; or as `read_image`.
            TypeError: a prompt.
        """
        refuse_prompts(options)
        if return_tensors not in ("pt", None):
            raise ValueError(f'Expected return_tensors="pt", got {return_tensors!r}: the model is PyTorch\'s.')
        photos = [read_image(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
        if not photos:
            raise ValueError("Expected at least one image, got an empty list.")
        inputs = [
            preprocess_image(
                photo,
                side=self.size["longest_edge"],
                patch_size=self.patch_size,
                pixel_mean=self.pixel_mean,
                pixel_std=self.pixel_std,
            )
            for photo in photos
        ]
        return BatchFeature(
            {
                "pixel_values": torch.cat([pixels for pixels, _ in inputs]),
                "original_sizes": torch.tensor([geometry.original_size_hw for _, geometry in inputs]),
                "reshaped_input_sizes": torch.tensor([geometry.resized_size_hw for _, geometry in inputs]),
            }
        )

    def geometry(self, original_size_hw: Any) -> ImageGeometry:
        """The sizes of a photo of (height, width) px on its way into the encoder."""
        height, width = (int(side) for side in original_size_hw)
        return ImageGeometry.of((height, width), self.size["longest_edge"], self.patch_size)

    def post_process_masks(
        self,
        masks: Tensor | Sequence[Tensor],
        original_sizes: Any,
        reshaped_input_sizes: Any = None,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        image_index: Tensor | None = None,
    ) -> list[Tensor]:
        """Low-resolution logits to masks of the photos' sizes, enlarged as SAM's are.

        `TextSam.predict` and the pipeline also redraw them where a model has `mask_detail`.

        Args:
            masks: (N, M, 4h, 4w) logits of all photos, as the model gives them, or a list of B of them.
            original_sizes: (B, 2), height and width of each photo.
            reshaped_input_sizes: follows from the original sizes; taken for the sake of SAM's call.
            binarize: False: logits instead of bool.
            image_index: (N,) the photo of each row, as the processor made it; None when B is 1 or N.
        Returns:
            B tensors (N_b, M, H, W).
        """
        sizes = [tuple(int(side) for side in size) for size in original_sizes]
        if isinstance(masks, Tensor):
            if image_index is None:
                if len(sizes) not in (1, len(masks)):
                    raise ValueError(
                        f"Expected image_index for {len(masks)} masks of {len(sizes)} images, got none: pass that of "
                        "the processor's result."
                    )
                image_index = torch.arange(len(masks)) * (len(sizes) > 1)
            rows = image_index.to(masks.device)
            masks = [masks[rows == number] for number in range(len(sizes))]
        results = []
        for logits, size in zip(masks, sizes, strict=True):
            full = postprocess_masks(logits, self.geometry(size))
            results.append(full > mask_threshold if binarize else full)
        return results
