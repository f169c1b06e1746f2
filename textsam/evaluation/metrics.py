"""Measures of masks, rankings and confidences: pure functions of numpy arrays.

Dimension key: N instances, H W pixels.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def mask_iou(masks: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of pairs of masks.

    Args:
        masks, targets: (N, H, W) bool, compared one to one.
        ignore: (H, W) bool, pixels left out of both.
    Returns:
        (N,) float64 in [0, 1]; 1 where both are empty (nothing to find, nothing found).
    Raises:
        ValueError: the shapes differ.
    """
    intersection, union = intersection_and_union(masks, targets, ignore)
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def intersection_and_union(
    masks: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel counts ((N,), (N,)) int64 of the two; arguments as in `mask_iou`."""
    if masks.shape != targets.shape or masks.ndim != 3:
        raise ValueError(f"masks and targets must both be (N, H, W), got {masks.shape} and {targets.shape}")
    if masks.dtype != bool or targets.dtype != bool:
        raise ValueError(f"masks and targets must be bool, got {masks.dtype} and {targets.dtype}")
    if ignore is not None:
        if ignore.shape != masks.shape[1:]:
            raise ValueError(f"ignore must be {masks.shape[1:]}, got {ignore.shape}")
        if ignore.any():
            masks, targets = masks & ~ignore, targets & ~ignore
    intersection = np.count_nonzero(masks & targets, axis=(1, 2))
    union = np.count_nonzero(masks | targets, axis=(1, 2))
    return intersection.astype(np.int64), union.astype(np.int64)


def count_matches(masks: list[dict[str, Any]], targets: list[dict[str, Any]], least_iou: float = 0.5) -> int:
    """How many of the masks (compressed RLE, the surest first) have an IoU of at least `least_iou` with one of the
    targets (compressed RLE) that none before them has; each takes the one that it fits best."""
    from pycocotools import mask as coco_mask

    if not masks or not targets:
        return 0
    iou = coco_mask.iou(masks, targets, [False] * len(targets))
    free, count = np.ones(len(targets), bool), 0
    for row in iou * (iou >= least_iou):
        best = int((row * free).argmax())
        if row[best] * free[best] > 0:
            free[best] = False
            count += 1
    return count


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes (N, 4) float64 xyxy of (N, H, W) bool masks; zeros when empty.

    The edges are those of the outermost pixels (x1 = last column + 1), as in COCO, so that the box has the mask's
    width.
    """
    boxes = np.zeros((len(masks), 4))
    for i, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def filled_boxes(boxes_xyxy: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, 4) boxes -> (N, H, W) bool, the pixels whose centre is inside: what a mask must beat to be worth anything."""
    x, y = _pixel_centres(height, width)
    x0, y0, x1, y1 = (boxes_xyxy[:, i, None, None] for i in range(4))
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def ellipses_in_boxes(boxes_xyxy: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, 4) boxes -> (N, H, W) bool, the pixels whose centre is inside the inscribed ellipse: a better guess still."""
    x, y = _pixel_centres(height, width)
    x0, y0, x1, y1 = (boxes_xyxy[:, i, None, None] for i in range(4))
    half_width, half_height = np.maximum(x1 - x0, 1e-9) / 2, np.maximum(y1 - y0, 1e-9) / 2
    return ((x - (x0 + x1) / 2) / half_width) ** 2 + ((y - (y0 + y1) / 2) / half_height) ** 2 <= 1


def auroc(positives: Sequence[float] | np.ndarray, negatives: Sequence[float] | np.ndarray) -> float | None:
    """Chance that a random positive scores above a random negative (ties count half); None when either is missing.

    Equal to the area under the ROC curve (Mann-Whitney).
    """
    positives, negatives = np.sort(np.asarray(positives, float)), np.sort(np.asarray(negatives, float))
    if len(positives) == 0 or len(negatives) == 0:
        return None
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float((below + not_above).sum() / 2 / (len(positives) * len(negatives)))


def expected_calibration_error(
    confidences: Sequence[float] | np.ndarray, outcomes: Sequence[float] | np.ndarray, bins: int = 10
) -> float | None:
    """Mean |confidence - outcome| of equal-width bins of confidence, weighted by their counts; None without data.

    Args:
        confidences: (N,) in [0, 1].
        outcomes: (N,) in [0, 1]: 1 for right and 0 for wrong, or a quality such as the true IoU.
    Source: Guo et al. 2017, *On Calibration of Modern Neural Networks*, equation 3.
    """
    confidences, outcomes = np.asarray(confidences, float), np.asarray(outcomes, float)
    if confidences.shape != outcomes.shape:
        raise ValueError(f"confidences and outcomes must match, got {confidences.shape} and {outcomes.shape}")
    if len(confidences) == 0:
        return None
    index = np.clip((confidences * bins).astype(int), 0, bins - 1)
    gaps = np.abs(np.bincount(index, confidences - outcomes, minlength=bins))
    return float(gaps.sum() / len(confidences))


def mean(values: Iterable[float]) -> float | None:
    """The mean, None when there is nothing."""
    values = list(values)
    return float(np.mean(values)) if values else None


def semantic_scores(names: Sequence[str], intersections: Sequence[int], unions: Sequence[int]) -> dict[str, Any]:
    """Three ways to average the IoU of (image, class) pairs whose class is in the image.

    Args:
        names: the class of every pair.
        intersections, unions: pixel counts of every pair.
    Returns:
        miou_pairs: mean IoU over the pairs.
        miou_classes: mean over classes of each class's mean over its pairs.
        iou_dataset: mean over classes of (sum of intersections / sum of unions). Unlike the figure of the VOC
            benchmark, images without the class do not count here.
        per_class: class -> (mean over its pairs, count of pairs).
    """
    per_class: dict[str, list[float]] = defaultdict(list)
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for name, intersection, union in zip(names, intersections, unions, strict=True):
        per_class[name].append(intersection / union if union else 1.0)
        sums[name] += (intersection, union)
    return {
        "miou_pairs": mean(iou for ious in per_class.values() for iou in ious),
        "miou_classes": mean(float(np.mean(ious)) for ious in per_class.values()),
        "iou_dataset": mean(i / u if u else 1.0 for i, u in sums.values()),
        "per_class": {name: (mean(ious), len(ious)) for name, ious in sorted(per_class.items())},
    }


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures for masks; None where there is no ground truth.

    Attributes:
        ap: mean over IoU 0.50, 0.55 ... 0.95, classes and recall levels. ap50, ap75: at one IoU.
        ar100: recall with at most 100 detections an image and class, mean over IoU.
        confidences, correct: of every detection that counts (its class and image are evaluated, and it does not lie
            in a crowd): its score, and whether it matches a ground truth at IoU 0.5.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ar100: float | None
    confidences: list[float]
    correct: list[bool]


def coco_average_precision(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> AveragePrecision:
    """COCO mask AP by pycocotools, silently.

    Args:
        ground_truth: {"images", "annotations", "categories"} of COCO, masks as RLE.
        detections: [{"image_id", "category_id", "segmentation": RLE, "score"}].
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not any(not a.get("iscrowd") for a in ground_truth["annotations"]):
        return AveragePrecision(None, None, None, None, [], [])
    if not detections:
        return AveragePrecision(0.0, 0.0, 0.0, 0.0, [], [])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        # pycocotools wants sizes of the images, but reads them only for polygons.
        images = [{"height": 0, "width": 0} | image for image in ground_truth["images"]]
        coco.dataset = {"info": {}, **ground_truth, "images": images}
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(detections), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    confidences: list[float] = []
    correct: list[bool] = []
    all_areas = evaluator.params.areaRng[0]
    for result in evaluator.evalImgs:
        if result is not None and result["aRng"] == all_areas:
            counts = ~np.asarray(result["dtIgnore"][0], bool)
            confidences += np.asarray(result["dtScores"], float)[counts].tolist()
            correct += (np.asarray(result["dtMatches"][0])[counts] > 0).tolist()
    ap, ap50, ap75, ar100 = (float(evaluator.stats[index]) for index in (0, 1, 2, 8))
    return AveragePrecision(ap, ap50, ap75, ar100, confidences, correct)


def _pixel_centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(width)[None, None, :] + 0.5, np.arange(height)[None, :, None] + 0.5
