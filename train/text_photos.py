"""Photos with outlines of their words as training samples: COCO files and ICDAR's folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from textsam.evaluation.ocr_truth import (
    UNREADABLE,
    does_not_count,
    outline_of,
    polygon_of,
    read_strokes,
    stroke_file,
    transcript_of,
)
from textsam.files import text_export
from textsam.files.coco import image_folder, picture_file
from textsam.files.images import list_images, read_image
from train.data import jitter_colour
from train.records import Account
from train.text_data import TextSample, draw_words
from train.text_targets import core, fill, unknown

logger = logging.getLogger("train")
MIN_PX = 5.0  # what is lower is neither text nor background
# A file with the one category "text" holds words, as ICDAR's.
CATEGORIES = ("word", "text line", "text block")


class Outline(NamedTuple):
    """A word, line or block in a photo."""

    strip: np.ndarray  # (2, 2, 2), see `train.text_scenes`
    counts: bool  # False: cannot be read, neither text nor background
    text: str


@dataclass
class TextPhoto:
    """A picture and the outlines in it, by level."""

    path: Path
    outlines: dict[str, list[Outline]] = field(default_factory=dict)
    strokes: Path | None = None  # a mask of the glyphs, white on black
    size_hw: tuple[int, int] | None = None  # as the outlines take it; None: not said

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, W, 3) uint8 RGB, and the glyphs (H, W) bool where there is a mask of them.

        Raises:
            OSError, ValueError: a file cannot be read, or has another size than the outlines say.
        """
        pixels = read_image(self.path)
        height, width = pixels.shape[:2]
        if self.size_hw not in (None, (height, width)):
            raise ValueError(f"the picture is {width} x {height} px, its outlines are for {self.size_hw[::-1]}")
        return pixels, None if self.strokes is None else read_strokes(self.strokes, (height, width))


class TextPhotos(Dataset):
    """Squares of S px, cut out of the photos at a random scale around 1. A level without outlines in the data set is
    unknown: nothing is asked about it.

    Args:
        source: a COCO file, or a folder in ICDAR's format; see `read_text_photos`. size: S.
        near_text: share of the cuts that are placed on a word.
    """

    def __init__(
        self,
        source: str | Path,
        size: int,
        length: int,
        seed: int = 0,
        scales: tuple[float, float] = (0.6, 1.6),
        near_text: float = 0.8,
    ) -> None:
        self.size, self.length, self.seed, self.scales, self.near_text = size, length, seed, scales, near_text
        self.photos = read_text_photos(source)
        self._bad: set[Path] = set()  # told already

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TextSample:
        """
        Raises:
            ValueError: no photo can be read. One that cannot is named and gives way to the next.
        """
        rng = np.random.default_rng((self.seed, index, 2))
        first = int(rng.integers(len(self.photos)))
        for photo in self.photos[first:] + self.photos[:first]:
            try:
                return self._sample(photo, *photo.read(), rng)
            except (OSError, ValueError) as error:
                if photo.path not in self._bad:
                    logger.warning("skipped: %s: %s", photo.path, error)
                self._bad.add(photo.path)
        raise ValueError(f"none of the {len(self.photos)} photos can be read")

    def _sample(
        self, photo: TextPhoto, pixels: np.ndarray, ink: np.ndarray | None, rng: np.random.Generator
    ) -> TextSample:
        image = jitter_colour(Image.fromarray(pixels), rng)
        scale = float(np.exp(rng.uniform(*np.log(self.scales))))
        side = self.size / scale
        corner = self._corner(photo, image.size, side, rng)
        size = (self.size, self.size)
        known: dict[str, list[np.ndarray]] = {level: [] for level in photo.outlines}
        void, words = [], []
        for level, outlines in photo.outlines.items():
            for outline in outlines:
                moved = (outline.strip - corner) * scale
                good = outline.counts and np.linalg.norm(moved[1] - moved[0], axis=-1).mean() >= MIN_PX
                (known[level] if good else void).append(moved)
                if good and level == "word" and _is_inside(moved, self.size):
                    words.append((moved, outline.text))
        levels = {"text": fill(known["word"], size), "word": fill(list(map(core, known["word"])), size)}
        if "text line" in known:
            levels["text line"] = fill(list(map(core, known["text line"])), size)
        if "text block" in known:
            levels["text block"] = fill(known["text block"], size)
        strokes = None
        if ink is not None:
            glyphs = Image.fromarray(ink.astype(np.uint8) * 255).convert("RGB")
            strokes = (cut(glyphs, corner, side, self.size, outside=0)[..., 0] > 127).astype(np.float32)
            levels["text stroke"] = cv2.resize(strokes, (self.size // 4,) * 2, interpolation=cv2.INTER_AREA)
        boxes, masks, texts = draw_words(words, size, 1, rng)
        return TextSample(
            torch.from_numpy(cut(image, corner, side, self.size)).permute(2, 0, 1),
            {level: torch.from_numpy(mask) for level, mask in levels.items()},
            torch.from_numpy(unknown(void, size)),
            None if strokes is None else torch.from_numpy(strokes),
            boxes,
            masks,
            texts,
        )

    def _corner(self, photo: TextPhoto, size: tuple[int, int], side: float, rng: np.random.Generator) -> np.ndarray:
        """Top left of the cut, px: often one that has a word in it."""
        low, high = np.minimum(0, np.array(size) - side), np.maximum(0, np.array(size) - side)
        words = photo.outlines["word"]
        if not words or rng.random() >= self.near_text:
            return rng.uniform(low, high)
        chosen = [word.strip for word in words if word.counts] or [word.strip for word in words]
        centre = chosen[int(rng.integers(len(chosen)))].mean((0, 1))
        return (centre - side * rng.uniform(0.15, 0.85, 2)).clip(low, high)


def _is_inside(strip: np.ndarray, side: int) -> bool:
    centre = strip.mean((0, 1))
    return bool(((centre > 0) & (centre < side)).all())


def cut(image: Image.Image, corner: np.ndarray, side: float, size: int, outside: int = 127) -> np.ndarray:
    """A square of `side` px at `corner` as (size, size, 3) uint8; what lies outside the picture is grey."""
    if side > size * 1.1:
        image = image.filter(ImageFilter.GaussianBlur(0.4 * side / size))
    matrix = (side / size, 0, corner[0], 0, side / size, corner[1])
    resample = Image.Resampling.BILINEAR
    return np.array(image.transform((size, size), Image.Transform.AFFINE, matrix, resample, fillcolor=(outside,) * 3))


def read_text_photos(source: str | Path) -> list[TextPhoto]:
    """All photos of a data set.

    Args:
        source: a COCO file with the categories "word" (or "text"), "text line" and "text block", pictures where
            `image_folder` looks for them, masks of glyphs where `stroke_file` does. Annotations without an outline are
            told and left out, unless too large a share is. Or a folder of pictures with ICDAR's text files,
            `gt_NAME.txt` or `NAME.txt`: eight coordinates, clockwise from the top left of the text, and the transcript,
            where it is known, on each line.
    Raises:
        FileNotFoundError: there is no such file or folder, or a picture is missing.
        ValueError: a line is wrong, naming it, or too many annotations are; or the file is no COCO file.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: expected a COCO file or a folder in ICDAR's format")
    try:
        photos = read_icdar(source) if source.is_dir() else read_coco(source)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source}: expected a COCO file with images, annotations and categories, got one that cannot be read as "
            f"such ({type(error).__name__}: {error})"
        ) from error
    if not any(word.counts for photo in photos for word in photo.outlines["word"]):
        raise ValueError(f"{source} has no outline of a word that can be read")
    if missing := [photo.path for photo in photos if not photo.path.is_file()]:
        raise FileNotFoundError(f"{source}: {len(missing)} pictures are missing, the first is {missing[0]}")
    return photos


def read_coco(file: Path) -> list[TextPhoto]:
    """The photos of a COCO file; see `read_text_photos`."""
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    names = {entry.get("id"): str(entry.get("name", "")).lower() for entry in content["categories"]}
    if "word" not in names.values():
        names = {key: "word" if name == "text" else name for key, name in names.items()}
    levels = [name for name in CATEGORIES if name in names.values()]
    folder = image_folder(file, content["images"])
    account, photos = Account(file.name), {}
    for entry in content["images"]:
        path = picture_file(folder, entry["file_name"])
        outlines: dict[str, list[Outline]] = {level: [] for level in levels}
        said = (entry.get("height"), entry.get("width"))
        size_hw = None if None in said else said
        photos[entry["id"]] = TextPhoto(path, outlines, stroke_file(file, path), size_hw)
    if "word" not in levels:
        raise ValueError(f'{file}: expected a category "word" or "text", got {", ".join(names.values()) or "none"}')
    for number, entry in enumerate(content["annotations"]):
        try:
            level = names.get(entry.get("category_id"))
            if level not in levels:
                continue
            photo = photos[entry.get("image_id")]
            photo.outlines[level].append(_read_annotation(entry, photo.size_hw))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            account.skip("mask", entry.get("id", number) if isinstance(entry, dict) else number, error)
        else:
            account.good("mask")
    account.check()
    return list(photos.values())


def _read_annotation(entry: dict[str, Any], size_hw: tuple[int, int] | None) -> Outline:
    corners = entry.get("quad")
    if corners is None:
        segmentation = outline_of(entry)
        if not isinstance(segmentation, list) and size_hw is None:
            raise ValueError("its mask needs height and width of the picture, which the file lacks")
        corners = polygon_of(segmentation, size_hw or (0, 0))
    return Outline(quad_strip(np.ravel(corners).tolist()), not does_not_count(entry), transcript_of(entry))


def read_icdar(folder: Path) -> list[TextPhoto]:
    """The photos of a folder with ICDAR's text files; see `read_text_photos`."""
    photos = []
    for path in list_images(folder):
        texts = [file for file in (folder / f"gt_{path.stem}.txt", folder / f"{path.stem}.txt") if file.is_file()]
        if not texts:
            raise FileNotFoundError(f"{path} has no gt_{path.stem}.txt beside it; an empty file says: no text")
        words = []
        for quad, transcript in zip(*text_export.read_icdar(texts[0]), strict=True):
            text = (transcript or "").strip()
            words.append(Outline(quad_strip(quad.ravel().tolist()), text != UNREADABLE, text))
        photos.append(TextPhoto(path, {"word": words}))
    return photos


def quad_strip(polygon: Sequence[float]) -> np.ndarray:
    """A flat polygon x1 y1 x2 y2 ... -> (2, 2, 2): upper edge and lower edge, both from left to right.

    Of a polygon with other than four corners, the smallest rectangle around it.
    """
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    if len(points) != 4:
        box = cv2.boxPoints(cv2.minAreaRect(points.astype(np.float32)))
        points = np.roll(box, -int(np.argmin(box.sum(1))), axis=0).astype(np.float64)
    return np.stack([points[:2], points[[3, 2]]])
