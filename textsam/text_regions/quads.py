"""Quadrilaterals around written text, and the polygons that they are compared with.

A quad is (4, 2) float, xy in pixels, its corners clockwise on the screen: where reading starts at the top, where it
ends at the top, then the two below. Pixel (0, 0) covers the square from (0, 0) to (1, 1), so its centre is (0.5, 0.5).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from textsam.files.rle import decode_mask

# From this ratio of its sides on a box has a reading direction of its own, up to this slope; a steeper one is taken as
# vertical writing, whose letters stand upright.
LONG_BOX = 1.5
STEEPEST_LINE_DEGREES = 60.0
# Polygons that are not convex are compared as masks of about this many pixels along their longer side.
_RASTER_SIDE = 512


def quad_around(points: np.ndarray) -> np.ndarray:
    """The smallest rotated rectangle around points.

    Args:
        points: (P, 2) xy, P at least 1.
    Returns:
        (4, 2) float32, in reading order; see `in_reading_order`.
    """
    return in_reading_order(cv2.boxPoints(cv2.minAreaRect(np.asarray(points, np.float32))))


def in_reading_order(corners: np.ndarray) -> np.ndarray:
    """The four corners of a convex quadrilateral, clockwise from the one where a reader starts.

    Reading goes along the longer sides when the box is clearly longer than high and not too steep, else along those
    nearest to the horizontal; always towards the right.

    Args:
        corners: (4, 2) xy in either sense of rotation.
    Returns:
        (4, 2) float32.
    """
    corners = np.asarray(corners, np.float32)
    if signed_area(corners) < 0:
        corners = corners[::-1]
    sides = np.roll(corners, -1, axis=0) - corners
    lengths = np.linalg.norm(sides, axis=1)
    pairs = lengths[:2] + lengths[2:]  # opposite sides together
    steepness = [_slope_degrees(sides[axis] - sides[axis + 2]) for axis in (0, 1)]
    axis = int(pairs[1] > pairs[0])
    if pairs[axis] < LONG_BOX * pairs[1 - axis] or steepness[axis] > STEEPEST_LINE_DEGREES:
        axis = int(steepness[1] < steepness[0])
    start = axis if sides[axis][0] - sides[axis + 2][0] >= 0 else axis + 2
    return np.roll(corners, -start, axis=0)


def size_of_quad(quad: np.ndarray) -> tuple[float, float]:
    """Width along the reading direction and height across it, in pixels: means of opposite sides."""
    top, right, bottom, left = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return float(top + bottom) / 2, float(left + right) / 2


def direction_of_quad(quad: np.ndarray) -> np.ndarray:
    """(2,) unit vector of the reading direction; to the right when the quad has no width."""
    along = (quad[1] + quad[2] - quad[0] - quad[3]).astype(np.float64)
    length = math.hypot(*along)
    return along / length if length > 0 else np.array([1.0, 0.0])


def grow_quad(quad: np.ndarray, along: float, across: float) -> np.ndarray:
    """A rectangle with its ends moved out by `along` pixels and its long sides by `across`; negative moves in."""
    forward = direction_of_quad(quad)
    down = np.array([-forward[1], forward[0]])
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
    return (quad + signs[:, :1] * along * forward + signs[:, 1:] * across * down).astype(np.float32)


def signed_area(polygon: np.ndarray) -> float:
    """Square pixels of a polygon (K, 2); positive when its corners go clockwise on the screen."""
    x, y = np.asarray(polygon, np.float64).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def intersection_area(first: np.ndarray, second: np.ndarray) -> float:
    """Square pixels that two simple polygons, (K, 2) and (L, 2), share.

    Exact for convex ones; others are drawn as masks of about 512 px.
    """
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    low, high = np.maximum(first.min(0), second.min(0)), np.minimum(first.max(0), second.max(0))
    if (high <= low).any():
        return 0.0
    if is_convex(first) and is_convex(second):
        origin = low.astype(np.float32)  # near zero, where float32 is finest
        area, _ = cv2.intersectConvexConvex(first - origin, second - origin)
        return float(area)
    scale = _RASTER_SIDE / float((high - low).max())
    size = np.ceil((high - low) * scale).astype(int)
    masks = [draw_polygon((polygon - low) * scale, (size[1], size[0])) for polygon in (first, second)]
    return float(np.count_nonzero(masks[0] & masks[1])) / scale**2


def polygon_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two simple polygons; 0 when both are flat."""
    shared = intersection_area(first, second)
    union = abs(signed_area(first)) + abs(signed_area(second)) - shared
    return min(shared / union, 1.0) if union > 0 else 0.0


def is_convex(polygon: np.ndarray) -> bool:
    """Whether a polygon (K, 2) turns one way only and does not cross itself."""
    sides = np.roll(polygon, -1, axis=0).astype(np.float64) - polygon
    after = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * after[:, 1] - sides[:, 1] * after[:, 0]
    angles = np.arctan2(turns, (sides * after).sum(1))
    once = abs(abs(angles.sum()) - 2 * math.pi) < 1e-3
    return bool(once and ((turns >= -1e-6).all() or (turns <= 1e-6).all()))


def draw_polygon(polygon: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels inside a polygon (K, 2), by COCO's own rule; parts outside the picture are cut off."""
    height, width = size_hw
    points = np.asarray(polygon, np.float64).ravel().tolist()
    return decode_mask(coco_mask.frPyObjects([points], height, width)[0])


def _slope_degrees(vector: np.ndarray) -> float:
    """Angle to the horizontal, in [0, 90]."""
    return math.degrees(math.atan2(abs(float(vector[1])), abs(float(vector[0]))))
