"""Boxes and simulated clicks on the instances of one image.

Dimension key: N instances, H W pixels, M masks per prompt.
Sources: Kirillov et al. 2023, section 7.1 (clicks at the point farthest from the boundary: first of the object, then of
the error region of the last prediction); false negatives and false positives are looked at apart, as in Sofiiuk et al.
2021, *Reviving Iterative Training with Mask Guidance* (RITM), so that a click never lies on the seam between the two.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import distance_transform_edt

from textsam.evaluation.metrics import ellipses_in_boxes, filled_boxes, mask_iou, tight_boxes
from textsam.evaluation.options import EvaluationOptions, Promptable
from textsam.files.coco import Region

if TYPE_CHECKING:
    import supervision as sv


@dataclass
class GeometryScores:
    """Per-instance results of one image; every list has N entries, a prompt that was not asked for none.

    Attributes:
        click_iou: number of clicks -> IoU of each instance.
        one_click_oracle: the best of the three masks of the first click, chosen by the truth.
        one_click_single: the first click with multimask_output=False, the one mask that `predict` gives by default.
        text_click: the first click together with the instance's name; `one_click_beside_text` is the IoU of that
            click alone, for the same instances. text_box, box_beside_text: the same of the box.
        *_confidence: the model's confidence in the mask beside it.
        *_masks: the predictions themselves (N, H, W) bool, and first_clicks (N, 2) xy, for pictures.
    """

    filled_box: list[float] = field(default_factory=list)
    ellipse: list[float] = field(default_factory=list)
    box: list[float] = field(default_factory=list)
    box_confidence: list[float] = field(default_factory=list)
    click_iou: dict[int, list[float]] = field(default_factory=dict)
    one_click_oracle: list[float] = field(default_factory=list)
    one_click_single: list[float] = field(default_factory=list)
    one_click_confidence: list[float] = field(default_factory=list)
    text_click: list[float] = field(default_factory=list)
    one_click_beside_text: list[float] = field(default_factory=list)
    text_box: list[float] = field(default_factory=list)
    box_beside_text: list[float] = field(default_factory=list)
    box_masks: np.ndarray | None = None
    click_masks: dict[int, np.ndarray] = field(default_factory=dict)
    first_clicks: np.ndarray | None = None

    def extend(self, other: GeometryScores) -> None:
        """Adds the results of another image or set, without its masks."""
        for key, values in vars(self).items():
            if isinstance(values, list):
                values.extend(getattr(other, key))
        for count, ious in other.click_iou.items():
            self.click_iou.setdefault(count, []).extend(ious)


def choose(regions: Sequence[Region], limit: int, key: str) -> list[Region]:
    """At most `limit` regions, at random but always the same ones for the same key, in their order."""
    if len(regions) <= limit:
        return list(regions)
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    return [regions[i] for i in sorted(generator.permutation(len(regions))[:limit])]


def farthest_from_boundary(region: np.ndarray) -> tuple[int, int, float]:
    """The point deepest inside a region; the image's border is a boundary too.

    Args:
        region: (H, W) bool, not empty.
    Returns:
        x, y in pixels; its distance to the boundary in pixels (0 when the region is empty).
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0.0
    top, left = rows[0], columns[0]
    crop = np.pad(region[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    distance = distance_transform_edt(crop)
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x + left - 1), int(y + top - 1), float(distance[y, x])


def next_click(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray) -> tuple[int, int, int] | None:
    """The next click of a simulated user, (x, y, label) with label 1 foreground or 0 background; None without error.

    Args:
        prediction, target, ignore: (H, W) bool; ignored pixels are never clicked on.
    """
    missed_x, missed_y, missed_depth = farthest_from_boundary(target & ~prediction & ~ignore)
    wrong_x, wrong_y, wrong_depth = farthest_from_boundary(prediction & ~target & ~ignore)
    if missed_depth == 0 and wrong_depth == 0:
        return None
    if missed_depth >= wrong_depth:
        return missed_x, missed_y, 1
    return wrong_x, wrong_y, 0


def score_geometry(
    model: Promptable,
    targets: np.ndarray,
    names: list[str | None],
    ignore: np.ndarray,
    options: EvaluationOptions,
) -> GeometryScores:
    """Prompts an image that was set with the boxes and simulated clicks of its instances.

    Args:
        targets: (N, H, W) bool, none of them empty.
        names: N names; None where the model does not know the word (left out of text + click and text + box).
        ignore: (H, W) bool, pixels that count nowhere.
    """
    scores = GeometryScores()
    clicks = options.clicks if options.asks("point") else ()
    text_click, text_box = options.asks("text+point"), options.asks("text+box")
    boxes = tight_boxes(targets)
    height, width = ignore.shape
    scores.filled_box = mask_iou(filled_boxes(boxes, height, width), targets, ignore).tolist()
    scores.ellipse = mask_iou(ellipses_in_boxes(boxes, height, width), targets, ignore).tolist()
    if options.asks("box") or text_box:
        detections = model.predict(boxes=boxes)
        scores.box_masks = _masks(detections, len(targets), ignore.shape)
        scores.box = mask_iou(scores.box_masks, targets, ignore).tolist()
        scores.box_confidence = np.asarray(detections.confidence, float).tolist()
    named = [i for i, name in enumerate(names) if name is not None]
    texts = [str(names[i]) for i in named]
    if text_box and named:
        detections = model.predict(text=texts, boxes=boxes[named])
        scores.text_box = mask_iou(_masks(detections, len(named), ignore.shape), targets[named], ignore).tolist()
        scores.box_beside_text = [scores.box[i] for i in named]
    if clicks or text_click:
        first = np.array([farthest_from_boundary(target & ~ignore)[:2] for target in targets], float)[:, None]
        scores.first_clicks = first[:, 0]
        _score_clicks(model, targets, ignore, first, clicks or (1,), scores)
    if clicks:
        single = model.predict(points=first, point_labels=np.ones((len(first), 1), int))
        scores.one_click_single = mask_iou(_masks(single, len(targets), ignore.shape), targets, ignore).tolist()
    if text_click and named:
        detections = model.predict(text=texts, points=first[named], point_labels=np.ones((len(named), 1), int))
        scores.text_click = mask_iou(_masks(detections, len(named), ignore.shape), targets[named], ignore).tolist()
        if 1 in scores.click_masks:
            scores.one_click_beside_text = mask_iou(scores.click_masks[1][named], targets[named], ignore).tolist()
    return scores


def _score_clicks(
    model: Promptable,
    targets: np.ndarray,
    ignore: np.ndarray,
    points: np.ndarray,
    counts: tuple[int, ...],
    scores: GeometryScores,
) -> None:
    """Clicks 1 ... max(counts); the first with three masks, of which the one with the highest predicted IoU goes on."""
    total = len(targets)
    detections = model.predict(
        points=points, point_labels=np.ones((total, 1), int), multimask_output=True, return_logits=True
    )
    masks = _masks(detections, None, ignore.shape)
    if len(masks) % total:
        raise ValueError(f"expected the same number of masks for each of {total} clicks, got {len(masks)} in all")
    masks = masks.reshape(total, -1, *ignore.shape)
    predicted = np.asarray(detections.data["predicted_iou"], float).reshape(total, -1)
    best, rows = predicted.argmax(axis=1), np.arange(total)
    every_iou = [mask_iou(masks[:, m], targets, ignore) for m in range(masks.shape[1])]
    scores.one_click_oracle = np.max(every_iou, axis=0).tolist()
    confidence = np.asarray(detections.confidence, float).reshape(total, -1)
    scores.one_click_confidence = confidence[rows, best].tolist()
    logits = np.asarray(detections.data["low_res_logits"])
    logits = logits.reshape(total, masks.shape[1], *logits.shape[-2:])[rows, best][:, None]
    current = masks[rows, best]

    labels = np.ones((total, 1), int)
    active = rows  # instances whose mask is not perfect yet; they all have the same number of clicks
    for count in range(1, max(counts) + 1):
        if count > 1 and len(active):
            found = [next_click(current[i], targets[i], ignore) for i in active]
            keep = np.array([click is not None for click in found])
            added = np.array([click for click in found if click is not None], float).reshape(-1, 1, 3)
            active, logits = active[keep], logits[keep]
            points = np.concatenate([points[keep], added[..., :2]], axis=1)
            labels = np.concatenate([labels[keep], added[..., 2].astype(int)], axis=1)
        if count > 1 and len(active):
            detections = model.predict(points=points, point_labels=labels, mask_input=logits, return_logits=True)
            current[active] = _masks(detections, len(active), ignore.shape)
            logits = np.asarray(detections.data["low_res_logits"])
            logits = logits.reshape(len(active), 1, *logits.shape[-2:])
        if count in counts:
            scores.click_iou[count] = mask_iou(current, targets, ignore).tolist()
            scores.click_masks[count] = current.copy()


def _masks(detections: sv.Detections, count: int | None, size: tuple[int, ...]) -> np.ndarray:
    """(count, H, W) bool masks of detections; checked, since everything after depends on their order and number."""
    masks = detections.mask
    if masks is None:
        masks = np.zeros((0, *size), bool)
    masks = np.asarray(masks, bool)
    if masks.shape[1:] != size or (count is not None and len(masks) != count):
        raise ValueError(f"expected {count} masks of {size} from predict, got {masks.shape}")
    return masks
