"""What each level of written text should look like as a mask, and the way back from a mask to an outline.

Words of a line, and lines of a block, stand closer than a mask's cells can part them. So the mask of a word or a line
is its *core*: the outline with each side moved inwards by a quarter of the short side. Cores do not touch, each is
one component, and growing a component by half of its own short side gives the outline back.
Source: the idea is that of Wang et al. 2019, *PSENet*, and Liao et al. 2020, *DB*; their amounts differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from train.text_scenes import Scene, Written

INSET = 0.25  # of the short side
CORES = ("word", "text line")  # the levels whose masks are cores


def core(strip: np.ndarray, inset: float = INSET) -> np.ndarray:
    """The strip (2, K, 2) of the core of a strip (2, K, 2)."""
    middle = strip.mean(0)
    steps = np.linalg.norm(np.diff(middle, axis=0), axis=-1)
    length, height = steps.sum(), np.linalg.norm(strip[1] - strip[0], axis=-1).mean()
    distance = inset * min(length, height)
    across, along = distance / max(height, 1e-6), distance / max(length, 1e-6)
    rows = np.stack([strip[0] + across * (strip[1] - strip[0]), strip[1] + across * (strip[0] - strip[1])])
    if len(steps) == 1:  # a quadrilateral: no corner between the ends
        first, last = rows[:, 0], rows[:, 1]
        return np.stack([first + along * (last - first), first + (1 - along) * (last - first)], axis=1)
    at = np.concatenate([[0.0], np.cumsum(steps)]) / max(length, 1e-6)
    wanted = np.concatenate([[along], at[(at > along) & (at < 1 - along)], [1 - along]])
    return np.stack([np.stack([np.interp(wanted, at, row[:, axis]) for axis in (0, 1)], axis=-1) for row in rows])


def fill(strips: Sequence[np.ndarray], size: tuple[int, int], stride: int = 4, samples: int = 8) -> np.ndarray:
    """Strips in px -> (height / stride, width / stride) float32, the share of each cell, from samples x samples points.

    Args:
        size: (width, height) px.
    """
    cells = np.zeros((size[1] // stride, size[0] // stride), np.float32)
    if not strips or not cells.size:
        return cells
    polygons = [np.concatenate([strip[0], strip[1][::-1]]) * samples / stride - 0.5 for strip in strips]
    corners = [(polygon.min(0), polygon.max(0)) for polygon in polygons]
    # Only the cells around the strips are drawn, with one to spare on each side, so that no outline is cut anew.
    low = np.floor(np.min([low for low, _ in corners], axis=0) / samples).astype(int) - 1
    high = np.ceil(np.max([high for _, high in corners], axis=0) / samples).astype(int) + 2
    low, high = low.clip(0, cells.shape[::-1]), high.clip(0, cells.shape[::-1])
    wide, tall = high - low
    if not wide * tall:
        return cells
    canvas = np.zeros((tall * samples, wide * samples), np.uint8)
    for polygon in polygons:
        points = np.round(polygon * 16).astype(np.int32) - (low * samples * 16).astype(np.int32)
        cv2.fillPoly(canvas, [points], 255, cv2.LINE_8, shift=4)
    small = cv2.resize(canvas, (int(wide), int(tall)), interpolation=cv2.INTER_AREA)
    cells[low[1] : high[1], low[0] : high[0]] = small.astype(np.float32) / 255
    return cells


def level_masks(scene: Scene) -> dict[str, np.ndarray]:
    """Level -> (H/4, W/4) float32 in [0, 1], of a scene whose sides are multiples of 4; "text stroke" too."""
    height, width = scene.strokes.shape
    size = (width, height)

    def strips(group: list[Written]) -> list[np.ndarray]:
        return [written.strip for written in group if written.legible]

    return {
        "text": fill(strips(scene.words), size),
        "text stroke": cv2.resize(
            scene.strokes.astype(np.float32), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA
        ),
        "word": fill([core(strip) for strip in strips(scene.words)], size),
        "text line": fill([core(strip) for strip in strips(scene.lines)], size),
        "text block": fill([written.strip for written in scene.blocks], size),
    }


def unknown(strips: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(H/4, W/4) float32: 0 on strips that count for nothing, 1 elsewhere."""
    return (fill(strips, size) < 0.01).astype(np.float32)
