"""Training samples of written text: synthetic scenes, and photos with outlines of words.

A sample is a function of (seed, index) alone, so a run can be repeated and continued.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from train.data import jitter_colour
from train.synthetic_text import SyntheticText
from train.text_targets import core, fill, level_masks, unknown

MIN_WORD_PX = 5.0  # words that are lower are neither text nor background


@dataclass
class TextSample:
    """One picture, S px square, and what is written in it. Masks at stride 4."""

    pixels: Tensor  # (3, S, S) uint8
    levels: dict[str, Tensor]  # level -> (S/4, S/4) float in [0, 1]; a level that nobody knows is missing
    weights: Tensor  # (S/4, S/4): 0 where nothing is known
    strokes: Tensor | None = None  # (S, S) float, 1 on glyphs; None where nobody knows
    boxes: Tensor | None = None  # (G, 4) xyxy px of words
    masks: Tensor | None = None  # (G, S/4, S/4) of these words, whole


class SyntheticSamples(Dataset):
    """Scenes as samples. words: G at most of each scene, to be asked for by box and click."""

    def __init__(self, scenes: SyntheticText, length: int, words: int = 1) -> None:
        self.scenes, self.length, self.words = scenes, length, words

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TextSample:
        scene = self.scenes[index]
        height, width = scene.strokes.shape
        levels = {name: torch.from_numpy(mask) for name, mask in level_masks(scene).items()}
        small = [written.strip for written in scene.words if not written.legible]
        rng = np.random.default_rng((self.scenes.seed, index, 1))
        strips = [written.strip for written in scene.words if written.legible]
        boxes, masks = _words(strips, (width, height), self.words, rng)
        return TextSample(
            torch.from_numpy(scene.pixels.copy()).permute(2, 0, 1),
            levels,
            torch.from_numpy(unknown(small, (width, height))),
            torch.from_numpy(scene.strokes.astype(np.float32)),
            boxes,
            masks,
        )


def _words(
    strips: list[np.ndarray], size: tuple[int, int], count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Some of the words: boxes (G, 4) inside the picture and masks (G, H/4, W/4)."""
    boxes, masks = [], []
    for i in rng.permutation(len(strips)):
        if len(boxes) == count:
            break
        points = strips[i].reshape(-1, 2).clip(0, size)
        box, mask = np.concatenate([points.min(0), points.max(0)]), fill([strips[i]], size)
        if mask.sum() > 3:
            boxes.append(box)
            masks.append(mask)
    cells = (size[1] // 4, size[0] // 4)
    return (
        torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
        torch.from_numpy(np.array(masks, np.float32).reshape(-1, *cells)),
    )


class WordPhotos(Dataset):
    """Photos with outlines of words in a COCO file, cut into squares of S px at a random scale around 1.

    Each annotation has a polygon of four corners, clockwise from the top left of the text, or any polygon, of which the
    smallest rectangle is taken; `iscrowd` or `legible: false` says that it counts for nothing. Words alone are known:
    nothing is asked about strokes, lines and blocks.

    Args:
        file: the COCO file. size: S. near_text: share of the cuts that are placed on a word.
    Raises:
        ValueError: the file has no polygon.
    """

    def __init__(
        self,
        file: str | Path,
        size: int,
        length: int,
        seed: int = 0,
        scales: tuple[float, float] = (0.6, 1.6),
        near_text: float = 0.8,
    ) -> None:
        self.size, self.length, self.seed, self.scales, self.near_text = size, length, seed, scales, near_text
        self.items = read_word_photos(Path(file))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TextSample:
        rng = np.random.default_rng((self.seed, index, 2))
        path, strips, counts = self.items[int(rng.integers(len(self.items)))]
        with Image.open(path) as file:
            image = jitter_colour(file.convert("RGB"), rng)
        scale = float(np.exp(rng.uniform(*np.log(self.scales))))
        side = self.size / scale
        low, high = np.minimum(0, np.array(image.size) - side), np.maximum(0, np.array(image.size) - side)
        corner = rng.uniform(low, high)
        if strips and rng.random() < self.near_text:
            chosen = [i for i, counted in enumerate(counts) if counted] or list(range(len(strips)))
            centre = strips[int(rng.choice(chosen))].mean((0, 1))
            corner = (centre - side * rng.uniform(0.15, 0.85, 2)).clip(low, high)
        pixels = _cut(image, corner, side, self.size)
        moved = [(strip - corner) * scale for strip in strips]
        size = (self.size, self.size)
        known = [s for s, counted in zip(moved, counts, strict=True) if counted and _tall(s)]
        void = [s for s, counted in zip(moved, counts, strict=True) if not (counted and _tall(s))]
        boxes, masks = _words([s for s in known if _inside(s, self.size)], size, 1, rng)
        return TextSample(
            torch.from_numpy(pixels).permute(2, 0, 1),
            {"text": torch.from_numpy(fill(known, size)), "word": torch.from_numpy(fill(list(map(core, known)), size))},
            torch.from_numpy(unknown(void, size)),
            None,
            boxes,
            masks,
        )


def _tall(strip: np.ndarray) -> bool:
    return float(np.linalg.norm(strip[1] - strip[0], axis=-1).mean()) >= MIN_WORD_PX


def _inside(strip: np.ndarray, side: int) -> bool:
    centre = strip.mean((0, 1))
    return bool(((centre > 0) & (centre < side)).all())


def _cut(image: Image.Image, corner: np.ndarray, side: float, size: int) -> np.ndarray:
    """A square of `side` px at `corner` as (size, size, 3); what lies outside the picture is grey."""
    matrix = (side / size, 0, corner[0], 0, side / size, corner[1])
    if side > size * 1.1:
        image = image.filter(_smoothing(side / size))
    cut = image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(127,) * 3)
    return np.asarray(cut).copy()


def _smoothing(ratio: float):  # type: ignore[no-untyped-def]
    from PIL import ImageFilter

    return ImageFilter.GaussianBlur(0.4 * ratio)


def read_word_photos(file: Path) -> list[tuple[Path, list[np.ndarray], list[bool]]]:
    """Each picture of a COCO file: its path, the strips (2, 2, 2) of its words, and which of them count."""
    content = json.loads(file.read_text(encoding="utf-8"))
    folder = file.parent / "images" if (file.parent / "images").is_dir() else file.parent
    items = {entry["id"]: (folder / entry["file_name"], [], []) for entry in content["images"]}
    for entry in content["annotations"]:
        if not isinstance(entry.get("segmentation"), list) or not entry["segmentation"]:
            raise ValueError(f"{file}: annotation {entry.get('id')} has no polygon, which the outline of a word needs")
        _, strips, counts = items[entry["image_id"]]
        strips.append(quad_strip(entry["segmentation"][0]))
        counts.append(not entry.get("iscrowd") and entry.get("legible", True))
    return list(items.values())


def quad_strip(polygon: Sequence[float]) -> np.ndarray:
    """A flat polygon x1 y1 x2 y2 ... -> (2, 2, 2): upper edge and lower edge, both from left to right."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    if len(points) != 4:
        box = cv2.boxPoints(cv2.minAreaRect(points.astype(np.float32)))
        start = int(np.argmin(box.sum(1)))
        points = np.roll(box, -start, axis=0).astype(np.float64)
    return np.stack([points[:2], points[[3, 2]]])


class MixedSamples(Dataset):
    """Batches of several data sets in turn: sample i is of the set that its batch is of.

    Args:
        sets: data sets, and how many batches of each come in a row. batch_size: of the loop.
    """

    def __init__(self, sets: Sequence[tuple[Dataset, int]], batch_size: int, length: int) -> None:
        self.turns = [data for data, count in sets for _ in range(count)]
        self.batch_size, self.length = batch_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
        return self.turns[index // self.batch_size % len(self.turns)][index]
