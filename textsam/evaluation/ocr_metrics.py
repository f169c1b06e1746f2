"""Measures of found text: polygons matched to the true ones, and pixels.

Source of the protocol: ICDAR 2015 Robust Reading, challenge 4, task 1 (text localisation), with its three constants:
a detection is right when its IoU with a word is above 0.5; of several, the first in order counts; a detection that lies
in a region not to be read (`###`) with more than half of its area is neither right nor wrong.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from textsam.text_regions.quads import intersection_area, polygon_iou, signed_area

MIN_IOU = 0.5
MAX_SHARE_IN_IGNORED = 0.5


@dataclass(frozen=True)
class Matching:
    """Which detections of an image are which true polygons.

    Attributes:
        pairs: (index of the truth, index of the detection, IoU), each index at most once.
        counted: (N,) bool, detections that are not in an ignored region.
        nearest: (N,) int64, for each detection the truth that it overlaps most by IoU, matched or not; -1 for none.
    """

    pairs: list[tuple[int, int, float]]
    counted: np.ndarray
    nearest: np.ndarray


def match_polygons(
    truths: Sequence[np.ndarray], ignored: Sequence[np.ndarray], detections: Sequence[np.ndarray]
) -> Matching:
    """Matches detections one to one with true polygons.

    Args:
        truths, ignored, detections: polygons (K, 2) xy of one image; ignored are regions that do not count.
    """
    counted = np.ones(len(detections), bool)
    for d, region in _meeting(detections, ignored):
        area = abs(signed_area(detections[d]))
        if area > 0 and intersection_area(detections[d], ignored[region]) > MAX_SHARE_IN_IGNORED * area:
            counted[d] = False
    iou = {(t, d): polygon_iou(truths[t], detections[d]) for t, d in _meeting(truths, detections)}
    nearest, best = np.full(len(detections), -1, np.int64), np.zeros(len(detections))
    for (t, d), value in iou.items():
        if value > best[d]:
            nearest[d], best[d] = t, value
    pairs, taken_truths, taken = [], set(), set()
    for (t, d), value in sorted(iou.items()):
        if value > MIN_IOU and counted[d] and t not in taken_truths and d not in taken:
            pairs.append((t, d, value))
            taken_truths.add(t)
            taken.add(d)
    return Matching(pairs, counted, nearest)


@dataclass
class RegionCounts:
    """Matches of any number of images added up.

    Attributes:
        truths, detections: those that count. matched: pairs of them. iou_sum: of the pairs' IoUs.
    """

    truths: int = 0
    detections: int = 0
    matched: int = 0
    iou_sum: float = 0.0

    def add(self, other: RegionCounts) -> None:
        self.truths += other.truths
        self.detections += other.detections
        self.matched += other.matched
        self.iou_sum += other.iou_sum

    def scores(self) -> dict[str, float | int | None]:
        """Precision, recall, their harmonic mean F, and panoptic quality (Kirillov et al. 2019).

        PQ = sum of the pairs' IoUs / (pairs + half of the detections and of the truths without one). None: nothing to
        divide by; precision of no detection is None, F is then 0 when there was something to find.
        """
        wrong, missed = self.detections - self.matched, self.truths - self.matched
        whole = self.matched + (wrong + missed) / 2
        return {
            "truths": self.truths,
            "detections": self.detections,
            "matched": self.matched,
            "precision": _share(self.matched, self.detections),
            "recall": _share(self.matched, self.truths),
            "f": _share(2 * self.matched, self.truths + self.detections),
            "pq": _share(self.iou_sum, whole),
            "mean_iou_of_matched": _share(self.iou_sum, self.matched),
        }


def count_matches(matching: Matching, truths: int) -> RegionCounts:
    """Of one image with so many true polygons."""
    ious = [iou for _, _, iou in matching.pairs]
    return RegionCounts(truths, int(matching.counted.sum()), len(ious), float(sum(ious)))


def count_by_script(matching: Matching, scripts: Sequence[str]) -> dict[str, RegionCounts]:
    """The counts of each script, given the script of each true polygon.

    A wrong detection counts against the script of the truth that it overlaps most; one that overlaps none counts
    against no script (but against all together), since nobody can say what it took for text.
    """
    counts = {script: RegionCounts(truths=number) for script, number in Counter(scripts).items()}
    for truth, _, iou in matching.pairs:
        counts[scripts[truth]].matched += 1
        counts[scripts[truth]].iou_sum += iou
    for counted, nearest in zip(matching.counted, matching.nearest, strict=True):
        if counted and nearest >= 0:
            counts[scripts[nearest]].detections += 1
    return counts


@dataclass
class PixelCounts:
    """Pixels of any number of masks against the truth, added up."""

    both: int = 0
    only_found: int = 0
    only_true: int = 0
    image_ious: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, found: np.ndarray, true: np.ndarray, ignore: np.ndarray | None = None) -> PixelCounts:
        """Of one image: masks (H, W) bool; pixels of `ignore` are left out.

        Raises:
            ValueError: the shapes differ.
        """
        if found.shape != true.shape:
            raise ValueError(f"Expected masks of one shape, got {found.shape} and {true.shape}.")
        if ignore is not None and ignore.any():
            found, true = found & ~ignore, true & ~ignore
        both = int(np.count_nonzero(found & true))
        counts = cls(both, int(np.count_nonzero(found)) - both, int(np.count_nonzero(true)) - both)
        union = counts.both + counts.only_found + counts.only_true
        counts.image_ious = [both / union] if both + counts.only_true else []  # of images that have any
        return counts

    def add(self, other: PixelCounts) -> None:
        self.both += other.both
        self.only_found += other.only_found
        self.only_true += other.only_true
        self.image_ious += other.image_ious

    def scores(self) -> dict[str, float | None]:
        """fgIoU of the summed pixels, precision, recall, F, and the mean IoU of the images with text; None: no data."""
        found, true = self.both + self.only_found, self.both + self.only_true
        return {
            "fgiou": _share(self.both, found + self.only_true),
            "precision": _share(self.both, found),
            "recall": _share(self.both, true),
            "f": _share(2 * self.both, found + true),
            "mean_image_iou": _share(sum(self.image_ious), len(self.image_ious)),
        }


def marked_shares(shares: Sequence[float], limit: float = 0.02) -> dict[str, float | int | None]:
    """Of photos without text: how much of each is marked all the same.

    Args:
        shares: of each photo's pixels, in [0, 1].
        limit: the share that is still tolerated.
    Returns:
        photos, their mean and 95th percentile, and `within`, the part of the photos whose share is at most the limit.
    """
    return {
        "photos": len(shares),
        "mean": _share(sum(shares), len(shares)),
        "percentile_95": float(np.percentile(shares, 95)) if len(shares) else None,
        "limit": limit,
        "within": _share(sum(share <= limit for share in shares), len(shares)),
    }


def script_of(text: str) -> str:
    """ "latin", "hangul", "han", "kana", "digits", "mixed" (of these scripts), or "other" without any letter or digit.

    Digits and signs beside letters do not make a text mixed.
    """
    found: set[str] = set()
    digits = False
    for character in text:
        name = unicodedata.name(character, "")
        digits |= character.isdigit()
        for script, starts in _SCRIPTS.items():
            if name.startswith(starts):
                found.add(script)
    if found <= {"han", "kana"} and "kana" in found:
        return "kana"
    return "mixed" if len(found) > 1 else next(iter(found), "digits" if digits else "other")


_SCRIPTS = {
    "latin": ("LATIN", "FULLWIDTH LATIN"),
    "hangul": ("HANGUL",),
    "han": ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH"),
    "kana": ("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"),
}


def _meeting(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Iterable[tuple[int, int]]:
    """Pairs of indices whose bounding boxes meet."""
    if not len(first) or not len(second):
        return
    low, high = (np.array([extreme(p, axis=0) for p in first]) for extreme in (np.min, np.max))
    for j, polygon in enumerate(second):
        meets = ((low < polygon.max(0)) & (high > polygon.min(0))).all(1)
        for i in np.flatnonzero(meets):
            yield int(i), j


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
