"""COCO-format folders to training samples: an augmented picture, instances to prompt for, names that are there or not.

A sample is a function of (seed, epoch, index) alone, so a run can be repeated and continued in the middle of an epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

from textsam.evaluation.geometry import farthest_from_boundary
from textsam.files.coco import CocoDataset, CocoImage, Region, load_coco
from train.embedding_table import crop_key

logger = logging.getLogger("train")
MAX_MASK_SHARE = 0.9  # masks over 90% of the image are discarded, as in the paper
STRETCH = 1.5  # of one side of a view to the other, at most
PASTED_PX = 1500  # what is smaller would be pasted blurred
COMMON_CUTOUT = 4  # how often a cutout has a name that is asked for as absent elsewhere, to once for any other


@dataclass(frozen=True)
class Source:
    """One data set and how it is used.

    Args:
        folder: holds `train.json` and `images/`.
        weight: draws of each picture relative to others.
        exhaustive: a name of the set that is not annotated in a picture is absent from it.
        semantic: a second file with one mask per name (for data whose instances are incomplete), joined by image id.
        unnamed: names that say nothing of the object ("salient object").
    """

    folder: Path
    weight: float = 1.0
    exhaustive: bool = True
    semantic: str | None = None
    unnamed: tuple[str, ...] = ()


# Source, its file, a picture, the same in the semantic file, category id -> index of the name.
_Item = tuple[Source, CocoDataset, CocoImage, CocoImage | None, dict]


@dataclass
class Sample:
    """One picture, S px square, and what is asked of it. G instances, P present names; masks at stride 4."""

    pixels: Tensor  # (3, S, S) uint8
    masks: Tensor  # (G, S/4, S/4) float in [0, 1]: the share of each cell
    boxes: Tensor  # (G, 4) xyxy px
    clicks: Tensor  # (G, 2) xy px in the mask
    names: Tensor  # (G,) int64 index of the name, -1 none
    keys: list[tuple[str, int | str]]  # (set, annotation id, or a key of the crop where crops are fixed)
    present: dict[int, Tensor] = field(default_factory=dict)  # name -> (S/4, S/4) union of its instances
    absent: Tensor | None = None  # names known not to be in the picture
    weights: Tensor | None = None  # (S/4, S/4): 0 where nothing is known
    # What `train.samples` adds.
    valid_hw: tuple[int, int] | None = None  # the rest, at the bottom and right, is padding
    labels: list[str | None] = field(default_factory=list)  # of each instance
    crops: Tensor | None = None  # (G, s, s, 3) uint8, what CLIP is shown of each instance (D.5)
    coverage: Tensor | None = None  # (G, s, s) in [0, 1], the mask in each crop
    picture_key: str = ""  # set and picture
    view_key: str = ""  # of the pixels, where views are fixed, so that what is computed of them can be kept
    seed: int = 0  # of everything that is drawn for this sample later


class CocoSamples(Dataset):
    """Samples of several sources.

    Args:
        sources: data sets.
        name_index: name as annotated -> index into the table of name embeddings, or missing for names without one.
        size: S. instances: G at most per picture.
        scale_range: large-scale jitter; half of the samples keep the whole picture.
        paste_share: of the samples, those that get an object of another picture pasted in, every name of the sets with
            exhaustive names as often as any other.
        cutouts: data sets whose objects are pasted, half of the time in place of those, and whose pictures are not
            shown; a name that is exhaustive elsewhere `COMMON_CUTOUT` times as often as others.
        centred_clicks: of the clicks, those that lie deepest in the mask, as people click; others lie anywhere in it.
        length: samples in an epoch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        name_index: dict[str, int],
        *,
        size: int,
        instances: int,
        seed: int,
        length: int,
        scale_range: tuple[float, float] = (0.75, 2.0),
        min_cells: float = 6.0,
        paste_share: float = 0.0,
        cutouts: Sequence[Source] = (),
        centred_clicks: float = 0.0,
    ) -> None:
        self.size, self.instances, self.seed, self.length = size, instances, seed, length
        self.scale_range, self.min_cells = scale_range, min_cells
        self.paste_share, self.centred_clicks = paste_share, centred_clicks
        self.epoch = 0
        self.items: list[_Item] = []
        weights: list[float] = []
        self.vocabulary: dict[Path, set[int]] = {}
        for source in sources:
            data = load_coco(source.folder / "train.json")
            semantic = load_coco(source.folder / source.semantic) if source.semantic else None
            by_id = {image.id: image for image in semantic} if semantic else {}
            index = {
                key: name_index[name]
                for key, name in data.categories.items()
                if name in name_index and name not in source.unnamed
            }
            unknown = [name for name in data.categories.values() if not (name in name_index or name in source.unnamed)]
            if unknown:
                told = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
                logger.warning("%s: unknown names, trained by their shapes alone: %s", source.folder, told)
            self.vocabulary[source.folder] = set(index.values()) if source.exhaustive else set()
            for image in data:
                self.items.append((source, data, image, by_id.get(image.id), index))
                weights.append(source.weight)
        if not self.items:
            raise ValueError(
                f"there is no picture to train on in {', '.join(str(source.folder) for source in sources)}"
            )
        self.weights = np.asarray(weights) / np.sum(weights)
        self._bad: set[Path] = set()  # told already
        self.to_paste, self.cutouts = _ToPaste(), _ToPaste(frozenset().union(*self.vocabulary.values()))
        for source, _, image, _, index in self.items if paste_share else ():
            if source.exhaustive:
                self.to_paste.add(source, image, index)
        for source in cutouts:
            data = load_coco(source.folder / "train.json")
            index = {key: name_index[name] for key, name in data.categories.items() if name in name_index}
            for image in data:
                self.cutouts.add(source, image, index)
        if cutouts and not paste_share:
            raise ValueError(
                "there are cutouts to paste, but paste_share is 0; set it to the share of samples that get one"
            )
        if paste_share and not (self.to_paste or self.cutouts):
            raise ValueError(
                f"paste_share is {paste_share}, but no set with exhaustive names has a named object of at least "
                f"{PASTED_PX} px to paste; set it to 0, or add such a set."
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """
        Raises:
            ValueError: no picture can be read. One that cannot is named and gives way to the next.
        """
        rng = np.random.default_rng((self.seed, self.epoch, index))
        (source, _, image, semantic, names), picture = self._readable(int(rng.choice(len(self.items), p=self.weights)))
        view = View.draw(rng, image.height, image.width, self.size, self.scale_range, stretch=STRETCH)
        pixels = view.apply_image(jitter_colour(Image.fromarray(picture), rng))
        pasted = self._paste(pixels, view.valid_hw, rng) if rng.random() < self.paste_share else None
        seen = ~pasted.mask if pasted is not None else np.ones(pixels.shape[:2], bool)
        seen_cells = shrink(seen)

        present: dict[int, np.ndarray] = {}
        for region in semantic.instances if semantic is not None else image.instances:
            if (name := names.get(region.category_id)) is not None:
                cells = view.apply_mask(region.mask(), self.size // 4) * seen_cells
                if cells.sum() > 0.5:
                    present[name] = np.maximum(present.get(name, 0.0), cells)
        found = [] if pasted is None else [pasted]
        for i in rng.permutation(len(image.instances)):
            if len(found) >= self.instances:
                break
            region = image.instances[i]
            full = (view.apply_mask(region.mask(), self.size) > 0.5) & seen
            if self.min_cells * 16 <= full.sum() <= MAX_MASK_SHARE * full.size:
                key = crop_key(source.folder.name, region.id)
                found.append(_Instance(full, names.get(region.category_id, -1), key))
        if pasted is not None:
            present[pasted.name] = np.maximum(present.get(pasted.name, 0.0), shrink(pasted.mask))
        boxes, clicks = [], []
        for instance in found:
            ys, xs = np.nonzero(instance.mask)
            pick = rng.integers(len(ys))
            boxes.append([xs.min(), ys[0], xs.max() + 1, ys[-1] + 1])
            centred = self.centred_clicks and rng.random() < self.centred_clicks
            x, y = farthest_from_boundary(instance.mask)[:2] if centred else (xs[pick], ys[pick])
            clicks.append([x + 0.0, y + 0.0])

        ignore = (semantic or image).ignore_mask()
        weights = np.maximum(1 - view.apply_mask(ignore, self.size // 4, outside=0.0), 1 - seen_cells)
        absent = self.vocabulary[source.folder] - set(present)
        cell = self.size // 4
        return Sample(
            pixels=torch.from_numpy(pixels).permute(2, 0, 1),
            masks=torch.from_numpy(
                np.stack([shrink(i.mask) for i in found]) if found else np.zeros((0, cell, cell), np.float32)
            ),
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            clicks=torch.tensor(clicks, dtype=torch.float32).reshape(-1, 2),
            names=torch.tensor([instance.name for instance in found], dtype=torch.int64),
            keys=[instance.key for instance in found],
            present={name: torch.from_numpy(mask) for name, mask in present.items()},
            absent=torch.tensor(sorted(absent), dtype=torch.int64),
            weights=torch.from_numpy((weights > 0.5).astype(np.float32)),
        )

    def _readable(self, first: int) -> tuple[_Item, np.ndarray]:
        """An item and its picture: the first that can be read from the one of this number on."""
        for number in range(len(self.items)):
            item = self.items[(first + number) % len(self.items)]
            if (pixels := self._read(item[2])) is not None:
                return item, pixels
        raise ValueError(f"none of the {len(self.items)} pictures can be read")

    def _read(self, image: CocoImage) -> np.ndarray | None:
        try:
            return image.read()
        except (OSError, ValueError) as error:
            if image.path not in self._bad:
                logger.warning("skipped: %s: %s", image.path, error)
            self._bad.add(image.path)
            return None

    def _paste(self, pixels: np.ndarray, valid_hw: tuple[int, int], rng: np.random.Generator) -> _Instance | None:
        """Draws an object of another picture over the valid part of `pixels` (S, S, 3), in place.

        None, and nothing drawn, where little of it would be seen or its picture cannot be read. Source: Ghiasi et al.
        2021, *Simple Copy-Paste*.
        """
        pools = [pool for pool in (self.to_paste, self.cutouts) if pool]
        name, source, image, region = pools[rng.integers(len(pools))].draw(rng)
        side = min(self.size * rng.uniform(0.15, 0.6), min(valid_hw) - 1)
        x1, y1, x2, y2 = (int(value) for value in region.box_xyxy)
        ratio = side / max(x2 - x1, y2 - y1)
        size = (max(8, round((x2 - x1) * ratio)), max(8, round((y2 - y1) * ratio)))
        if (picture := self._read(image)) is None:
            return None
        cut = jitter_colour(Image.fromarray(picture[y1:y2, x1:x2]), rng).resize(size, Image.Resampling.BILINEAR)
        share = Image.fromarray(region.mask()[y1:y2, x1:x2].astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        if rng.random() < 0.5:
            cut, share = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (cut, share))
        top, left = (int(rng.integers(0, max(1, room - part))) for room, part in zip(valid_hw, size[::-1], strict=True))
        place = (slice(top, top + size[1]), slice(left, left + size[0]))
        mask = np.zeros(pixels.shape[:2], bool)
        mask[place] = np.asarray(share) > 127
        if mask.sum() < self.min_cells * 16:
            return None
        alpha = np.asarray(share, np.float32)[..., None] / 255
        pixels[place] = np.asarray(cut) * alpha + pixels[place] * (1 - alpha)
        return _Instance(mask, name, crop_key(source.folder.name, region.id))


class _ToPaste:
    """Objects by name, to paste into other pictures.

    Args:
        common: names that are drawn `COMMON_CUTOUT` times as often as others.
    """

    def __init__(self, common: frozenset[int] = frozenset()) -> None:
        self.common = common
        self.by_name: dict[int, list[tuple[Source, CocoImage, Region]]] = {}

    def __len__(self) -> int:
        return len(self.by_name)

    def add(self, source: Source, image: CocoImage, index: dict[int, int]) -> None:
        for region in image.instances:
            if (name := index.get(region.category_id)) is not None and region.area >= PASTED_PX:
                self.by_name.setdefault(name, []).append((source, image, region))

    def draw(self, rng: np.random.Generator) -> tuple[int, Source, CocoImage, Region]:
        chances = np.array([COMMON_CUTOUT if name in self.common else 1 for name in self.by_name])
        name = list(self.by_name)[rng.choice(len(chances), p=chances / chances.sum())]
        found = self.by_name[name]
        return name, *found[rng.integers(len(found))]


@dataclass(frozen=True)
class _Instance:
    """An object of a sample."""

    mask: np.ndarray  # (S, S) bool
    name: int  # -1: none
    key: tuple[str, int | str]


@dataclass(frozen=True)
class View:
    """A scaled, mirrored crop of a picture, padded at the bottom and right to a square."""

    size: int
    scaled_wh: tuple[int, int]
    left: int
    top: int
    mirror: bool

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        height: int,
        width: int,
        size: int,
        scale_range: tuple[float, float],
        whole_share: float = 0.5,
        mirror_share: float = 0.5,
        stretch: float = 1.0,
    ) -> View:
        """The whole picture half of the time (`whole_share`), else large-scale jitter (Ghiasi et al. 2021), one side
        longer by up to `stretch` than it is."""
        scale = wider = 1.0
        if rng.random() < 1 - whole_share:
            scale = float(np.exp(rng.uniform(*np.log(scale_range))))
            if stretch > 1:
                wider = float(np.exp(rng.uniform(-0.5, 0.5) * np.log(stretch)))
        ratio = scale * size / max(height, width)
        scaled = (max(1, round(width * ratio * wider)), max(1, round(height * ratio / wider)))
        left, top = (int(rng.integers(0, max(0, side - size) + 1)) for side in scaled)
        return cls(size, scaled, left, top, bool(rng.random() < mirror_share))

    @property
    def valid_hw(self) -> tuple[int, int]:
        """(height, width) of the part that is picture."""
        width, height = self.scaled_wh
        return min(self.size, height - self.top), min(self.size, width - self.left)

    def _crop(self, image: Image.Image, resample: Image.Resampling, size: int, fill: int | tuple) -> np.ndarray:
        ratio = size / self.size
        x1 = min(self.left + self.size, self.scaled_wh[0])
        y1 = min(self.top + self.size, self.scaled_wh[1])
        fx, fy = image.width / self.scaled_wh[0], image.height / self.scaled_wh[1]
        box = (self.left * fx, self.top * fy, x1 * fx, y1 * fy)
        target = (max(1, round((x1 - self.left) * ratio)), max(1, round((y1 - self.top) * ratio)))
        part = image.resize(target, resample, box=box)
        if self.mirror:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas = Image.new(image.mode, (size, size), fill)
        canvas.paste(part, (0, 0))
        return np.asarray(canvas)

    def apply_image(self, image: Image.Image) -> np.ndarray:
        """(S, S, 3) uint8; the padding is the mean colour, zero after normalisation."""
        return self._crop(image, Image.Resampling.BILINEAR, self.size, (127, 127, 127)).copy()

    def apply_mask(self, mask: np.ndarray, size: int, outside: float = 0.0) -> np.ndarray:
        """(H, W) bool -> (size, size) float32, the share of each cell."""
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        return self._crop(image, Image.Resampling.BOX, size, int(255 * outside)).astype(np.float32) / 255


def shrink(mask: np.ndarray) -> np.ndarray:
    """(S, S) bool -> (S/4, S/4) float32, the share of each cell."""
    side = mask.shape[0] // 4
    return cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)


def jitter_colour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by up to 40%, each on half of the pictures; one in twelve in grey, one in
    four in other hues, one in eight out of focus.

    The same few thousand pictures come again a hundred times; what is left to learn from them is what stays the same.
    """
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.5:
            image = enhancer(image).enhance(float(rng.uniform(0.6, 1.4)))
    kind = rng.random()
    if kind < 1 / 12:
        image = image.convert("L").convert("RGB")
    elif kind < 1 / 3:
        hsv = np.asarray(image.convert("HSV")).copy()
        hsv[..., 0] += np.uint8(rng.integers(-12, 13) % 256)  # of a circle of 256
        image = Image.fromarray(hsv, "HSV").convert("RGB")
    if rng.random() < 1 / 8:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.5))))
    return image
