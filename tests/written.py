"""Pictures whose colours say what is written where, and a reader of tiles that answers by them.

Red holds the cores of words, green those of lines, blue the ink. So everything between picture and result is tested
(tiles, scales, joining, growth) with a model whose answers are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from textsam.text_regions.levels import TextRegionConfig
from textsam.text_regions.maps import ReadTile, TileAnswer
from textsam.text_regions.quads import draw_polygon, grow_quad, size_of_quad

SHRINK = 0.25
CONFIG = TextRegionConfig(("word", "text line", "text stroke"), tile=128, shrink={"word": SHRINK, "text line": SHRINK})
CHANNELS = {"word": 0, "text line": 1, "text stroke": 2}


def box(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)


def paint(size_hw: tuple[int, int], words: Sequence[np.ndarray], lines: Sequence[np.ndarray] = ()) -> np.ndarray:
    """(H, W, 3) uint8: cores of words and lines, and as ink the middle third of every word."""
    picture = np.zeros((*size_hw, 3), np.uint8)
    for channel, quads in ((0, words), (1, lines)):
        for quad in quads:
            inset = SHRINK * min(size_of_quad(quad))
            picture[draw_polygon(grow_quad(quad, -inset, -inset), size_hw), channel] = 255
    for quad in words:
        width, height = size_of_quad(quad)
        picture[draw_polygon(grow_quad(quad, -width / 3, -height / 3), size_hw), 2] = 255
    return picture


def reader(levels: Sequence[str], presence: float = 1.0, fine_strokes: bool = False) -> ReadTile:
    """Answers by the colours of a tile."""

    def read(tile: np.ndarray) -> TileAnswer:
        share = cv2.resize(tile, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) / 255.0
        logits = 8.0 * (2 * share - 1)
        strokes = 8.0 * (tile[..., 2] / 127.5 - 1) if fine_strokes else None
        return TileAnswer(
            np.stack([logits[..., CHANNELS[level]] for level in levels]).astype(np.float32),
            np.full(len(levels), presence, np.float32),
            None if strokes is None else strokes.astype(np.float32),
        )

    return read
