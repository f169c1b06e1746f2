"""What passes at several scales found, joined: large letters from the coarse ones, all else from the finest."""

from __future__ import annotations

import cv2
import numpy as np

from textsam.text_regions.quads import intersection_area, signed_area, size_of_quad

Boxes = tuple[np.ndarray, np.ndarray]
"""quads (N, 4, 2) in original pixels and scores (N,)."""


def join_boxes(fine: Boxes, coarse: Boxes, min_side: float, covered: float) -> Boxes:
    """Boxes of a finer and a coarser pass.

    A box of the coarse pass counts when it is larger than what the fine pass reads whole, and when the fine boxes
    inside do not explain it already; then it takes the place of those, which are pieces of its letters.

    Args:
        min_side: pixels that the shorter side of a coarse box must have.
        covered: share of a coarse box that fine boxes must cover to explain it, and share of a fine box that must lie
            in a coarse one to be a piece of it.
    """
    fine_quads, fine_scores = fine
    keep = np.ones(len(fine_quads), bool)
    chosen = []
    for number, quad in enumerate(coarse[0]):
        if min(size_of_quad(quad)) < min_side:
            continue
        shared = np.array([intersection_area(quad, other) for other in fine_quads])
        if shared.sum() >= covered * signed_area(quad):
            continue
        chosen.append(number)
        keep &= np.array([s < covered * signed_area(q) for s, q in zip(shared, fine_quads, strict=True)], bool)
    return (
        np.concatenate([fine_quads[keep], coarse[0][chosen]]),
        np.concatenate([fine_scores[keep], coarse[1][chosen]]),
    )


def join_areas(fine: np.ndarray, coarse: np.ndarray, min_side: float, threshold: float) -> np.ndarray:
    """Logits (H, W) of an area in original pixels: those of the fine pass, and large patches of the coarse one.

    Args:
        min_side: pixels that both sides of a patch's upright box must have to be taken from the coarse pass.
        threshold: logit above which a place belongs to a patch.
    """
    inside = (coarse > threshold).astype(np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    joined = fine.copy()
    for number in range(1, count):
        left, top, width, height, _ = (int(value) for value in statistics[number])
        if min(width, height) < min_side:
            continue
        place = (slice(top, top + height), slice(left, left + width))
        patch = labels[place] == number
        joined[place] = np.where(patch, np.maximum(joined[place], coarse[place]), joined[place])
    return joined
