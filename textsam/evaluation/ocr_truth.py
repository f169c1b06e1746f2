"""The written text that is truly in a picture: words with transcripts, lines, ink, and what does not count.

Read from COCO files whose categories are levels of text ("word", "text line", "text stroke", "text"; a file with the
one category "text", such as ICDAR's words in COCO form, holds words). An annotation with `iscrowd` or `ignore` 1,
`legible` false or the transcript `###` is a region that does not count; what CVAT puts into `attributes` under these
names, and under `text`, is read as well. Boxes without a segmentation are outlines, too (see `outline_of`). Ink may
also lie beside the pictures as masks, white on black: `strokes/NAME.png` for `images/NAME.jpg` (see `stroke_file`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from textsam.files.coco import CocoDataset, CocoImage, load_coco
from textsam.files.images import read_image
from textsam.files.rle import decode_mask, segmentation_to_rle
from textsam.text_regions.quads import quad_around

UNREADABLE = "###"


@dataclass
class TrueText:
    """What is written in one picture.

    Attributes:
        words, lines: polygons (K, 2) xy; word_texts: the transcripts of the words, "" where there is none.
        ignored_words, ignored_lines: polygons that do not count.
        strokes: (H, W) bool, the ink; None where the file does not say.
        ignored_pixels: (H, W) bool, where the ink is not known; None: nowhere.
        is_text_free: there is no text at all, legible or not.
    """

    words: list[np.ndarray] = field(default_factory=list)
    word_texts: list[str] = field(default_factory=list)
    ignored_words: list[np.ndarray] = field(default_factory=list)
    lines: list[np.ndarray] = field(default_factory=list)
    ignored_lines: list[np.ndarray] = field(default_factory=list)
    strokes: np.ndarray | None = None
    ignored_pixels: np.ndarray | None = None
    is_text_free: bool = False


@dataclass(frozen=True)
class TextDataset:
    """A COCO file of text regions.

    Attributes:
        coco: its pictures, and what was wrong.
        levels: those that it speaks of.
        annotations: image id -> its good annotations as they are in the file, with the level under "level". A picture
            with bad ones alone has an empty list, one without any is missing.
    """

    coco: CocoDataset
    levels: frozenset[str]
    annotations: dict[int | str, list[dict[str, Any]]]

    def truth(self, image: CocoImage) -> TrueText:
        """What is written in a picture. Annotations that `load_coco` found wrong are left out."""
        annotations = self.annotations.get(image.id, [])
        size_hw = (image.height, image.width)
        truth = TrueText(is_text_free=image.id not in self.annotations)
        for level, good, ignored in (
            ("word", truth.words, truth.ignored_words),
            ("text line", truth.lines, truth.ignored_lines),
        ):
            for annotation in annotations:
                if annotation["level"] != level:
                    continue
                polygon = polygon_of(annotation["segmentation"], size_hw)
                (ignored if does_not_count(annotation) else good).append(polygon)
                if level == "word" and not does_not_count(annotation):
                    truth.word_texts.append(transcript_of(annotation))
        file = stroke_file(self.coco.path, image.path)
        if "text stroke" in self.levels:
            ink = [annotation for annotation in annotations if annotation["level"] == "text stroke"]
            truth.strokes = _union((a for a in ink if not does_not_count(a)), size_hw)
        elif file is not None:
            truth.strokes = read_strokes(file, size_hw)
        if truth.strokes is not None:
            truth.ignored_pixels = _union((a for a in annotations if does_not_count(a)), size_hw)
        return truth


def load_text_dataset(path: str | Path, images: str | Path | None = None, *, max_bad_share: float = 0.1) -> TextDataset:
    """Reads a COCO file of text regions.

    Raises:
        FileNotFoundError, ValueError: as `load_coco`; or none of its categories is a level of text.
    """
    coco = load_coco(path, images, max_bad_share=max_bad_share, outline=outline_of)
    names = {key: name.casefold() for key, name in coco.categories.items()}
    if "word" not in names.values():
        names = {key: "word" if name == "text" else name for key, name in names.items()}
    levels = frozenset(names.values()) & {"word", "text line", "text block", "text stroke", "text"}
    if not levels & {"word", "text line", "text stroke"}:
        raise ValueError(
            f'{path}: expected a category "word", "text line", "text stroke" or "text", got '
            f"{', '.join(sorted(names.values())) or 'none'}: leave --ocr away for other things than written text."
        )
    known = {image.id for image in coco}
    annotations: dict[int | str, list[dict[str, Any]]] = {}
    for index, annotation in enumerate(json.loads(Path(path).read_text("utf-8-sig"))["annotations"]):
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, int | str) or key not in known:
            continue
        kept = annotations.setdefault(key, [])
        if index in coco.taken:
            kept.append(
                {**annotation, "segmentation": outline_of(annotation), "level": names[annotation["category_id"]]}
            )
    return TextDataset(coco, levels, annotations)


def stroke_file(coco_file: Path, picture: Path) -> Path | None:
    """The ink of a picture, where there is a file of it: in `strokes/` beside the COCO file or beside the pictures'
    folder, placed as the picture is below its folder, or with its name alone."""
    beside, name = coco_file.parent / "strokes", f"{picture.stem}.png"
    folders = [folder for folder in (coco_file.parent / "images", coco_file.parent) if picture.is_relative_to(folder)]
    placed = [beside / picture.relative_to(folder).with_suffix(".png") for folder in folders]
    files = (*placed, beside / name, picture.parent.parent / "strokes" / name)
    return next((file for file in files if file.is_file()), None)


def read_strokes(file: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool.

    Raises:
        ValueError: another size than the picture's.
    """
    strokes = read_image(file)[..., 0] > 127
    if strokes.shape != size_hw:
        raise ValueError(f"{file} is {strokes.shape}, its picture is {size_hw} (height, width)")
    return strokes


def outline_of(annotation: dict[str, Any]) -> Any:
    """Its segmentation or, where a tool writes rectangles as boxes alone, the polygon of the box's corners, turned by
    the degrees that CVAT puts into `attributes`.

    Raises:
        ValueError: neither is there.
    """
    segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    if segmentation:
        return segmentation
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(f"it has no outline: neither a segmentation nor a bbox of four numbers, but {box!r}")
    angle, half = math.radians(float(_said(annotation).get("rotation") or 0)), np.array(box[2:]) / 2
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return [(corners @ turn + np.array(box[:2]) + half).ravel().tolist()]


def does_not_count(annotation: dict[str, Any]) -> bool:
    """Whether an annotation marks a region that a detection may cover or leave."""
    said = _said(annotation)
    flagged = said.get("iscrowd") or said.get("ignore") or said.get("legible") is False
    return bool(flagged) or transcript_of(annotation).strip() == UNREADABLE


def transcript_of(annotation: dict[str, Any]) -> str:
    """What is written in an annotation's region; "" where nobody says."""
    text = _said(annotation).get("text")
    return "" if text is None else str(text)


def _said(annotation: dict[str, Any]) -> dict[str, Any]:
    """An annotation's fields, and those that CVAT puts into `attributes`."""
    attributes = annotation.get("attributes")
    return {**attributes, **annotation} if isinstance(attributes, dict) else annotation


def polygon_of(segmentation: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """The outline (K, 2) xy of an annotation: its largest polygon, or the rotated box around an RLE's pixels."""
    if isinstance(segmentation, list):
        polygons = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        return max(polygons, key=lambda polygon: cv2.contourArea(polygon.astype(np.float32)))
    mask = decode_mask(segmentation_to_rle(segmentation, *size_hw))
    rows, columns = np.nonzero(mask)
    corners = [(columns + x, rows + y) for x in (0, 1) for y in (0, 1)]  # pixels are squares
    points = np.concatenate([np.stack(corner, axis=1) for corner in corners])
    return quad_around(points)


def _union(annotations: Iterable[dict[str, Any]], size_hw: tuple[int, int]) -> np.ndarray:
    rles = [segmentation_to_rle(annotation["segmentation"], *size_hw) for annotation in annotations]
    return decode_mask(coco_mask.merge(rles)) if rles else np.zeros(size_hw, bool)
