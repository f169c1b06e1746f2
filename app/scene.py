"""What a person has asked of a photo and what was found, as values that never change: undo keeps the former one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import supervision as sv
from pycocotools import mask as coco_mask

from textsam.files.rle import decode_mask
from textsam.prompting.detections import boxes_of_masks

SAME_IOU = 0.8  # of two masks above it, one is enough

Rle = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A click, px of the photo; positive: on the object, else beside it."""

    x: float
    y: float
    positive: bool = True


@dataclass(frozen=True, eq=False)
class Found:
    """One mask.

    Attributes:
        id: unique among those shown; candidates for one object share it, and an object has that of its target.
        rle: compressed RLE of the photo's size.
        confidence: in [0, 1]. area: px. colour: its place in the palette.
        logits: (4h, 4w) float32, to be corrected from; None where the model keeps none.
        origin: what it answers.
        shown_from: the threshold from which down it is shown.
    """

    id: int
    name: str
    rle: Rle
    confidence: float
    colour: int
    logits: np.ndarray | None = None
    origin: Literal["words", "everything", "object"] = "object"
    shown_from: float = 1.0

    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        return decode_mask(self.rle)

    @property
    def area(self) -> int:
        """Pixels inside the mask."""
        return int(coco_mask.area(self.rle))


@dataclass(frozen=True)
class Prompts:
    """All that is asked for.

    Attributes:
        words, negative_words: names to find and not to find.
        everything: automatic masks, in the place of words.
        points, box (xyxy px), brush (RLE): of one object.
        corner: the first corner of a box whose second is still to come.
        target: the mask that the object takes the place of.
        refine: its mask is where the object starts from.
    """

    words: tuple[str, ...] = ()
    negative_words: tuple[str, ...] = ()
    everything: bool = False
    points: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None
    corner: tuple[float, float] | None = None
    brush: Rle | None = None
    target: Found | None = None
    refine: bool = False

    @property
    def names_object(self) -> bool:
        """Whether there is enough to ask for one object: more than places where it is not."""
        positive = any(point.positive for point in self.points)
        return positive or self.box is not None or self.brush is not None or (self.refine and bool(self.points))

    @property
    def starts_object(self) -> bool:
        """Whether the next click is the first prompt of an object."""
        return not self.points and self.box is None and self.brush is None

    def without_object(self) -> Prompts:
        """Words alone."""
        return Prompts(self.words, self.negative_words, self.everything)


@dataclass(frozen=True)
class Scene:
    """
    Attributes:
        found: masks for the words, or of everything, all of them; `threshold` decides which are shown.
        kept: objects that are done.
        candidates, choice: masks for the object that is being asked for, and which of them is taken.
        removed: ids of masks that were taken away. chosen: id of the one that is highlighted.
    """

    prompts: Prompts = field(default_factory=Prompts)
    found: tuple[Found, ...] = ()
    kept: tuple[Found, ...] = ()
    candidates: tuple[Found, ...] = ()
    choice: int = 0
    removed: frozenset[int] = frozenset()
    chosen: int | None = None
    threshold: float = 0.4

    @property
    def current(self) -> Found | None:
        """The object that is being asked for."""
        return self.candidates[self.choice] if self.candidates else None

    def rows(self) -> list[Found]:
        """The masks that are shown: an object stands in the place of its target, and hides what is the same mask."""
        current = self.current
        finished = [mask for mask in self.kept if mask.id not in self.removed]
        rows = [each for each in self.found if each.shown_from >= self.threshold and each.id not in self.removed]
        winners = [mask.rle for mask in [*finished, current] if mask is not None]
        if winners and rows:
            overlaps = np.asarray(coco_mask.iou([row.rle for row in rows], winners, [0] * len(winners)))
            replaced = None if current is None else current.id
            rows = [
                row for row, ious in zip(rows, overlaps, strict=True) if row.id == replaced or ious.max() <= SAME_IOU
            ]
        rows += finished
        if current is None:
            return rows
        there = any(row.id == current.id for row in rows)
        return [current if row.id == current.id else row for row in rows] + ([] if there else [current])

    def row(self, id: int | None) -> Found | None:
        """The shown mask with this id."""
        return next((row for row in self.rows() if row.id == id), None)

    def under(self, x: float, y: float) -> Found | None:
        """The smallest shown mask at a place, px."""
        here = [row for row in self.rows() if row.mask()[int(y), int(x)]]
        return min(here, key=lambda row: row.area, default=None)

    def next_colour(self) -> int:
        """A place in the palette that no mask has."""
        return 1 + max((mask.colour for mask in [*self.found, *self.kept]), default=-1)

    def with_prompts(self, **changes: Any) -> Scene:
        """The scene with other prompts, before anything is asked again."""
        return replace(self, prompts=replace(self.prompts, **changes))


def detections_of(rows: Sequence[Found], size_hw: tuple[int, int]) -> sv.Detections:
    """Masks (N, H, W) bool, boxes, confidences and names, as `TextSam` gives them."""
    masks = np.stack([row.mask() for row in rows]) if rows else np.zeros((0, *size_hw), dtype=bool)
    names = list(dict.fromkeys(row.name for row in rows))
    return sv.Detections(
        xyxy=boxes_of_masks(masks),
        mask=masks,
        confidence=np.array([row.confidence for row in rows], dtype=np.float32),
        class_id=np.array([names.index(row.name) for row in rows], dtype=np.int64),
        data={"class_name": np.array([row.name for row in rows], dtype=str)},
    )
