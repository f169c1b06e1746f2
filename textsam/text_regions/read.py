"""Written text by one call, and what a recogniser reads in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from textsam.files.images import read_image
from textsam.predictor import TextSam
from textsam.prompting.prompts import check_threshold
from textsam.text_regions.levels import level_of
from textsam.text_regions.rectify import recognise_regions

if TYPE_CHECKING:
    import supervision as sv


@torch.inference_mode()
def read_text_regions(
    sam: TextSam,
    image: Any,
    level: str = "word",
    *,
    threshold: float | None = None,
    recognise: Callable[[np.ndarray], str] | None = None,
    margin: float = 0.1,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> sv.Detections:
    """The written text of a picture of any size, in reading order.

    Args:
        sam: a model that was trained for it, such as textsam-tiny-ocr.
        image: as in `TextSam.set_image`.
        level: "text", "text stroke", "word", "text line" or "text block", spelled as `level_of` knows them.
        threshold: least score in [0, 1]; None: the reader's own.
        recognise: an upright crop (h, w, 3) uint8 RGB to its transcript, by whatever recogniser you have.
        margin: around those crops, as a share of their height.
        on_tile: told after each tile how many of how many are done.
    Returns:
        as `TextRegions.to_detections`: `data` has quad, order, line, block, level, and text with a recogniser.
    Raises:
        ValueError: a model or a level that does not read text; or as `read_image`.
    """
    if sam.text_reader is None:
        raise ValueError("Expected a model that was trained to find written text, such as textsam-tiny-ocr.")
    picture, level, threshold = read_image(image), level_of(level) or level, check_threshold(threshold)
    regions = sam.text_reader.read(picture, [level], threshold, on_tile)[0][level]
    if recognise is not None:
        regions = recognise_regions(picture, regions, recognise, margin)
    return regions.to_detections()
