"""Two classical finders of text, by OpenCV alone, so that a model's scores have something to stand beside.

Both give patches that may be letters, in either polarity; the same rules make words and lines of them:
`mser`: maximally stable extremal regions (Matas et al. 2002), the usual start of text detectors before deep learning
(Neumann and Matas 2010); `adaptive`: the connected parts of a picture thresholded against its local mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from textsam.text_regions.order import reading_order
from textsam.text_regions.quads import quad_around


@dataclass(frozen=True)
class FoundText:
    """What a finder says of a picture.

    Attributes:
        words, lines: (N, 4, 2) and (M, 4, 2) quads in pixels.
        strokes: (H, W) bool ink; None when the finder does not know of ink.
        marked: (H, W) bool, everything that it takes for text.
    """

    words: np.ndarray
    lines: np.ndarray
    strokes: np.ndarray | None
    marked: np.ndarray


@dataclass(frozen=True)
class LetterRules:
    """When a patch is a letter, and when letters are a word.

    Attributes:
        min_height, max_height: pixels, and share of the picture's height.
        max_aspect: width by height.
        fill: least and greatest share of its box that a letter's pixels take.
        max_stroke_spread: standard deviation by mean of the ink's width along a letter's middle.
        min_letters: of a line, below which it is noise.
        word_gap: share of the letters' height from which on a gap parts two words.
    """

    min_height: int = 8
    max_height: float = 0.25
    max_aspect: float = 2.5
    fill: tuple[float, float] = (0.2, 1.0)
    max_stroke_spread: float = 0.5
    min_letters: int = 3
    word_gap: float = 0.35


@dataclass(frozen=True)
class Patch:
    """A possible letter: its box's corner in pixels and its pixels (h, w) bool."""

    left: int
    top: int
    mask: np.ndarray


def find_by_mser(
    picture: np.ndarray,
    rules: LetterRules = LetterRules(),
    *,
    delta: int = 8,
    max_variation: float = 0.25,
    min_diversity: float = 0.0,
) -> FoundText:
    """(H, W, 3) uint8 RGB to its text, by stable regions; the constants are OpenCV's `MSER_create`'s."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    largest = int(max((rules.max_height * height) ** 2, 61))
    detector = cv2.MSER.create(
        delta=delta, min_area=30, max_area=largest, max_variation=max_variation, min_diversity=min_diversity
    )
    regions, boxes = detector.detectRegions(gray)
    patches = []
    for points, (left, top, box_width, box_height) in zip(regions, boxes, strict=True):
        if _may_be_letter(box_width, box_height, len(points), height, rules):
            mask = np.zeros((box_height, box_width), bool)
            columns, rows = np.asarray(points).T
            mask[rows - top, columns - left] = True
            patches.append(Patch(int(left), int(top), mask))
    return _found(_without_repeats(patches), (height, width), rules)


def find_by_adaptive_threshold(
    picture: np.ndarray,
    rules: LetterRules = LetterRules(),
    *,
    block: int = 61,
    offset: float = 20.0,
) -> FoundText:
    """(H, W, 3) uint8 RGB to its text, by a threshold `offset` grey levels off the mean of `block` x `block` pixels."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    patches = []
    for image in (gray, 255 - gray):
        dark = cv2.adaptiveThreshold(image, 1, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY_INV, block, offset)
        count, labels, statistics, _ = cv2.connectedComponentsWithStats(dark, connectivity=8)
        for number in range(1, count):
            left, top, width, height, area = (int(value) for value in statistics[number])
            if _may_be_letter(width, height, area, gray.shape[0], rules):
                mask = labels[top : top + height, left : left + width] == number
                patches.append(Patch(left, top, mask))
    return _found(patches, (gray.shape[0], gray.shape[1]), rules)


BASELINES: dict[str, Callable[[np.ndarray], FoundText]] = {
    "MSER": find_by_mser,
    "adaptive threshold": find_by_adaptive_threshold,
}


def _may_be_letter(width: int, height: int, area: int, picture_height: int, rules: LetterRules) -> bool:
    return (
        rules.min_height <= height <= rules.max_height * picture_height
        and width <= rules.max_aspect * height
        and rules.fill[0] <= area / (width * height) <= rules.fill[1]
    )


def _has_even_strokes(patch: Patch, rules: LetterRules) -> bool:
    """Letters are drawn with one pen: along the middle of the ink, the distance to its edge varies little."""
    distance = cv2.distanceTransform(np.pad(patch.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    ridge = distance[(distance > 0) & (distance >= cv2.dilate(distance, np.ones((3, 3), np.uint8)) - 1e-6)]
    return bool(ridge.std() <= rules.max_stroke_spread * ridge.mean())


def _without_repeats(patches: list[Patch]) -> list[Patch]:
    """MSER finds a letter at several thresholds: of boxes that agree the one with most pixels stays."""
    if not patches:
        return []
    patches = sorted(patches, key=lambda patch: -int(patch.mask.sum()))
    boxes = np.array([[p.left, p.top, p.mask.shape[1], p.mask.shape[0]] for p in patches])
    scores = np.linspace(1, 0.5, len(boxes), dtype=np.float32)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, 0.5)
    return [patches[int(index)] for index in np.asarray(kept).ravel()]


def _found(patches: list[Patch], size_hw: tuple[int, int], rules: LetterRules) -> FoundText:
    """Letters to lines of at least `min_letters`, and lines to words where a gap is wide."""
    letters = [patch for patch in patches if _has_even_strokes(patch, rules)]
    strokes = np.zeros(size_hw, bool)
    words, lines = [], []
    boxes = np.array([_corners(letter) for letter in letters], np.float32).reshape(-1, 4, 2)
    order = reading_order(boxes)
    for number in range(int(order.line.max(initial=-1)) + 1):
        members = [int(i) for i in order.order if order.line[i] == number]
        if len(members) < rules.min_letters:
            continue
        for i in members:
            letter = letters[i]
            rows, columns = letter.mask.shape
            strokes[letter.top : letter.top + rows, letter.left : letter.left + columns] |= letter.mask
        lines.append(quad_around(boxes[members].reshape(-1, 2)))
        words += [quad_around(boxes[word].reshape(-1, 2)) for word in _words(members, boxes, rules)]
    found_words = np.array(words, np.float32).reshape(-1, 4, 2)
    marked = strokes.copy()
    for quad in found_words:
        canvas = marked.view(np.uint8)
        cv2.fillPoly(canvas, [np.round(quad).astype(np.int32)], 1)
    return FoundText(found_words, np.array(lines, np.float32).reshape(-1, 4, 2), strokes, marked)


def _words(line: list[int], boxes: np.ndarray, rules: LetterRules) -> list[list[int]]:
    """The letters of a line, left to right, parted where the gap is wide."""
    height = float(np.median(boxes[line, 2, 1] - boxes[line, 0, 1]))
    members = sorted(line, key=lambda i: boxes[i, 0, 0])
    words, end = [[members[0]]], boxes[members[0], 1, 0]
    for i in members[1:]:
        if boxes[i, 0, 0] - end > rules.word_gap * height:
            words.append([])
        words[-1].append(i)
        end = max(end, boxes[i, 1, 0])
    return words


def _corners(patch: Patch) -> list[list[int]]:
    height, width = patch.mask.shape
    right, bottom = patch.left + width, patch.top + height
    return [[patch.left, patch.top], [right, patch.top], [right, bottom], [patch.left, bottom]]
