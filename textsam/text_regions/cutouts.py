"""Letters without their picture, and the picture without its letters.

A styled caption is taken apart so that another text can take its place in the same style: the ink of each region with a
soft edge, in its own colours, and a plate from which all of it is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from textsam.text_regions.quads import draw_polygon, grow_quad, size_of_quad
from textsam.text_regions.regions import TextRegions

# Alpha below it is none: the tails of a sigmoid would tint the whole box.
_LEAST_ALPHA = 0.05
# Outlines, shadows and glow around the ink, as a share of the height of its line: they go with it.
HALO = 0.15


@dataclass(frozen=True)
class Cutout:
    """The ink of one region.

    Attributes:
        rgba: (h, w, 4) uint8, straight (not premultiplied) alpha.
        left, top: where it lies in the picture, in pixels.
    """

    rgba: np.ndarray
    left: int
    top: int


def soft_alpha(logits: np.ndarray) -> np.ndarray:
    """Logits (H, W) of ink to alpha (H, W) float32 in [0, 1]; faint tails are none at all."""
    alpha = (1 / (1 + np.exp(-logits.astype(np.float32)))).astype(np.float32)
    return np.where(alpha < _LEAST_ALPHA, np.float32(0), alpha)


def plate_mask(regions: TextRegions, logits: np.ndarray | None) -> np.ndarray:
    """What has to be painted over: (H, W) bool.

    Args:
        regions: lines or words; with ink, only what is near them is painted over.
        logits: (H, W) of the ink; None: the whole quads go.
    """
    mask = np.zeros(regions.size_hw, bool)
    ink = None if logits is None else soft_alpha(logits) > 0
    for quad in regions.quads:
        height = min(size_of_quad(quad))
        halo = max(round(HALO * height), 1)
        wide = draw_polygon(grow_quad(quad, halo, halo), regions.size_hw)
        if ink is None:
            mask |= wide
            continue
        left, top, right, bottom = _bounds(wide)
        place = (slice(top, bottom), slice(left, right))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * halo + 1, 2 * halo + 1))
        near = cv2.dilate((ink[place] & wide[place]).astype(np.uint8), kernel).astype(bool)
        mask[place] |= near & wide[place]
    return mask


def clean_plate(picture: np.ndarray, mask: np.ndarray, radius: float = 3.0) -> np.ndarray:
    """The picture with the mask painted over from its surroundings: (H, W, 3) uint8.

    Source: Telea 2004, as `cv2.inpaint`: good for thin ink on plain ground; whoever has a generative in-painter gives
    it the mask instead.
    """
    return cv2.inpaint(np.ascontiguousarray(picture), mask.astype(np.uint8), radius, cv2.INPAINT_TELEA)


def glyph_cutouts(picture: np.ndarray, regions: TextRegions, logits: np.ndarray, plate: np.ndarray) -> list[Cutout]:
    """The ink of every region, with its own colours where the picture mixes them with the ground.

    A pixel of the picture is alpha * ink + (1 - alpha) * ground; the ground is the plate's, so the ink follows.

    Args:
        picture, plate: (H, W, 3) uint8. logits: (H, W) of the ink.
    """
    alpha = soft_alpha(logits)
    found = []
    for quad in regions.quads:
        halo = max(HALO * min(size_of_quad(quad)), 1.0)
        inside = draw_polygon(grow_quad(quad, halo, halo), regions.size_hw)
        left, top, right, bottom = _bounds(inside)
        place = (slice(top, bottom), slice(left, right))
        part = alpha[place] * inside[place]
        share = part[..., None]
        mixed, ground = picture[place].astype(np.float32), plate[place].astype(np.float32)
        ink = np.where(share > 0, (mixed - (1 - share) * ground) / np.maximum(share, _LEAST_ALPHA), mixed)
        rgba = np.concatenate([ink.clip(0, 255), 255 * share], axis=2)
        found.append(Cutout(rgba.round().astype(np.uint8), left, top))
    return found


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom (exclusive) of a mask; a region outside of the picture has one pixel of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0, 0, 1, 1
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
