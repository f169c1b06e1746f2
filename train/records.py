"""One annotated picture as any reader gives it, and the account of what was bad in the data.

A bad picture or mask is reported by file and id, counted and skipped. Only when more than a stated share is bad does
the training stop: the data are then not what they were taken for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from textsam.files.coco_structures import Problem, Region
from textsam.files.images import read_image
from textsam.files.rle import decode_mask, encode_mask, segmentation_to_rle

logger = logging.getLogger("train")
MAX_BAD_SHARE = 0.1
LOGGED = 20  # problems told one by one; the others are only counted
ENOUGH_TO_JUDGE = 50  # pictures or masks of a stream that are seen before a share is taken of them


@dataclass(frozen=True)
class Record:
    """A picture, still encoded, and its masks.

    Attributes:
        set_name, id: together they name the picture.
        picture: a path, or the bytes of a JPEG, PNG ...
        height, width: px; the masks have this size.
        regions: the instances, masks as compressed RLE. names: of each, or None.
        ignore: regions that count for nothing (crowds).
    """

    set_name: str
    id: str
    picture: Path | bytes
    height: int
    width: int
    regions: tuple[Region, ...]
    names: tuple[str | None, ...]
    ignore: tuple[Region, ...] = ()

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB.

        Raises:
            OSError, ValueError: there is no such picture, it is damaged, or its size is not that of the masks.
        """
        pixels = read_image(self.picture)
        if pixels.shape[:2] != (self.height, self.width):
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise ValueError(f"the picture is {size} px, its masks are {self.width} x {self.height}")
        return pixels

    def ignore_mask(self) -> np.ndarray:
        """(H, W) bool."""
        if not self.ignore:
            return np.zeros((self.height, self.width), bool)
        return decode_mask(coco_mask.merge([region.rle for region in self.ignore]))


@dataclass
class Account:
    """What was read from one source, and what of it was bad.

    Args:
        source: file or folder, for the messages.
        max_bad_share: of the pictures, or of the masks; more is an error.
    """

    source: str
    max_bad_share: float = MAX_BAD_SHARE
    seen: dict[str, int] = field(default_factory=lambda: {"image": 0, "mask": 0})
    bad: dict[str, int] = field(default_factory=lambda: {"image": 0, "mask": 0})
    problems: list[Problem] = field(default_factory=list)

    def good(self, what: str, count: int = 1) -> None:
        """Counts good entries; `what` is "image" or "mask"."""
        self.seen[what] += count

    def skip(self, what: str, id: object, reason: object) -> None:
        """Counts a bad entry.

        Raises:
            ValueError: too large a share is bad by now.
        """
        problem = Problem(self.source, what, str(id), str(reason))
        self.seen[what] += 1
        self.bad[what] += 1
        if len(self.problems) < LOGGED:
            self.problems.append(problem)
            logger.warning("skipped (%d of %d %ss so far): %s", self.bad[what], self.seen[what], what, problem)
        if self.seen[what] >= ENOUGH_TO_JUDGE:
            self.check()

    def check(self) -> None:
        """Raises ValueError when more than the stated share is bad."""
        for what, bad in self.bad.items():
            if bad > self.max_bad_share * self.seen[what]:
                raise ValueError(
                    f"{self.source}: {bad} of {self.seen[what]} {what}s are bad (at most {self.max_bad_share:.0%} "
                    f"allowed). First: {'; '.join(str(problem) for problem in self.problems[:3])}"
                )


def make_record(
    account: Account, set_name: str, id: object, picture: Path | bytes, size_hw: tuple[int, int],
    annotations: list[dict[str, Any]],
) -> Record:  # fmt: skip
    """A record of annotations as files hold them; bad ones go to the account.

    Args:
        size_hw: of the picture, px.
        annotations: {"segmentation": polygons, RLE or an (H, W) array, "id", "name", "iscrowd"}, the last three
            optional.
    """
    regions, names, ignore = [], [], []
    for number, annotation in enumerate(annotations):
        key = annotation.get("id", number)
        try:
            region = Region(key, None, _to_rle(annotation.get("segmentation"), *size_hw))
        except (ValueError, TypeError) as error:
            account.skip("mask", f"{id}/{key}", error)
            continue
        account.good("mask")
        if annotation.get("iscrowd"):
            ignore.append(region)
        else:
            regions.append(region)
            names.append(annotation.get("name"))
    return Record(set_name, str(id), picture, *size_hw, tuple(regions), tuple(names), tuple(ignore))


def _to_rle(segmentation: object, height: int, width: int) -> dict[str, Any]:
    if not isinstance(segmentation, np.ndarray):
        return segmentation_to_rle(segmentation, height, width)
    if segmentation.shape != (height, width):
        raise ValueError(f"its mask is {segmentation.shape} (height, width) but its image is {(height, width)}")
    if not segmentation.any():
        raise ValueError("its mask is empty")
    return encode_mask(segmentation > 0)
