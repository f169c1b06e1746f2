"""Instances of written text in reading order, small in memory, and as `supervision.Detections`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from textsam.prompting.detections import to_detections
from textsam.text_regions.quads import draw_polygon

if TYPE_CHECKING:
    import supervision as sv


@dataclass(frozen=True)
class TextRegions:
    """N instances of one level, in reading order.

    Attributes:
        level: see `textsam.text_regions.levels`.
        size_hw: of the picture.
        quads: (N, 4, 2) float32 xy, see `textsam.text_regions.quads`.
        scores: (N,) float32 in [0, 1].
        line, block: (N,) int64, number of the line and of the block, counted from 0 in reading order.
        presence: in [0, 1], whether there is text of this level at all.
        areas: for levels that are areas of any shape, (left, top, (h, w) bool mask) of each; None: the quads' insides.
        texts: N transcripts, once somebody has read them.
    """

    level: str
    size_hw: tuple[int, int]
    quads: np.ndarray
    scores: np.ndarray
    line: np.ndarray
    block: np.ndarray
    presence: float
    areas: tuple[tuple[int, int, np.ndarray], ...] | None = None
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.quads)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool of one instance."""
        mask = np.zeros(self.size_hw, bool)
        self._draw(index, mask)
        return mask

    def union_mask(self) -> np.ndarray:
        """(H, W) bool of all of them."""
        union = np.zeros(self.size_hw, bool)
        for index in range(len(self)):
            self._draw(index, union)
        return union

    def _draw(self, index: int, onto: np.ndarray) -> None:
        """Adds an instance to a mask (H, W) bool, of which no more is touched: memory that nobody writes to is free."""
        if self.areas is not None:
            left, top, area = self.areas[index]
        else:
            quad, limits = self.quads[index], np.array(self.size_hw[::-1])
            left, top = low = np.clip(np.floor(quad.min(axis=0)).astype(int) - 1, 0, limits)
            width, height = np.clip(np.ceil(quad.max(axis=0)).astype(int) + 1, 0, limits) - low
            if min(width, height) <= 0:
                return
            area = draw_polygon(quad - low, (int(height), int(width)))
        onto[top : top + area.shape[0], left : left + area.shape[1]] |= area

    def select(self, indices: np.ndarray) -> TextRegions:
        """The regions at these indices, (K,) int64; line and block keep their numbers."""
        rows = np.asarray(indices, np.int64)
        return replace(
            self,
            quads=self.quads[rows],
            scores=self.scores[rows],
            line=self.line[rows],
            block=self.block[rows],
            areas=None if self.areas is None else tuple(self.areas[i] for i in rows),
            texts=None if self.texts is None else tuple(self.texts[i] for i in rows),
        )

    def with_texts(self, texts: list[str]) -> TextRegions:
        """The same with transcripts.

        Raises:
            ValueError: not one for each region.
        """
        if len(texts) != len(self):
            raise ValueError(f"Expected {len(self)} transcripts, one for each region, got {len(texts)}.")
        return replace(self, texts=tuple(texts))

    def to_detections(self, class_id: int = 0) -> sv.Detections:
        """As `TextSam.predict` returns them, rows in reading order.

        `data` also has quad (N, 4, 2), order (N,) 0 to N - 1, line (N,), block (N,), level (N,) and, once they were
        read, text (N,).
        """
        count = len(self)
        masks = np.zeros((count, *self.size_hw), bool)
        for index in range(count):
            self._draw(index, masks[index])
        data = {
            "quad": self.quads.reshape(count, 4, 2),
            "order": np.arange(count),
            "line": self.line,
            "block": self.block,
            "level": np.full(count, self.level),
            "presence": np.full(count, self.presence, np.float32),
            "prompt_index": np.full(count, class_id, np.int64),
        }
        if self.texts is not None:
            data["text"] = np.array(self.texts, dtype=str).reshape(count)
        return to_detections(
            masks,
            confidence=self.scores,
            class_id=np.full(count, class_id),
            class_names=[self.level] * count,
            data=data,
        )
