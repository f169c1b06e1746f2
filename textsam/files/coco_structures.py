"""A COCO-format data set in memory: pictures by path, masks as compressed RLE, what was wrong by file and id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from textsam.files.images import read_image
from textsam.files.rle import decode_mask


@dataclass(frozen=True)
class Problem:
    """One bad entry: `where` is "image", "annotation", "category" or "ignore region"."""

    file: str
    where: str
    id: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where} {self.id}: {self.message}"


@dataclass(frozen=True)
class Region:
    """A mask as compressed RLE ({"size": [H, W], "counts": bytes}) and the category that it belongs to.

    category_id None: the region holds for every category (for example the void pixels of PASCAL VOC).
    """

    id: int | str | None
    category_id: int | str | None
    rle: dict[str, Any]

    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        return decode_mask(self.rle)

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """The tight box, right and bottom edges exclusive."""
        x, y, width, height = (float(value) for value in coco_mask.toBbox(self.rle))
        return x, y, x + width, y + height

    @property
    def area(self) -> int:
        """Pixels inside the mask."""
        return int(coco_mask.area(self.rle))


@dataclass(frozen=True)
class CocoImage:
    """One picture with its instances and its regions to ignore (crowds, illegible words, void pixels)."""

    id: int | str
    path: Path
    height: int
    width: int
    instances: tuple[Region, ...]
    ignore: tuple[Region, ...]

    def read(self) -> np.ndarray:
        """The picture, (H, W, 3) uint8 RGB.

        Raises:
            OSError, ValueError: as `read_image`; also when its size is not the one that the file says.
        """
        picture = read_image(self.path)
        if picture.shape[:2] != (self.height, self.width):
            size = f"{picture.shape[1]} x {picture.shape[0]}"
            raise ValueError(f"{self.path} is {size} px, the data set says {self.width} x {self.height}")
        return picture

    def ignore_mask(self, category_id: int | str | None = None) -> np.ndarray:
        """(H, W) bool: pixels that do not count for this category; None: those that count for no category."""
        regions = [r.rle for r in self.ignore if r.category_id is None or r.category_id == category_id]
        if not regions:
            return np.zeros((self.height, self.width), bool)
        return decode_mask(coco_mask.merge(regions))


@dataclass
class CocoDataset:
    """A read file. `images` holds only good images, with good instances only; `problems` the rest. `taken` are the
    places in the file's list of annotations of those that are used."""

    path: Path
    name: str
    categories: dict[int | str, str]
    images: list[CocoImage]
    problems: list[Problem] = field(default_factory=list)
    taken: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[CocoImage]:
        return iter(self.images)

    def name_of(self, region: Region) -> str | None:
        """The name of a region's category; None for a region that belongs to all."""
        return None if region.category_id is None else self.categories.get(region.category_id)

    def select(self, limit: int | None) -> list[CocoImage]:
        """`limit` images evenly spaced over the file (always the same ones); all of them when limit is None."""
        if limit is None or limit >= len(self.images):
            return list(self.images)
        if limit < 1:
            raise ValueError(f"limit must be at least 1 image, got {limit}")
        return [self.images[i * len(self.images) // limit] for i in range(limit)]
