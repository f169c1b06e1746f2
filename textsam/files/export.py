"""Results to files: overlay pictures, mask PNGs, COCO annotations, and YOLO, COCO or Pascal VOC datasets.

Every file appears whole or not at all; see `textsam.files.atomic`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from textsam.files.atomic import folder_written_atomically, write_atomically
from textsam.files.images import RgbImage
from textsam.files.rle import decode_mask, encode_mask
from textsam.prompting.detections import UNNAMED_CLASS

if TYPE_CHECKING:
    import supervision as sv

SCORES = ("predicted_iou", "stability_score", "presence")
"""Entries of `Detections.data`, one number per object, that are written beside the confidence."""


@dataclass(frozen=True)
class ImageRecord:
    """One picture and what was found in it, ready for JSON.

    annotations: COCO annotations without ids, with `category_name` in the place of `category_id`.
    """

    file_name: str
    width: int
    height: int
    annotations: list[dict[str, Any]]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The annotations whose masks have a pixel: the others are nothing to other tools."""
        return [annotation for annotation in self.annotations if annotation["area"]]


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False).encode())


def write_png(path: Path, pixels: np.ndarray) -> None:
    """pixels: (H, W, 3) uint8 RGB or (H, W) uint8 gray."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def class_names(detections: sv.Detections) -> list[str]:
    """The name of every object (N,); `UNNAMED_CLASS` where nobody gave one."""
    names = detections.data.get("class_name")
    return [UNNAMED_CLASS] * len(detections) if names is None else [str(name) for name in names]


def draw_overlay(image: RgbImage, detections: sv.Detections) -> RgbImage:
    """The picture with its objects tinted, outlined and labelled.

    Colours tell the classes apart, or the objects when all are of one class, or of a video, where they keep their
    numbers. Labels and lines scale with the picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        detections: with masks (N, H, W).
    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    import supervision as sv

    canvas = Image.fromarray(image)
    if len(detections) == 0:
        return np.array(canvas)
    names = class_names(detections)
    lookup = sv.ColorLookup.CLASS if len(set(names)) > 1 and detections.class_id is not None else sv.ColorLookup.INDEX
    numbers = detections.tracker_id
    if numbers is not None:
        lookup = sv.ColorLookup.TRACK
        names = [f"{name} #{number}" for name, number in zip(names, numbers, strict=True)]
    size_wh = canvas.size
    canvas = sv.MaskAnnotator(opacity=0.45, color_lookup=lookup).annotate(canvas, detections)
    thickness = sv.calculate_optimal_line_thickness(size_wh)
    canvas = sv.PolygonAnnotator(thickness=thickness, color_lookup=lookup).annotate(canvas, detections)
    if min(size_wh) >= 64:  # below, a label would hide the picture
        confidence = detections.confidence if detections.confidence is not None else [None] * len(names)
        labels = [name if c is None else f"{name} {c:.2f}" for name, c in zip(names, confidence, strict=True)]
        scale = min(max(sv.calculate_optimal_text_scale(size_wh), 0.35), 2.0)
        annotator = sv.LabelAnnotator(
            text_scale=scale,
            text_thickness=max(1, round(scale * 1.5)),
            text_padding=max(2, round(scale * 8)),
            color_lookup=lookup,
            smart_position=True,
        )
        canvas = annotator.annotate(canvas, detections, labels=labels)
    return np.asarray(canvas)


def write_masks(folder: Path, detections: sv.Detections) -> list[Path]:
    """One black-and-white PNG (0 and 255) of the picture's size per object: `000-cat.png`, `001-cat.png`, ..."""
    names = [f"{i:03d}-{_file_word(name)}.png" for i, name in enumerate(class_names(detections))]
    with folder_written_atomically(folder) as new:
        for name, mask in zip(names, _masks(detections), strict=True):
            Image.fromarray(mask.astype(np.uint8) * 255).save(new / name)
    return [folder / name for name in names]


def image_record(file_name: str, image: RgbImage, detections: sv.Detections) -> ImageRecord:
    """COCO annotations (compressed RLE, xywh boxes, areas in pixels, scores) of one picture's objects."""
    annotations = []
    for i, (name, mask) in enumerate(zip(class_names(detections), _masks(detections), strict=True)):
        rle = encode_mask(mask)
        annotation: dict[str, Any] = {
            "category_name": name,
            "bbox": [float(value) for value in coco_mask.toBbox(rle)],
            "area": int(coco_mask.area(rle)),
            "segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
            "iscrowd": 0,
        }
        if detections.confidence is not None:
            annotation["score"] = round(float(detections.confidence[i]), 6)
        for key in SCORES:
            if key in detections.data and np.isfinite(detections.data[key][i]):
                annotation[key] = round(float(detections.data[key][i]), 6)
        annotations.append(annotation)
    height, width = image.shape[:2]
    return ImageRecord(file_name, width, height, annotations)


def category_list(records: Sequence[ImageRecord], asked: Sequence[str] = ()) -> list[str]:
    """Names in the order asked for, found or not, then any others that occur."""
    found = (annotation["category_name"] for record in records for annotation in record.annotations)
    return list(dict.fromkeys([*asked, *found]))


def coco_document(records: Sequence[ImageRecord], categories: Sequence[str]) -> dict[str, Any]:
    """A COCO instances file; image, category and annotation ids count from 1. Masks without a pixel are left out.

    Annotations also carry `score`, so that the list under "annotations" is a COCO results file as well.
    """
    from textsam import __version__

    category_ids = {name: i for i, name in enumerate(categories, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, start=1):
        images.append({"id": image_id, "file_name": record.file_name, "width": record.width, "height": record.height})
        for annotation in record.objects:
            rest = {key: value for key, value in annotation.items() if key != "category_name"}
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**ids, "category_id": category_ids[annotation["category_name"]], **rest})
    return {
        "info": {"description": f"Masks by TextSAM {__version__}"},
        "images": images,
        "categories": [{"id": i, "name": name} for name, i in category_ids.items()],
        "annotations": annotations,
    }


def record_to_detections(record: ImageRecord, categories: Sequence[str]) -> sv.Detections:
    """The inverse of `image_record`, as far as datasets need it: boxes, masks and class ids."""
    import supervision as sv

    count, shape = len(record.annotations), (record.height, record.width)
    masks = np.zeros((count, *shape), bool)
    for mask, annotation in zip(masks, record.annotations, strict=True):
        mask[:] = decode_mask(annotation["segmentation"])
    boxes_xywh = np.array([annotation["bbox"] for annotation in record.annotations], np.float32).reshape(count, 4)
    return sv.Detections(
        xyxy=np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1),
        mask=masks,
        class_id=np.array([categories.index(a["category_name"]) for a in record.annotations], int),
    )


def _masks(detections: sv.Detections) -> Iterator[np.ndarray]:
    """(H, W) bool, one at a time: a compact mask is decoded one by one."""
    for i in range(len(detections)):
        if detections.mask is None:
            raise ValueError("The detections have no masks to write; `TextSam.predict` and `generate` give them.")
        yield np.asarray(detections.mask[i], bool)


def _file_word(name: str) -> str:
    """A class name as part of a file name."""
    return re.sub(r"[^\w]+", "-", name).strip("-")[:40] or UNNAMED_CLASS
