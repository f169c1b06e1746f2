"""Small things in large pictures: words asked of the whole photo and of slices of it, in which small things are large.

The slices and what overlaps are supervision's, as are the masks that take no memory for the rest of the photo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textsam.files.images import read_image

if TYPE_CHECKING:
    import supervision as sv

    from textsam.predictor import TextSam

OVERLAP = 0.25  # of a slice with the next, of its side: what is no larger is whole in one of them
SAME = 0.5  # share of the smaller of two masks that lies in the other, from which on they show the same
LEAST_SIDE = 32
EDGE = 0.01  # of a slice's side: what ends as near to its edge is cut there, since masks may stop a little short of it
_PLACES = {"quad", "point_coords", "crop_box"}  # data that would have to move with the slices
_EDGES = "at_slice_edges"  # left, top, right, bottom


def find_in_slices(
    ask: Callable[[np.ndarray], sv.Detections], image: Any, side: int, max_instances: int | None = None
) -> sv.Detections:
    """What words find in a photo, its small things too.

    The whole photo is asked first. Square slices of it add what lies in one of them from end to end and was not found
    before; several such things in the place of one coarse find of the whole photo replace it. Each slice is asked by
    itself: what `predict` leaves out as far less sure than the best of its name is measured against the best there.

    Args:
        ask: of a picture (H, W, 3) uint8 RGB, such as `lambda part: sam.predict(part, text="cat")`: words alone, since
            clicks and boxes have one place only, and without logits.
        image: the photo, as `TextSam.predict` takes it. side: of the slices, px.
        max_instances: at most this many of each class, the most confident; None: all.
    Returns:
        as `ask`, each class's together and best first. Masks are an `sv.CompactMask`, so that a hundred small things in
        a photo of 4000 x 3000 px take megabytes and not a gigabyte; those of a photo no larger than a slice are plain.
    Raises:
        ValueError: a side below 32 px; an `ask` that reads written text or generates; or as `ask` and `read_image`.
    """
    import supervision as sv

    if side < LEAST_SIDE:
        raise ValueError(f"Expected slices of at least {LEAST_SIDE} px, got {side}: less shows nothing.")
    pixels = read_image(image)
    whole = ask(pixels)
    if places := sorted(_PLACES.intersection(whole.data)):
        raise ValueError(
            f"Expected what `predict` finds by words, got data of places ({', '.join(places)}): leave slices out, "
            "written text is read in tiles already, and `generate` has crop_n_layers."
        )
    if max(pixels.shape[:2]) <= side:
        return whole

    def ask_slice(part: np.ndarray) -> sv.Detections:
        found = ask(part)
        found.data[_EDGES] = _at_edges(found.xyxy, part.shape[:2], side)
        return found

    overlap = int(OVERLAP * side)
    slicer = sv.InferenceSlicer(
        ask_slice, slice_wh=side, overlap_wh=overlap, overlap_filter=sv.OverlapFilter.NONE, compact_masks=True
    )
    parts = _uncut(slicer(pixels), pixels.shape[:2], side)
    if whole.mask is not None:  # as that of `sv.Detections.empty()` is
        whole.mask = sv.CompactMask.from_dense(np.asarray(whole.mask), whole.xyxy, pixels.shape[:2])
    if not len(parts):
        return whole
    parts = parts.with_nms(SAME, overlap_metric=sv.OverlapMetric.IOS)
    if len(whole):
        whole, parts = _each_once(whole, parts)
    found = sv.Detections.merge([each for each in (whole, parts) if len(each)])
    class_ids, order = np.asarray(found.class_id), np.argsort(-np.asarray(found.confidence), kind="stable")
    best_first = [order[class_ids[order] == number][:max_instances] for number in np.unique(class_ids)]
    return found[np.concatenate(best_first)]  # type: ignore[return-value]


def refuse_levels(sam: TextSam, texts: Sequence[str]) -> None:
    """Raises ValueError where texts name levels of written text, before the first picture rather than once for each."""
    if sam.text_reader is not None and sam.text_reader.levels_asked(texts):
        raise ValueError("Expected no slices with written text, which is read in tiles already: leave them out.")


def _at_edges(xyxy: np.ndarray, size_hw: tuple[int, ...], side: int) -> np.ndarray:
    """(N, 4) bool: which edges of a picture the boxes reach."""
    limits = np.array([0, 0, size_hw[1] - 1, size_hw[0] - 1])
    return np.asarray(np.abs(xyxy - limits) <= EDGE * side)


def _uncut(parts: sv.Detections, size_hw: tuple[int, ...], side: int) -> sv.Detections:
    """Without what reaches an edge of its slice that is not one of the photo."""
    if not len(parts):
        return parts
    cut = parts.data[_EDGES] & ~_at_edges(parts.xyxy, size_hw, side)
    kept: Any = parts[~cut.any(axis=1)]
    del kept.data[_EDGES]
    return kept


def _each_once(whole: sv.Detections, parts: sv.Detections) -> tuple[sv.Detections, sv.Detections]:
    """Without parts that the whole photo shows, too, or finds of the whole photo that several parts make up."""
    import supervision as sv

    shared = sv.mask_iou_batch(whole.mask, parts.mask, sv.OverlapMetric.IOS)
    areas, own = np.asarray(parts.area, float), np.asarray(whole.area, float)
    same = (shared > SAME) & (np.asarray(whole.class_id)[:, None] == parts.class_id)
    covered = np.where(same, shared * np.minimum(areas, own[:, None]), 0).sum(axis=1)
    coarse = (same.sum(axis=1) > 1) & (covered > SAME * own)
    return whole[~coarse], parts[~same[~coarse].any(axis=0)]  # type: ignore[return-value]
