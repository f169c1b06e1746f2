"""Accepted masks of many photos, gathered into a COCO data set that `train/` reads: SAM's data engine, in small."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from app.limits import LIMITS
from app.scene import Found, detections_of
from textsam.files.atomic import write_atomically
from textsam.files.export import ImageRecord, category_list, coco_document, image_record, write_json


class Collection:
    """Photos with their masks; the same photo again takes the place of its former masks.

    Args:
        folder: made with the first photo. `images/` and `train.json` in it are what `python -m train` takes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: OrderedDict[int, ImageRecord] = OrderedDict()

    def add(self, key: int, photo: np.ndarray, rows: Sequence[Found]) -> None:
        """Add a photo's masks under their names.

        Args:
            key: names the photo.
            photo: (H, W, 3) uint8 RGB. rows: at least one, all named.
        Raises:
            ValueError: no mask, or too many photos.
        """
        if not rows:
            raise ValueError("There is no mask to collect: find something first.")
        if key not in self.records and len(self.records) >= LIMITS.collected:
            raise ValueError(f"A collection has at most {LIMITS.collected} photos: download it and start another.")
        number = list(self.records).index(key) if key in self.records else len(self.records)
        file_name = f"{number + 1:04d}.png"
        path = self.folder / "images" / file_name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(path, compress_level=1)  # lossless: the masks' edges are the photo's
        self.records[key] = image_record(file_name, photo, detections_of(rows, photo.shape[:2]))
        self._write()

    @property
    def masks(self) -> int:
        """Masks in all photos together."""
        return sum(len(record.annotations) for record in self.records.values())

    @property
    def names(self) -> list[str]:
        """Names that occur."""
        return category_list(list(self.records.values()))

    def pack(self, path: Path) -> Path:
        """Everything as one zip file: `train.json` and `images/`."""
        if not self.records:
            raise ValueError("The collection is empty: add masks to it first.")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in [self.folder / "train.json", *sorted((self.folder / "images").iterdir())]:
                archive.write(file, file.relative_to(self.folder))
        return path

    def clear(self) -> None:
        """Forget everything."""
        for file in (self.folder / "images").glob("*"):
            file.unlink()
        self.records.clear()
        write_atomically(self.folder / "train.json", b"{}")

    def _write(self) -> None:
        records = list(self.records.values())
        write_json(self.folder / "train.json", coco_document(records, category_list(records)))
