"""Masks as files: overlay, cut-out, label map, COCO JSON, YOLO polygons."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, PngImagePlugin

from app.drawing import draw_masks
from app.scene import Found, detections_of
from textsam.files.dataset_export import write_dataset
from textsam.files.export import category_list, coco_document, image_record, write_json, write_png
from textsam.files.images import RgbImage


def write_overlay(path: Path, photo: RgbImage, rows: Sequence[Found]) -> None:
    """What the page shows, without clicks and boxes: a PNG."""
    write_png(path, draw_masks(photo, rows))


def write_cutout(path: Path, photo: RgbImage, rows: Sequence[Found]) -> None:
    """What the masks cover, cut to its box; the rest is transparent: an RGBA PNG."""
    alpha = np.zeros(photo.shape[:2], dtype=np.uint8)
    for row in rows:
        alpha[row.mask()] = 255
    ys, xs = np.nonzero(alpha)
    part = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
    Image.fromarray(np.dstack([photo, alpha])[part]).save(path, "PNG")


def write_label_map(path: Path, photo: RgbImage, rows: Sequence[Found]) -> None:
    """A PNG of the photo's size whose values number the masks from 1 in the list's order; 0 is none of them.

    Where masks overlap, the smaller one is on top. The text chunk "masks" holds the name of each number, as JSON.
    """
    labels = np.zeros(photo.shape[:2], dtype=np.uint8)
    for number, row in sorted(enumerate(rows, start=1), key=lambda item: -item[1].area):
        labels[row.mask()] = number
    info = PngImagePlugin.PngInfo()
    info.add_text("masks", json.dumps({str(number): row.name for number, row in enumerate(rows, start=1)}))
    Image.fromarray(labels).save(path, "PNG", pnginfo=info)


def write_coco(path: Path, photo: RgbImage, rows: Sequence[Found]) -> None:
    """A COCO instances file with RLE masks, boxes, areas and scores."""
    record = image_record(f"{path.stem.removesuffix('-coco')}.png", photo, detections_of(rows, photo.shape[:2]))
    write_json(path, coco_document([record], category_list([record])))


def write_yolo(path: Path, photo: RgbImage, rows: Sequence[Found]) -> None:
    """A zip of a YOLO data set: the photo, its polygons, and `data.yaml`."""
    name = path.stem.removesuffix("-yolo")
    record = image_record(f"{name}.png", photo, detections_of(rows, photo.shape[:2]))
    with TemporaryDirectory(dir=path.parent) as temporary:
        picture = Path(temporary) / f"{name}.png"
        write_png(picture, photo)
        folder = write_dataset(Path(temporary) / "yolo", "yolo", [(picture, name, record)], category_list([record]))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(each for each in folder.rglob("*") if each.is_file()):
                archive.write(file, file.relative_to(folder))


FORMATS: dict[str, tuple[str, Callable[[Path, RgbImage, Sequence[Found]], None]]] = {
    "Overlay": ("overlay.png", write_overlay),
    "Cut-out": ("cutout.png", write_cutout),
    "Label map": ("labels.png", write_label_map),
    "COCO": ("coco.json", write_coco),
    "YOLO": ("yolo.zip", write_yolo),
}


def write_download(form: str, folder: Path, name: str, photo: RgbImage, rows: Sequence[Found]) -> Path:
    """One of `FORMATS` under `folder`.

    Raises:
        ValueError: there is no mask, or no such format.
    """
    if not rows:
        raise ValueError("There is no mask to download: find something first.")
    if form not in FORMATS:
        raise ValueError(f"There is no format {form[:40]!r}: choose one of {', '.join(FORMATS)}.")
    ending, write = FORMATS[form]
    path = folder / f"{name}-{ending}"
    write(path, photo, rows)
    return path
