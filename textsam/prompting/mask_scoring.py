"""Automatic masks at the photo's own size: their stability, their pixels and their boxes, without upscaling everything.

The released code upscales all masks to the photo and then scores them. Here each mask is upscaled only where its
low-resolution logits, or a neighbour of them, exceed the lowest threshold. Bilinear values never exceed the largest of
the values that they lie between, so outside of that box no pixel can count, and the numbers are the same. On a CPU the
compiled kernels do all of it row by row, run-length code included; without them PyTorch and NumPy do. On a GPU
upscaling is cheap and leaving it is not: whole photos are scored and encoded there (`device_scoring`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.files.rle import encode_mask
from textsam.native.kernels import Kernels
from textsam.native.library import kernels
from textsam.prompting.device_scoring import score_logits
from textsam.prompting.transforms import LOW_RES_STRIDE, ImageGeometry, postprocess_masks

# Masks upscaled at a time where the device is not a CPU: about this many values live at once.
_BATCH_BUDGET = 256 * 1024 * 1024
# Values per step of the second resize on a CPU; fits a second-level cache.
_CHUNK_BUDGET = 128 * 1024
# Bits of a mask that wait for suppression as they are; more become run lengths at once: thousands of masks of a large
# photo would fill the memory.
_MOST_PACKED_BYTES = 128 * 1024


@dataclass(frozen=True)
class Place:
    """Where the picture that is scored lies.

    Attributes:
        size_hw: of the whole photo. left, top: px of it before the picture, which may be a crop.
    """

    size_hw: tuple[int, int]
    left: int = 0
    top: int = 0


@dataclass(frozen=True)
class ScoredMask:
    """One mask of a picture.

    Attributes:
        index: its row in the logits that were scored.
        stability: IoU of the masks at threshold + offset and threshold - offset; 0 when both are empty.
        box_xyxy: first and last column and row inside the mask, (x1, y1, x2, y2); zeros when it is empty.
        place: of the picture.
        coded: compressed run lengths in the whole photo, or as an array the bits inside the box, from `np.packbits`.
    """

    index: int
    stability: float
    box_xyxy: tuple[int, int, int, int]
    place: Place
    coded: bytes | np.ndarray

    def rle(self) -> dict[str, Any]:
        """Compressed COCO RLE in the whole photo."""
        if isinstance(self.coded, bytes):
            return {"size": list(self.place.size_hw), "counts": self.coded}
        canvas = np.zeros(self.place.size_hw, dtype=np.uint8, order="F")
        (x1, y1, x2, y2), left, top = self.box_xyxy, self.place.left, self.place.top
        height, width = y2 - y1 + 1, x2 - x1 + 1
        bits = np.unpackbits(self.coded, count=height * width).reshape(height, width)
        canvas[top + y1 : top + y2 + 1, left + x1 : left + x2 + 1] = bits
        return encode_mask(canvas)


def score_masks(
    low_res_logits: Tensor,
    geometry: ImageGeometry,
    min_stability: float,
    offset: float,
    threshold: float = 0.0,
    place: Place | None = None,
) -> list[ScoredMask]:
    """Masks that are stable enough, at the photo's size.

    Args:
        low_res_logits: (N, 4h, 4w), covering the padded input.
        geometry: the picture's sizes.
        min_stability: masks below it are dropped; 0 keeps all.
        offset: of the thresholds that stability compares, >= 0.
        threshold: logits above it are inside.
        place: None: the picture is the whole photo.
    Returns:
        The masks kept, in the order of the logits.
    """
    place = place or Place(geometry.original_size_hw)
    low, high = threshold - offset, threshold + offset
    levels = (low, threshold, high)
    if low_res_logits.device.type != "cpu":
        return _score_on_device(low_res_logits, geometry, levels, min_stability, place)
    compiled = kernels()
    if compiled is not None:
        return _score_natively(compiled, low_res_logits, geometry, levels, min_stability, place)
    scored = []
    for index, top, left, logits in _upscaled_regions(low_res_logits, geometry, low):
        outer = int(np.count_nonzero(logits > low))
        inner = int(np.count_nonzero(logits > high))
        stability = _stability(inner, outer)
        if _is_stable(stability, min_stability):
            mask = ScoredMask(index, float(stability), *_pack(logits > threshold, top, left, place))
            large = len(mask.coded) > _MOST_PACKED_BYTES
            scored.append(replace(mask, coded=mask.rle()["counts"]) if large else mask)
    return scored


def _stability(inner: int, outer: int) -> np.float32:
    """The released code divides integers as float32; equality with the threshold must fall the same way."""
    return np.float32(inner) / np.float32(outer) if outer else np.float32(0.0)


def _is_stable(stability: np.float32, least: float) -> bool:
    return not (least > 0.0 and stability < np.float32(least))


def _score_natively(
    compiled: Kernels,
    low_res_logits: Tensor,
    geometry: ImageGeometry,
    levels: tuple[float, float, float],
    min_stability: float,
    place: Place,
) -> list[ScoredMask]:
    sizes = (*geometry.resized_size_hw, *geometry.original_size_hw, *place.size_hw, place.top, place.left)
    counts, boxes, codes = compiled.score(_covering(low_res_logits, geometry), sizes, levels, min_stability)
    scored = []
    for index, ((inner, outer), box, code) in enumerate(zip(counts.tolist(), boxes.tolist(), codes, strict=True)):
        stability = _stability(inner, outer)
        if _is_stable(stability, min_stability):
            scored.append(ScoredMask(index, float(stability), tuple(box), place, code))
    return scored


def _covering(low_res_logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """The part that covers the picture, and one row and column more, as the interpolation at its edge sees them."""
    height, width = geometry.resized_size_hw
    return low_res_logits[:, : -(-height // LOW_RES_STRIDE) + 1, : -(-width // LOW_RES_STRIDE) + 1].float()


def _pack(mask: np.ndarray, top: int, left: int, place: Place) -> tuple[tuple[int, int, int, int], Place, np.ndarray]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0), place, np.zeros(1, dtype=np.uint8)
    (y1, y2), (x1, x2) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    bits = np.packbits(mask[y1 : y2 + 1, x1 : x2 + 1])
    return (left + x1, top + y1, left + x2, top + y2), place, bits


def _score_on_device(
    low_res_logits: Tensor,
    geometry: ImageGeometry,
    levels: tuple[float, float, float],
    min_stability: float,
    place: Place,
) -> list[ScoredMask]:
    """Whole photos, several at a time, where the logits are."""
    height, width = geometry.original_size_hw
    margins = (
        place.left,
        place.size_hw[1] - place.left - width,
        place.top,
        place.size_hw[0] - place.top - height,
    )
    pixels = max(height * width, int(np.prod(geometry.resized_size_hw)))
    step = max(_BATCH_BUDGET // pixels, 1)
    scored = []
    for start in range(0, len(low_res_logits), step):
        logits = postprocess_masks(low_res_logits[start : start + step, None], geometry)[:, 0]
        columns = score_logits(logits, levels, min_stability, margins)
        for row, stability, (x1, y1, x2, y2), code in zip(*columns, strict=True):
            scored.append(ScoredMask(start + row, stability, (x1, y1, x2, y2), place, code))
    return scored


def _upscaled_regions(
    low_res_logits: Tensor, geometry: ImageGeometry, lowest: float
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """For each mask: index, top, left and its float32 logits on the photo, where they can exceed `lowest`."""
    (height, width), stride = geometry.resized_size_hw, LOW_RES_STRIDE
    logits = _covering(low_res_logits, geometry)
    hot = logits > lowest
    rows_hot, columns_hot = hot.any(dim=2).numpy(), hot.any(dim=1).numpy()
    resize_rows = _AxisResize(height, geometry.original_size_hw[0])
    resize_columns = _AxisResize(width, geometry.original_size_hw[1])
    for index in range(len(logits)):
        y, x = _span(rows_hot[index]), _span(columns_hot[index])
        part = logits[index, y, x]
        size = (part.shape[0] * stride, part.shape[1] * stride)
        upscaled = F.interpolate(part[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        top, left = y.start * stride, x.start * stride
        upscaled = upscaled[: height - top, : width - left]
        if geometry.original_size_hw != geometry.resized_size_hw:
            upscaled, top, left = _resize(upscaled, top, left, resize_rows, resize_columns)
        yield index, top, left, upscaled.numpy()


def _span(hot: np.ndarray) -> slice:
    """From two before the first to two after the last true entry; one entry when there is none.

    The outermost values of a region are upscaled without their true neighbours. One entry of margin makes them too low
    to count; the second keeps them from those that the resize to the photo mixes with values that do count.
    """
    where = np.flatnonzero(hot)
    if not len(where):
        return slice(0, 1)
    return slice(max(int(where[0]) - 2, 0), min(int(where[-1]) + 3, len(hot)))


class _AxisResize:
    """Bilinear resize of one axis: which two samples each output lies between, and how far, exactly as
    `F.interpolate(..., align_corners=False)` has it in float32."""

    def __init__(self, size: int, new_size: int) -> None:
        scale = np.float32(size) / np.float32(new_size)
        source = scale * (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
        source = np.maximum(source, np.float32(0.0))
        self.first = np.minimum(source.astype(np.int64), size - 1)
        self.second = np.minimum(self.first + 1, size - 1)
        self.weight = np.clip(source - self.first.astype(np.float32), 0, 1).astype(np.float32)

    def inside(self, start: int, stop: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """Outputs that see samples start .. stop - 1: the first one's position, and the two sample numbers, counted
        from `start`, and the weights of the second, of them all. A sample beyond the range becomes the nearest in it;
        both are too low to count."""
        begin = int(np.searchsorted(self.second, start, side="left"))
        end = int(np.searchsorted(self.first, stop, side="left"))
        samples = (np.clip(x[begin:end], start, stop - 1) - start for x in (self.first, self.second))
        first, second = (torch.from_numpy(x) for x in samples)
        return begin, first, second, torch.from_numpy(self.weight[begin:end])


def _resize(logits: Tensor, top: int, left: int, rows: _AxisResize, columns: _AxisResize) -> tuple[Tensor, int, int]:
    """A region of the resized photo -> the region of the original photo that sees it, and its top and left."""
    left, first, second, weight = columns.inside(left, left + logits.shape[1])
    wide = torch.lerp(logits[:, first], logits[:, second], weight)
    top, first, second, weight = rows.inside(top, top + len(logits))
    out = torch.empty(len(first), wide.shape[1])
    step = max(_CHUNK_BUDGET // max(wide.shape[1], 1), 1)
    for start in range(0, len(first), step):
        chunk = slice(start, start + step)
        torch.lerp(wide[first[chunk]], wide[second[chunk]], weight[chunk, None], out=out[chunk])
    return out, top, left
