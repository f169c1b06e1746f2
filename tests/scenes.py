"""Six small pictures of a red square and a blue disc, written in the forms that training reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from textsam.files.rle import encode_mask

HEIGHT, WIDTH, NAMES = 48, 64, ("square", "disc")


def scene(number: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """(H, W, 3) uint8 and the masks of square and disc."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    top, left = rng.integers(2, 28), rng.integers(2, 12)
    square = (y >= top) & (y < top + 16) & (x >= left) & (x < left + 16)
    disc = (y - rng.integers(12, 36)) ** 2 + (x - rng.integers(44, 52)) ** 2 < 100
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    picture[square], picture[disc] = (220, 30, 30), (30, 30, 220)
    return picture, [square, disc]


def coded(mask: np.ndarray) -> dict[str, Any]:
    rle = encode_mask(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def write_coco(folder: Path, count: int = 6, first: int = 0) -> Path:
    """`folder/train.json` and `folder/images/`, of the scenes from `first` on; returns the file."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        picture, masks = scene(first + number)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
        for category, mask in enumerate(masks, start=1):
            entry = {"id": 10 * number + category, "image_id": number, "category_id": category, "iscrowd": 0}
            annotations.append({**entry, "segmentation": coded(mask)})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def sa1b_pair(number: int) -> tuple[bytes, bytes]:
    """The .jpg (here a PNG, so that colours stay) and the .json of a picture, as SA-1B has them."""
    picture, masks = scene(number)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    annotations = [{"id": 10 * number + i, "segmentation": coded(mask)} for i, mask in enumerate(masks, start=1)]
    content = {"image": {"image_id": number, "height": HEIGHT, "width": WIDTH}, "annotations": annotations}
    return buffer.getvalue(), json.dumps(content).encode()


def write_shard(path: Path, numbers: range, **extra: bytes) -> Path:
    """A tar of pairs `sa_N.jpg`, `sa_N.json`; `extra` are further members, "sa_9_jpg" for sa_9.jpg."""
    with tarfile.open(path, "w") as tar:
        members = {name.replace("_jpg", ".jpg").replace("_json", ".json"): data for name, data in extra.items()}
        for number in numbers:
            members[f"sa_{number}.jpg"], members[f"sa_{number}.json"] = sa1b_pair(number)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
