"""Results as a dataset folder that other tools train on: COCO, YOLO or Pascal VOC, through supervision."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from textsam.files.atomic import folder_written_atomically
from textsam.files.export import ImageRecord, coco_document, record_to_detections, write_json
from textsam.files.images import exif_orientation, read_image

FORMATS = ("coco", "yolo", "voc")


def write_dataset(
    folder: Path,
    format: str,
    pictures: Sequence[tuple[Path, str, ImageRecord]],
    categories: Sequence[str],
) -> Path:
    """Writes `folder` anew: `images/` and the annotations of all pictures.

    coco: `annotations.json`; yolo: `labels/*.txt` and `data.yaml`; voc: `annotations/*.xml`. Polygons (YOLO, VOC) keep
    every corner of the outline, holes are cut in, and read back they give the same pixels, except that what is one
    pixel wide may be lost; these formats lack objects in several parts (each becomes an object) and parts of one or two
    pixels. A picture with camera rotation, transparency or unusual colours is stored as the upright RGB PNG that was
    segmented, because tools differ in how they read such files.

    Args:
        folder: is replaced when it exists.
        format: one of `FORMATS`.
        pictures: path of the picture, its unique name without suffix, and its record.
        categories: the class names; ids are their places.
    Raises:
        ValueError: unknown format.
    """
    import supervision as sv

    if format not in FORMATS:
        raise ValueError(f"Unknown format {format!r}; choose one of {', '.join(FORMATS)}.")
    with folder_written_atomically(folder) as new:
        (new / "images").mkdir()
        copies = [_copy_picture(path, new / "images", name) for path, name, _ in pictures]
        records = [
            ImageRecord(copy.name, record.width, record.height, record.objects)
            for copy, (_, _, record) in zip(copies, pictures, strict=True)
        ]
        if format == "coco":
            # supervision's COCO writer marks every mask with a hole as a crowd and puts a licence on the pictures.
            write_json(new / "annotations.json", coco_document(records, categories))
            return folder
        annotations = {
            str(copy): record_to_detections(record, categories) for copy, record in zip(copies, records, strict=True)
        }
        dataset = sv.DetectionDataset(list(categories), [str(copy) for copy in copies], annotations)
        if format == "yolo":
            dataset.as_yolo(annotations_directory_path=str(new / "labels"), data_yaml_path=str(new / "data.yaml"))
        else:
            dataset.as_pascal_voc(annotations_directory_path=str(new / "annotations"))
    return folder


def _copy_picture(path: Path, folder: Path, name: str) -> Path:
    with Image.open(path) as image:
        plain = image.mode in ("RGB", "L") and image.format in ("JPEG", "PNG", "BMP", "WEBP")
        plain = plain and exif_orientation(image) == 1 and "transparency" not in image.info
    if plain:
        copy = folder / f"{name}{path.suffix.lower()}"
        shutil.copyfile(path, copy)
    else:
        copy = folder / f"{name}.png"
        Image.fromarray(np.ascontiguousarray(read_image(path))).save(copy)
    return copy
