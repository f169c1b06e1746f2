"""Maps over a large picture from tiles that overlap.

What is joined are the *logits*, before anything is taken apart: a word on the border of two tiles is one ridge of the
joined map, and one instance. Slicing that joins instances afterwards (supervision's `InferenceSlicer`) finds two halves
of it, and has to guess from their overlap whether they are one word or two neighbours.

Memory: one tile at a time, and the joined maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Tiles start at multiples of it, so that the cells of the maps of all tiles lie on one raster (low-resolution logits
# have a quarter of the picture's side).
STEP = 4
OUTSIDE = -10.0  # logit of a place of which no tile says anything; others are clipped to +-10, so that none drowns all


@dataclass(frozen=True)
class TileGrid:
    """Tiles that cover a picture.

    Attributes:
        side: of a tile, in pixels; a multiple of `STEP`.
        lefts, tops: where the columns and rows of tiles begin, multiples of `STEP`.
        size_hw: of the picture.
    """

    side: int
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    size_hw: tuple[int, int]

    @classmethod
    def over(cls, size_hw: tuple[int, int], side: int, overlap: int) -> TileGrid:
        """The fewest tiles that overlap by at least `overlap` pixels, evenly spread.

        Raises:
            ValueError: a side that is no multiple of the step, or an overlap that leaves none.
        """
        if side < STEP or side % STEP:
            raise ValueError(f"Expected a tile side that is a multiple of {STEP} px, got {side}.")
        if not 0 <= overlap <= side - 2 * STEP:
            raise ValueError(f"Expected an overlap of 0 to {side - 2 * STEP} px of tiles of {side} px, got {overlap}.")
        tops, lefts = (_starts(length, side, overlap) for length in size_hw)
        return cls(side, lefts, tops, (int(size_hw[0]), int(size_hw[1])))

    @classmethod
    def cheapest(cls, size_hw: tuple[int, int], sides: Sequence[int], overlap: int) -> TileGrid:
        """Of the grids with tiles of these sides the one with the fewest pixels in all; of equal ones the first."""
        grids = [cls.over(size_hw, side, overlap) for side in sides]
        return min(grids, key=lambda grid: len(grid) * grid.side**2)

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(left, top) of each tile, row by row."""
        return ((left, top) for top in self.tops for left in self.lefts)

    def cut(self, picture: np.ndarray, left: int, top: int, fill: Sequence[float]) -> np.ndarray:
        """The (side, side, 3) pixels of a tile, a copy; what lies outside the picture has the colour `fill`."""
        part = picture[top : top + self.side, left : left + self.side]
        tile = np.empty((self.side, self.side, 3), picture.dtype)
        tile[:] = np.array(fill).round().astype(picture.dtype)
        tile[: part.shape[0], : part.shape[1]] = part
        return tile


class JoinedMaps:
    """Logits of Q maps over a picture, to which tiles are added; each place is a mean weighted towards tiles' middles.

    Args:
        grid: the tiles. count: Q. stride: pixels of the picture per cell, a divisor of `STEP`.
    """

    def __init__(self, grid: TileGrid, count: int, stride: int) -> None:
        if STEP % stride:
            raise ValueError(f"Expected a stride that divides {STEP}, got {stride}.")
        self.stride = stride
        self.cells = grid.side // stride
        rows, columns = (math.ceil(length / stride) for length in grid.size_hw)
        self._total = np.zeros((count, rows, columns), np.float32)
        self._weights = np.zeros((count, rows, columns), np.float32)
        ramp = _ramp(self.cells)
        self._weight_of_tile = ramp[:, None] * ramp[None]

    def add(self, maps: np.ndarray, left: int, top: int, counts: np.ndarray | None = None) -> None:
        """Adds a tile.

        Args:
            maps: (Q, side / stride, side / stride) logits of the tile at (left, top) px.
            counts: (Q,) bool: False where the tile says nothing, because it holds no such thing; None: all True.
        Raises:
            ValueError: maps of another shape.
        """
        expected = (len(self._total), self.cells, self.cells)
        if maps.shape != expected:
            raise ValueError(f"Expected maps {expected} of a tile, got {maps.shape}.")
        row, column = top // self.stride, left // self.stride
        height, width = min(self.cells, self._total.shape[1] - row), min(self.cells, self._total.shape[2] - column)
        weight = self._weight_of_tile[:height, :width]
        place = (slice(row, row + height), slice(column, column + width))
        for number in range(len(maps)) if counts is None else np.flatnonzero(counts):
            logits = np.clip(maps[number, :height, :width], OUTSIDE, -OUTSIDE)
            self._total[number][place] += logits * weight
            self._weights[number][place] += weight

    def logits(self) -> np.ndarray:
        """(Q, ceil(H / stride), ceil(W / stride)) float32; `OUTSIDE` where no tile counted."""
        seen = self._weights > 0
        return np.where(seen, self._total / np.where(seen, self._weights, 1), np.float32(OUTSIDE))


def _starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """Where tiles begin along one side of a picture."""
    if length <= side:
        return (0,)
    count = math.ceil((length - overlap) / (side - overlap))
    last = math.ceil((length - side) / STEP)
    return tuple(round(index * last / (count - 1)) * STEP for index in range(count))


def _ramp(cells: int) -> np.ndarray:
    """Weights along a side: 1 in the middle half, falling towards both ends, never 0."""
    distance = np.minimum(np.arange(cells), np.arange(cells)[::-1]) + 1.0
    return np.minimum(distance / (cells / 4), 1.0).astype(np.float32)
