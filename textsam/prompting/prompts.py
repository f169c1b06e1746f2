"""What a user may ask, checked: a wrong prompt gets one sentence that says what was expected, what came, and the mend.

Checks need nothing but the photo's size, so they come before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from textsam.language.vocabulary import validate_texts
from textsam.prompting.detections import UNNAMED_CLASS, to_numpy
from textsam.prompting.transforms import ImageGeometry, mask_to_low_res_logits

# Prompts in one decoder call: bounds the memory, whatever the number of objects.
PROMPTS_PER_BATCH = 64
# Labels of points: background, foreground, and a point that only fills up a shorter list.
POINT_LABELS = (0, 1, -1)


@dataclass(frozen=True)
class GeometricPrompts:
    """N checked prompt sets, one object each, in pixels of the encoder's input.

    Attributes:
        point_coords: (N, K, 2) float32 xy, or None.
        point_labels: (N, K) int64: 1 foreground, 0 background, -1 padding; None without points.
        boxes: (N, 4) float32 xyxy, or None.
        mask_input: (N, 1, 4h, 4w) float32 logits, or None.
        class_id: (N,) int64, those of the detector that made the boxes, else 0.
        class_names: N names, those of the detector that made the boxes, else "object".
    """

    point_coords: np.ndarray | None
    point_labels: np.ndarray | None
    boxes: np.ndarray | None
    mask_input: torch.Tensor | None
    class_id: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.class_names)


def check_geometry(
    geometry: ImageGeometry, points: Any = None, point_labels: Any = None, boxes: Any = None, mask_input: Any = None
) -> GeometricPrompts | None:
    """Check points, boxes and masks against the photo and take them to the encoder's input.

    Args:
        geometry: the photo's sizes.
        points: (K, 2) for one object, or (N, K, 2): xy in original pixels.
        point_labels: (K,) or (N, K): 1 foreground, 0 background, -1 padding; None: all foreground.
        boxes: (4,), (N, 4) xyxy in original pixels, or the `sv.Detections` or ultralytics' `Boxes` of any detector.
        mask_input: low-res logits (4h, 4w), (N, 4h, 4w) or (N, 1, 4h, 4w) float; or bool of the photo's size, (H, W)
            or (N, H, W); or `sv.Detections` with masks.
    Returns:
        The prompts, or None when there is no geometric prompt at all.
    Raises:
        TypeError: something that is not numbers.
        ValueError: a wrong shape, number, label or place.
    """
    if points is None and point_labels is not None:
        raise ValueError(
            "Expected points with point_labels, got labels alone: pass points=... too, or drop the labels."
        )
    counts: dict[str, int] = {}
    coords = labels = box_array = logits = None
    if points is not None:
        coords = _check_points(points)
        labels = _check_labels(point_labels, coords)
        inside = labels != -1
        _check_inside(coords[inside], geometry.original_size_hw, "points")
        given = coords[inside]
        if given.size and (given > 0).all() and (given % 1 > 0).all():
            refuse_normalised(given, "points")
        coords = np.where(inside[..., None], coords, 0.0)
        counts["points"] = len(coords)
    if boxes is not None:
        if hasattr(boxes, "xyxy"):
            box_array = _boxes_of_detections(boxes, geometry.original_size_hw)
        else:
            box_array = _check_boxes(boxes, geometry.original_size_hw)
        counts["boxes"] = len(box_array)
    if mask_input is not None:
        logits = _check_mask_input(mask_input, geometry)
        counts["mask_input"] = len(logits)
    if not counts:
        return None
    if len(set(counts.values())) > 1:
        described = ", ".join(f"{count} in {name}" for name, count in counts.items())
        raise ValueError(f"Expected the same number of prompt sets everywhere, got {described}: pass one per object.")
    number = next(iter(counts.values()))
    detections = next((each for each in (boxes, mask_input) if hasattr(each, "xyxy")), None)
    class_id, class_names = _classes_of_detections(detections)
    return GeometricPrompts(
        point_coords=None if coords is None else geometry.points_to_input(coords).astype(np.float32),
        point_labels=labels,
        boxes=None if box_array is None else geometry.boxes_to_input(box_array).astype(np.float32),
        mask_input=logits,
        class_id=np.zeros(number, dtype=np.int64) if class_id is None else class_id,
        class_names=[UNNAMED_CLASS] * number if class_names is None else class_names,
    )


def listed_texts(text: Any) -> Any:
    """An array or an iterator of texts as a list, anything else as it is."""
    if isinstance(text, np.ndarray):
        return text.tolist()
    return list(text) if isinstance(text, Iterator) else text


def check_texts(text: Any, name: str = "text") -> list[str]:
    """One string or a sequence, array or iterator of strings -> a list of stripped strings.

    Raises:
        TypeError: neither a string nor a sequence of strings.
        ValueError: no string at all, an empty one, or one that is too long.
    """
    texts = listed_texts(text)
    texts = [texts] if isinstance(texts, str) else texts
    if isinstance(texts, Sequence) and len(texts) == 0:
        raise ValueError(f"Expected at least one {name}, got an empty list: name what to look for, or leave it out.")
    try:
        return validate_texts(texts)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("texts", name)) from None


def check_threshold(threshold: Any) -> float | None:
    """A number in [0, 1], or None."""
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.integer, np.floating)):
        raise TypeError(f"Expected threshold as a number in [0, 1], got {type(threshold).__name__}: pass 0.5, say.")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"Expected threshold in [0, 1], got {threshold}: it is compared with the confidence.")
    return float(threshold)


def check_max_instances(max_instances: Any) -> int | None:
    """A positive whole number, or None."""
    if max_instances is None:
        return None
    if isinstance(max_instances, bool) or not isinstance(max_instances, (int, np.integer)):
        raise TypeError(f"Expected max_instances as a whole number, got {type(max_instances).__name__}: pass 10, say.")
    if max_instances < 1:
        raise ValueError(f"Expected max_instances of at least 1, got {max_instances}: leave it out for no limit.")
    return int(max_instances)


def _numbers(values: Any, name: str) -> np.ndarray:
    """Any array-like of numbers as float64; text, None and ragged lists raise TypeError or ValueError."""
    if isinstance(values, torch.Tensor):
        values = to_numpy(values)
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"Expected {name} in rows of equal length, got a ragged list: fill short rows up (labels -1 mark filling)."
        ) from None
    if array.dtype.kind not in "iuf":  # integers, unsigned integers, floats; not bool, text or objects
        raise TypeError(f"Expected {name} as numbers, got {array.dtype}: pass a list or an array of int or float.")
    return array.astype(np.float64)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite {name}, got NaN or infinity: remove those rows.")
    return array


def _check_points(points: Any) -> np.ndarray:
    array = _numbers(points, "points")
    shape = array.shape
    if array.ndim == 2 and array.shape[1] == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != 2:
        raise ValueError(
            f"Expected points of shape (K, 2) for one object or (N, K, 2), got {shape}: write [[x, y]] for one point."
        )
    if array.shape[1] == 0:
        raise ValueError(f"Expected at least one point for each object, got shape {shape}: leave points out for none.")
    return _finite(array, "points")


def _check_labels(labels: Any, coords: np.ndarray) -> np.ndarray:
    if labels is None:
        return np.ones(coords.shape[:2], dtype=np.int64)
    array = _numbers(labels, "point_labels")
    shape = array.shape
    if array.ndim == 1 and len(coords) == 1:
        array = array[None]
    if array.shape != coords.shape[:2]:
        expected = coords.shape[1:2] if len(coords) == 1 else coords.shape[:2]
        raise ValueError(f"Expected point_labels of shape {expected}, got {shape}: give one label for each point.")
    wrong = ~np.isin(array, POINT_LABELS)
    if wrong.any():
        raise ValueError(
            f"Expected point_labels of 1 (foreground), 0 (background) or -1 (filling), got {array[wrong][0]:g}."
        )
    return array.astype(np.int64)


def refuse_normalised(coordinates: np.ndarray, name: str) -> None:
    """Coordinates in [0, 1], fractions among them: pixels would all be the first one.

    Raises:
        ValueError: such are these.
    """
    if coordinates.size and (coordinates >= 0).all() and (coordinates <= 1).all() and (coordinates % 1 > 0).any():
        first = ", ".join(f"{value:g}" for value in coordinates.reshape(-1, coordinates.shape[-1])[0])
        raise ValueError(
            f"Expected {name} in pixels, got values that look normalised, ({first}): multiply them by the image's "
            "width and height."
        )


def _check_inside(xy: np.ndarray, size_hw: tuple[int, int], name: str) -> None:
    height, width = size_hw
    outside = (xy < 0).any(-1) | (xy > (width, height)).any(-1)
    if outside.any():
        x, y = xy[outside][0]
        raise ValueError(
            f"Expected {name} inside the image (x in 0..{width}, y in 0..{height}), got ({x:g}, {y:g}): "
            "give pixels of the original image, x first."
        )


def _check_boxes(boxes: Any, size_hw: tuple[int, int]) -> np.ndarray:
    array = _numbers(boxes, "boxes")
    shape = array.shape
    if array.shape == (4,):
        array = array[None]
    if array.shape == (0,):
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"Expected boxes of shape (4,) or (N, 4), got {shape}: write [x1, y1, x2, y2] for each.")
    _check_upright(_finite(array, "boxes"))
    _check_inside(array.reshape(-1, 2), size_hw, "boxes")
    refuse_normalised(array, "boxes")
    return array


def _check_upright(boxes: np.ndarray) -> None:
    inverted = (boxes[:, 0] > boxes[:, 2]) | (boxes[:, 1] > boxes[:, 3])
    if inverted.any():
        box = ", ".join(f"{value:g}" for value in boxes[inverted][0])
        raise ValueError(
            f"Expected boxes as x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got [{box}]: "
            "swap the corners, or convert from x, y, width, height."
        )


def _boxes_of_detections(detections: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """(N, 4) boxes of a detector's result; those that overshoot the photo's edge are clipped to it."""
    height, width = size_hw
    boxes = _finite(_numbers(detections.xyxy, "boxes"), "boxes").reshape(-1, 4)
    _check_upright(boxes)
    refuse_normalised(boxes, "boxes")
    outside = (boxes[:, 2] < 0) | (boxes[:, 3] < 0) | (boxes[:, 0] > width) | (boxes[:, 1] > height)
    if outside.any():
        box = ", ".join(f"{value:g}" for value in boxes[outside][0])
        raise ValueError(
            f"Expected detections of this image ({width} x {height} pixels), got a box wholly outside it, [{box}]: "
            "pass the detections of the same image at its original size."
        )
    return np.clip(boxes, 0, (width, height, width, height))


def _classes_of_detections(detections: Any) -> tuple[np.ndarray | None, list[str] | None]:
    """(N,) class ids and N names of `sv.Detections` or of ultralytics' `Boxes`, as far as they have them."""
    ids = getattr(detections, "class_id", getattr(detections, "cls", None))
    class_id = None if ids is None else _numbers(ids, "class ids").astype(np.int64)
    data = getattr(detections, "data", None)
    names = data.get("class_name") if isinstance(data, dict) else None
    if names is None and class_id is not None:
        names = [f"class {number}" for number in class_id]
    return class_id, None if names is None else [str(name) for name in names]


def masks_of_detections(detections: Any, name: str) -> np.ndarray:
    """(N, H, W) bool, the masks of `sv.Detections`.

    Raises:
        ValueError: they have boxes alone.
    """
    masks = getattr(detections, "mask", None)
    if masks is None:
        raise ValueError(f"Expected {name} with masks, got detections without: pass them as boxes, or pass masks.")
    return np.asarray(masks, dtype=bool)


def _check_mask_input(mask_input: Any, geometry: ImageGeometry) -> torch.Tensor:
    if hasattr(mask_input, "xyxy"):
        mask_input = masks_of_detections(mask_input, "mask_input")
    array = to_numpy(mask_input) if isinstance(mask_input, torch.Tensor) else np.asarray(mask_input)
    if array.dtype.kind not in "bf":
        raise TypeError(
            f"Expected mask_input as float logits or as a bool mask, got {array.dtype}: pass mask.astype(bool)."
        )
    is_mask = array.dtype == bool
    if is_mask:
        expected, kind, mend = geometry.original_size_hw, "a bool mask", "resize it to the image"
    else:
        expected, kind = geometry.low_res_size_hw, "low-resolution logits"
        mend = "pass data['low_res_logits'] of a result for this image, or a bool mask of the image's size"
    if array.ndim not in (2, 3, 4) or array.shape[-2:] != expected or (array.ndim == 4 and array.shape[1] != 1):
        size = f"{expected[0]}, {expected[1]}"
        raise ValueError(f"Expected mask_input as {kind} of shape ({size}) or (N, {size}), got {array.shape}: {mend}.")
    array = array.reshape(1 if array.ndim == 2 else len(array), *expected)
    if is_mask:
        return mask_to_low_res_logits(array, geometry)
    return torch.from_numpy(_finite(array, "mask_input").astype(np.float32))[:, None]
