"""Run-length encoded masks: COCO's compressed form to arrays and back, and everything that files hold to that form.

"Compressed RLE" is pycocotools' {"size": [H, W], "counts": bytes}: a few hundred bytes for a mask of any size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> compressed RLE."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """Compressed RLE -> (H, W) bool.

    As `pycocotools.mask.decode`, which warns under NumPy 2 and leaves pixels uninitialised if runs are short.
    """
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def segmentation_to_rle(segmentation: object, height: int, width: int) -> dict[str, Any]:
    """Polygons [[x, y, ...], ...], RLE or compressed RLE -> compressed RLE of an H x W image.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    if isinstance(segmentation, list):
        rle = _polygons_to_rle(segmentation, height, width)
    elif isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size != [height, width]:
            raise ValueError(f"its mask is {size} (height, width) but its image is [{height}, {width}]")
        runs = run_lengths(segmentation.get("counts"))
        if len(runs) == 0 or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"its RLE counts sum to {runs.sum()}, expected {height * width} (height x width)")
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    else:
        raise ValueError(f"segmentation must be polygons or an RLE, got {type(segmentation).__name__}")
    if coco_mask.area(rle) == 0:
        raise ValueError("its mask is empty")
    return rle


def _polygons_to_rle(polygons: list, height: int, width: int) -> dict[str, Any]:
    if not polygons:
        raise ValueError("its polygon is empty")
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            count = len(polygon) if isinstance(polygon, list) else type(polygon).__name__
            raise ValueError(f"polygon {number} needs an even count of at least 6 numbers, got {count}")
        if not all(isinstance(v, int | float) and math.isfinite(v) and abs(v) < 1e6 for v in polygon):
            raise ValueError(f"polygon {number} holds values that are not finite pixel coordinates")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def run_lengths(counts: object) -> np.ndarray:
    """RLE counts, plain or compressed, -> int64 run lengths.

    Source: rleFrString in cocoapi/common/maskApi.c (base 32 digits, differences to the run before the last).
    """
    if isinstance(counts, list):
        if not all(isinstance(c, int) and 0 <= c < 2**32 for c in counts):
            raise ValueError("its RLE counts are not non-negative integers")
        return np.array(counts, np.int64)
    if not isinstance(counts, str | bytes):
        raise ValueError(f"its RLE counts must be a list or a string, got {type(counts).__name__}")
    text = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("its compressed RLE string is damaged")
    is_last = (digits & 32) == 0
    group = np.concatenate([[0], np.cumsum(is_last)[:-1]])
    start = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    place = np.arange(len(digits)) - start[group]
    if place.max() > 6:
        raise ValueError("its compressed RLE string is damaged")
    runs = np.bincount(group, (digits & 31) << (5 * place)).astype(np.int64)
    is_negative = (digits[is_last] & 16) != 0
    runs -= is_negative.astype(np.int64) << (5 * (place[is_last] + 1))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
