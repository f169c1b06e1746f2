"""From masks to `supervision.Detections`: boxes, stability, overlaps, suppression, and the result itself.

Everything that only needs shapes works on the decoder's low-resolution logits; only masks that are returned are
brought to the photo's own size.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import supervision as sv

# The class of an object that nobody named.
UNNAMED_CLASS = "object"


def stability_scores(logits: Tensor) -> Tensor:
    """How little a mask changes when its threshold moves: IoU of the masks at threshold 1 and -1.

    Args:
        logits: (..., h, w) float mask logits of any resolution.
    Returns:
        (...) float32 in [0, 1]; 0 where even the lower threshold selects nothing.
    Source: Kirillov et al. 2023, appendix B.
    """
    inner = (logits > 1.0).flatten(-2).sum(-1)
    outer = (logits > -1.0).flatten(-2).sum(-1)
    return inner / outer.clamp(min=1)


def boxes_of_masks(masks: np.ndarray) -> np.ndarray:
    """The tight box of every mask.

    Args:
        masks: (N, H, W) bool.
    Returns:
        (N, 4) float32 xyxy. As in SAM and in supervision, x2 and y2 are the last column and row *inside* the mask;
        the box of an empty mask is zeros.
    """
    count, height, width = masks.shape
    boxes = np.zeros((count, 4), dtype=np.float32)
    if count == 0:
        return boxes
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    boxes[:, 0], boxes[:, 1] = columns.argmax(axis=1), rows.argmax(axis=1)
    boxes[:, 2] = width - 1 - columns[:, ::-1].argmax(axis=1)
    boxes[:, 3] = height - 1 - rows[:, ::-1].argmax(axis=1)
    boxes[~rows.any(axis=1)] = 0.0
    return boxes


def mask_overlaps(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Overlaps of all pairs of masks.

    Args:
        masks: (N, h, w) bool.
    Returns:
        IoU (N, N), and containment (N, N): the intersection over the smaller of the two areas. Both float32 in
        [0, 1]; 0 where an empty mask takes part.
    """
    flat = masks.flatten(1).float()
    intersection = flat @ flat.T
    area = flat.sum(1)
    union = area[:, None] + area[None, :] - intersection
    smaller = torch.minimum(area[:, None], area[None, :])
    return intersection / union.clamp(min=1), intersection / smaller.clamp(min=1)


def mask_nms(
    masks: Tensor,
    scores: Tensor,
    iou_threshold: float,
    containment_threshold: float = 1.0,
    class_ids: Tensor | None = None,
) -> Tensor:
    """Greedy suppression on masks: the best stays, those that repeat it go.

    Args:
        masks: (N, h, w) bool, any resolution.
        scores: (N,) higher is better.
        iou_threshold: a mask goes when its IoU with a better one is above it.
        containment_threshold: a mask also goes when more than this share of the smaller of the two (it, or the better
            one) lies inside the other. 1.0 switches this off.
        class_ids: (N,) masks of different classes leave each other alone; None treats all alike.
    Returns:
        (K,) int64 indices of the masks that stay, best first. Equal scores keep their order.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if order.numel() == 0:
        return order
    iou, containment = mask_overlaps(masks[order])
    clash = (iou > iou_threshold) | (containment > containment_threshold)
    if class_ids is not None:
        clash &= class_ids[order][:, None] == class_ids[order][None, :]
    clash_rows = clash.cpu().numpy()
    alive = np.ones(len(clash_rows), dtype=bool)
    for i in range(len(clash_rows)):
        if alive[i]:
            alive[i + 1 :] &= ~clash_rows[i, i + 1 :]
    return order[torch.from_numpy(alive).to(order.device)]


def confidence_score(predicted_iou: Tensor, presence: Tensor | None = None, agreement: Tensor | None = None) -> Tensor:
    """The one number in [0, 1] by which results are ranked and thresholded.

    confidence is the geometric mean of clip(predicted_iou, 0, 1), presence and agreement, where the last two only count
    when they are given: how good the outline is, whether the named thing appears at all, how far the mask agrees with
    the name. A mean keeps the scale of one probability; a product of three would call a good find unlikely.

    Args:
        predicted_iou: (N,) the decoder's estimate, not clipped.
        presence: (N,) probability that the named thing is in the photo; with text only.
        agreement: (N,) agreement in [0, 1] of the mask with the text in CLIP's space; with text only.
    Returns:
        (N,) float32.
    """
    factors = [factor.float().clamp(0.0, 1.0) for factor in (predicted_iou, presence, agreement) if factor is not None]
    return torch.stack(factors).prod(0) ** (1 / len(factors))


def best_of_group(confidence: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) confidences and (N,) int, not negative, what each belongs to -> (N,) the highest of each one's group."""
    best = np.zeros(int(groups.max(initial=-1)) + 1, dtype=confidence.dtype)
    np.maximum.at(best, groups, confidence)
    return best[groups]


def to_detections(
    masks: np.ndarray,
    *,
    confidence: np.ndarray,
    class_id: np.ndarray | None = None,
    class_names: Sequence[str] | np.ndarray | None = None,
    data: Mapping[str, np.ndarray] | None = None,
) -> sv.Detections:
    """The result every part of TextSAM returns. N = 0 and N = 1 keep all axes and keys.

    Args:
        masks: (N, H, W) bool, original pixels.
        confidence: (N,) in [0, 1].
        class_id: (N,) int; None: 0 for all.
        class_names: N names, one for each detection (not for each class); None: "object" for all.
        data: more arrays of length N, such as predicted_iou, stability_score, presence, prompt_index.
    Returns:
        xyxy (N, 4) float32, mask (N, H, W) bool, confidence (N,) float32, class_id (N,) int64, and in `data` the given
        arrays and class_name (N,) str.
    Raises:
        ValueError: an array's length is not N.
    """
    with warnings.catch_warnings():  # supervision works without OpenCV, only slower at drawing
        warnings.filterwarnings("ignore", message="OpenCV .* is not installed", category=UserWarning)
        import supervision as sv

    count = len(masks)
    ids = np.zeros(count, dtype=np.int64) if class_id is None else np.asarray(class_id, dtype=np.int64)
    names = np.full(count, UNNAMED_CLASS) if class_names is None else np.array(list(class_names), dtype=str)
    extra = {key: np.asarray(value) for key, value in (data or {}).items()} | {"class_name": names}
    for key, value in {"confidence": confidence, "class_id": ids, **extra}.items():
        if len(value) != count:
            raise ValueError(f"Expected {count} values of {key}, one for each mask, got {len(value)}.")
    return sv.Detections(
        xyxy=boxes_of_masks(masks),
        mask=masks,
        confidence=np.asarray(confidence, dtype=np.float32),
        class_id=ids,
        data=extra,
    )


def word_scores(count: int, presence: Tensor | None = None, agreement: Tensor | None = None) -> dict[str, np.ndarray]:
    """`data` of what words were compared with: (N,) float32 each, NaN where none were, so that the results of a click
    and of a word can be merged."""
    scores = {"presence": presence, "agreement": agreement}
    nothing = torch.full((count,), torch.nan)
    return {name: to_numpy(nothing if values is None else values) for name, values in scores.items()}


def to_numpy(values: Tensor) -> np.ndarray:
    """Any tensor as a NumPy array on the CPU; bfloat16 and float16, which NumPy lacks or prints badly, as float32."""
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return values.detach().cpu().numpy()
