"""From a map of logits to boxes of text: connected parts, grown back by what the model draws them smaller.

The rule of growth is that of PSENet and DB (Wang et al. 2019; Liao et al. 2020): cores that stay apart where words
touch are what the network draws, and boxes come from growing the cores.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from textsam.text_regions.quads import grow_quad, quad_around, size_of_quad


@dataclass(frozen=True)
class BoxOptions:
    """How boxes are taken from a map.

    Attributes:
        threshold: probability above which a cell belongs to a core.
        upscale: times that the map is enlarged (bilinear) before, for outlines finer than its cells.
        min_side: boxes whose shorter side is below it, in pixels of the map's picture and after growing, are dropped.
        min_score: boxes of a lower mean probability inside their core are dropped.
        max_boxes: at most so many, the best.
    """

    threshold: float = 0.5
    upscale: int = 2
    min_side: float = 5.0
    min_score: float = 0.6
    max_boxes: int = 3000


def boxes_of_map(logits: np.ndarray, stride: int, shrink: float, options: BoxOptions) -> tuple[np.ndarray, np.ndarray]:
    """Rotated boxes of the connected parts of a map.

    Args:
        logits: (h, w) float32.
        stride: pixels of the picture per cell.
        shrink: s in [0, 0.5): the cores were drawn s times the box's shorter side smaller on all sides.
        options: what counts as a box.
    Returns:
        quads (N, 4, 2) float32 in the picture's pixels, and scores (N,) float32 in [0, 1]; in no order.
    """
    scale = options.upscale
    if scale > 1:
        size_wh = (logits.shape[1] * scale, logits.shape[0] * scale)
        logits = cv2.resize(logits, size_wh, interpolation=cv2.INTER_LINEAR)
    inside = (logits > np.log(options.threshold / (1 - options.threshold))).astype(np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    pixel = stride / scale  # of the enlarged map, in pixels of the picture
    quads, scores = [], []
    for number in range(1, count):
        left, top, width, height, _ = (int(value) for value in statistics[number])
        place = (slice(top, top + height), slice(left, left + width))
        core = labels[place] == number
        score = float(_sigmoid(logits[place][core]).mean())
        if score < options.min_score:
            continue
        quad = _grown_box(core, shrink) + np.array([left, top], np.float32)
        if min(size_of_quad(quad)) * pixel < options.min_side:
            continue
        quads.append(quad * pixel)
        scores.append(score)
    best = np.argsort(-np.array(scores), kind="stable")[: options.max_boxes]
    return np.array(quads, np.float32).reshape(-1, 4, 2)[best], np.array(scores, np.float32)[best]


def areas_of_mask(
    mask: np.ndarray, glue: np.ndarray, logits: np.ndarray, min_pixels: float, min_score: float
) -> list[tuple[np.ndarray, float, tuple[int, int, np.ndarray]]]:
    """The parts of an area, where parts that `glue` connects are one.

    Args:
        mask, glue: (H, W) bool; glue holds the mask.
        logits: (H, W) float32.
        min_pixels, min_score: parts of fewer pixels, or of a lower mean probability, are dropped.
    Returns:
        for each part its quad (4, 2), its score, and (left, top, (h, w) bool mask).
    """
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(glue.astype(np.uint8), connectivity=8)
    found = []
    for number in range(1, count):
        left, top, width, height, _ = (int(value) for value in statistics[number])
        place = (slice(top, top + height), slice(left, left + width))
        part = (labels[place] == number) & mask[place]
        pixels = int(np.count_nonzero(part))
        if pixels < max(min_pixels, 1):
            continue
        score = float(_sigmoid(logits[place][part]).mean())
        if score >= min_score:
            found.append((_grown_box(part, 0.0) + np.array([left, top], np.float32), score, (left, top, part)))
    return found


def _grown_box(core: np.ndarray, shrink: float) -> np.ndarray:
    """The box (4, 2) of a core (h, w) bool, in its own pixels, before it was shrunk."""
    contours, _ = cv2.findContours(core.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = np.concatenate([contour[:, 0] for contour in contours]) + 0.5  # centres of the outermost pixels
    quad = grow_quad(quad_around(points), 0.5, 0.5)  # to their edges
    grow = min(size_of_quad(quad)) * shrink / (1 - 2 * shrink)
    return grow_quad(quad, grow, grow)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))
