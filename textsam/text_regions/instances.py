"""From a map of logits to boxes of text: connected parts, taken apart by their seeds, grown by what they were shrunk.

The rule of growth is that of PSENet and DB (Wang et al. 2019; Liao et al. 2020): cores that stay apart where words
touch are what the network draws, and boxes come from growing the cores. Where cores run into each other all the same,
a watershed parts them: each place goes to the nearest seed, a part that is still whole at a higher threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from textsam.text_regions.quads import grow_quad, quad_around, size_of_quad


@dataclass(frozen=True)
class BoxOptions:
    """How boxes are taken from a map.

    Attributes:
        threshold: probability above which a cell belongs to a core.
        seed: probability that a core must reach somewhere, and above which its parts count as cores of their own.
        growth: cores are grown by so many times their shorter side on all sides.
        upscale: times that the map is enlarged (bilinear) before, for outlines finer than its cells.
        min_side: boxes whose shorter side is below it, in pixels of the map's picture and after growing, are dropped.
        min_score: boxes of a lower mean probability inside their core are dropped.
        max_boxes: at most so many, the best.
    """

    threshold: float = 0.5
    seed: float = 0.5
    growth: float = 0.0
    upscale: int = 2
    min_side: float = 5.0
    min_score: float = 0.6
    max_boxes: int = 3000


def boxes_of_map(logits: np.ndarray, stride: int, options: BoxOptions) -> tuple[np.ndarray, np.ndarray]:
    """Rotated boxes of the cores of a map.

    Args:
        logits: (h, w) float32.
        stride: pixels of the picture per cell.
        options: what counts as a box.
    Returns:
        quads (N, 4, 2) float32 in the picture's pixels, and scores (N,) float32 in [0, 1]; best first.
    """
    scale = options.upscale
    if scale > 1:
        size_wh = (logits.shape[1] * scale, logits.shape[0] * scale)
        logits = cv2.resize(logits, size_wh, interpolation=cv2.INTER_LINEAR)
    pixel = stride / scale  # of the enlarged map, in pixels of the picture
    quads, scores = [], []
    for left, top, core in _parts(label_cores(logits, options.threshold, options.seed)):
        place = (slice(top, top + core.shape[0]), slice(left, left + core.shape[1]))
        score = float(_sigmoid(logits[place][core]).mean())
        if score < options.min_score:
            continue
        quad = _box_of_core(core) + np.array([left, top], np.float32)
        grow = options.growth * min(size_of_quad(quad))
        quad = grow_quad(quad, grow, grow)
        if min(size_of_quad(quad)) * pixel >= options.min_side:
            quads.append(quad * pixel)
            scores.append(score)
    best = np.argsort(-np.array(scores), kind="stable")[: options.max_boxes]
    return np.array(quads, np.float32).reshape(-1, 4, 2)[best], np.array(scores, np.float32)[best]


def label_cores(logits: np.ndarray, threshold: float, seed: float) -> np.ndarray:
    """The core that each cell belongs to: (h, w) int32, 0 outside of all.

    Args:
        logits: (h, w).
        threshold: probability above which a cell belongs to a core. seed: above which a part of a core is one itself.
    """
    inside = logits > _logit(threshold)
    if seed <= threshold:
        return cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)[1]
    _, seeds = cv2.connectedComponents((logits > _logit(seed)).astype(np.uint8), connectivity=8)
    if not seeds.any():
        return np.zeros(logits.shape, np.int32)
    # OpenCV numbers the seed pixels itself; `owner` takes its numbers to ours.
    _, nearest = cv2.distanceTransformWithLabels(
        (seeds == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owner = np.zeros(int(nearest.max()) + 1, np.int32)
    owner[nearest[seeds > 0]] = seeds[seeds > 0]
    cores = np.where(inside, owner[nearest], 0)
    # A part of the map without a seed must not go to one across a gap.
    _, parts = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)
    part_of_seed = np.zeros(int(seeds.max()) + 1, np.int32)
    part_of_seed[seeds[seeds > 0]] = parts[seeds > 0]
    return np.where(parts == part_of_seed[cores], cores, 0).astype(np.int32)


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
    labels = cv2.connectedComponents(glue.astype(np.uint8), connectivity=8)[1]
    found = []
    for left, top, glued in _parts(labels):
        place = (slice(top, top + glued.shape[0]), slice(left, left + glued.shape[1]))
        part = glued & mask[place]
        if int(np.count_nonzero(part)) < max(min_pixels, 1):
            continue
        score = float(_sigmoid(logits[place][part]).mean())
        if score >= min_score:
            quad = quad_around(_outline(part)) + np.array([left, top], np.float32)
            found.append((grow_quad(quad, 0.5, 0.5), score, (left, top, part)))
    return found


def _parts(labels: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """left, top and mask (h, w) bool of each label from 1 on."""
    from scipy import ndimage  # on first use: importing it takes longer than loading the model

    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is not None:
            yield int(place[1].start), int(place[0].start), labels[place] == number


def _box_of_core(core: np.ndarray) -> np.ndarray:
    """The box (4, 2) of a core (h, w) bool, in its own pixels.

    The smallest rectangle around a ragged core is too high by its bumps: its longer side and direction are taken, the
    shorter side is what gives it the core's area, its middle is the core's.
    """
    quad = grow_quad(quad_around(_outline(core)), 0.5, 0.5)
    width, height = size_of_quad(quad)
    rows, columns = np.nonzero(core)
    middle = np.array([columns.mean() + 0.5, rows.mean() + 0.5], np.float32)
    excess = min(width, height) - len(rows) / max(width, height)
    along, across = (0.0, excess / 2) if width >= height else (excess / 2, 0.0)
    return grow_quad(quad - quad.mean(0) + middle, -along, -across)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Centres (P, 2) xy of the outermost pixels of a mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.concatenate([contour[:, 0] for contour in contours]).astype(np.float32) + 0.5


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))
