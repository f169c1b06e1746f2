"""Sets of objects to paste: a picture for each, in COCO's format, and what they are called."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image
from supervision.config import CLASS_NAME_DATA_FIELD

from textsam.files.export import ImageRecord, category_list, coco_document, image_record
from textsam.language.vocabulary import Vocabulary


class CutoutSet:
    """Writes `folder/images` and, at the end, `folder/train.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir(parents=True, exist_ok=True)
        self.records: list[ImageRecord] = []

    def __len__(self) -> int:
        return len(self.records)

    def add(self, pixels: np.ndarray, mask: np.ndarray, name: str) -> None:
        """An object on its own: `pixels` (H, W, 3) uint8, `mask` (H, W) bool; what is empty around it is cut off."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        pixels, mask = pixels[place].copy(), mask[place]
        pixels[~mask] = pixels[mask].mean(0)  # what bleeds in when the object is scaled
        file_name = f"{len(self) + 1:05d}.webp"
        Image.fromarray(pixels).save(self.folder / "images" / file_name, quality=90)
        found = sv.Detections(
            xyxy=sv.mask_to_xyxy(mask[None]).astype(np.float32),
            mask=mask[None],
            data={CLASS_NAME_DATA_FIELD: np.array([name])},
        )
        self.records.append(image_record(file_name, pixels, found))

    def names(self) -> list[str]:
        return category_list(self.records)

    def write(self) -> None:
        """
        Raises:
            ValueError: nothing was added.
        """
        if not self.records:
            raise ValueError(f"no object with a known name was found for {self.folder}: look at what was given to read")
        content = {**coco_document(self.records, self.names()), "info": {"description": "Objects to paste into photos"}}
        (self.folder / "train.json").write_text(json.dumps(content))


def known_name(key: str, said: str, same: Mapping[str, str], vocabulary: Vocabulary) -> str | None:
    """What a thing is called in the vocabulary, or None where it is to be left out.

    Args:
        key: what `same` is asked for.
        said: its name or a phrase, of which else the longest known end counts: a "cuckoo clock" is a "clock".
        same: regular expressions of a whole key -> name; the first that fits counts, "" leaves the thing out.
    """
    for pattern, name in same.items():
        if re.fullmatch(pattern, key):
            return name or None
    words = said.split()
    return next((part for i in range(len(words)) if (part := " ".join(words[i:])) in vocabulary), None)
