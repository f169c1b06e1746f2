"""Sets of objects to paste: a picture for each, in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from textsam.language.vocabulary import Vocabulary


class CutoutSet:
    """Writes `folder/images` and, at the end, `folder/train.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir(parents=True, exist_ok=True)
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.categories: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.images)

    def add(self, pixels: np.ndarray, mask: np.ndarray, name: str) -> None:
        """An object on its own: `pixels` (H, W, 3) uint8, `mask` (H, W) bool; what is empty around it is cut off."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        pixels, mask = pixels[place].copy(), mask[place]
        pixels[~mask] = pixels[mask].mean(0)  # what bleeds in when the object is scaled
        key, (height, width) = len(self.images) + 1, mask.shape
        file_name = f"{key:05d}.webp"
        Image.fromarray(pixels).save(self.folder / "images" / file_name, quality=90)
        self.images.append({"id": key, "file_name": file_name, "height": height, "width": width})
        counts = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        self.annotations.append(
            {
                "id": key,
                "image_id": key,
                "category_id": self.categories.setdefault(name, len(self.categories) + 1),
                "segmentation": {"size": [height, width], "counts": counts},
                "bbox": [0, 0, width, height],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
        )

    def write(self) -> None:
        categories = [{"id": number, "name": name} for name, number in self.categories.items()]
        record = {"images": self.images, "annotations": self.annotations, "categories": categories}
        (self.folder / "train.json").write_text(json.dumps(record))


def last_words(name: str, vocabulary: Vocabulary) -> str | None:
    """The longest end of a name that is known: "small step ladder" is a "step ladder" or a "ladder"."""
    words = name.split()
    return next((part for i in range(len(words)) if (part := " ".join(words[i:])) in vocabulary), None)
