"""Regions of text to files: ICDAR's lists of quadrilaterals, and COCO annotations.

ICDAR 2015: a text file for each picture with a line `x1,y1,x2,y2,x3,y3,x4,y4,transcript` for each region, clockwise
from where reading starts; `###` in the place of the transcript says that nobody can read it. Without transcripts the
lines hold the eight numbers alone, as in that challenge's task of localisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textsam.files.atomic import write_atomically


def icdar_lines(quads: np.ndarray, texts: Sequence[str] | None = None) -> str:
    """Quads (N, 4, 2) and N transcripts in ICDAR's form; line breaks in a transcript become spaces."""
    rows = []
    for index, quad in enumerate(np.round(quads).astype(int)):
        fields = [str(value) for value in quad.ravel()]
        if texts is not None:
            fields.append(" ".join(texts[index].split()))
        rows.append(",".join(fields) + "\n")
    return "".join(rows)


def write_icdar(path: Path, quads: np.ndarray, texts: Sequence[str] | None = None) -> None:
    """`icdar_lines` as a file in UTF-8, whole or not at all."""
    write_atomically(path, icdar_lines(quads, texts).encode())


def read_icdar(path: str | Path) -> tuple[np.ndarray, list[str | None]]:
    """Quads (N, 4, 2) float32 and their transcripts, None where a line has none.

    Raises:
        ValueError: a line without eight numbers, naming the file and the line.
    """
    quads, texts = [], []
    for number, line in enumerate(Path(path).read_text("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split(",", 8)  # a transcript may hold commas
        try:
            values = [float(field) for field in fields[:8]]
        except ValueError:
            values = []
        if len(values) != 8:
            raise ValueError(f"{path}, line {number}: expected x1,y1,...,x4,y4,transcript, got {line[:60]!r}.")
        quads.append(np.array(values, np.float32).reshape(4, 2))
        texts.append(fields[8] if len(fields) > 8 else None)
    return np.array(quads, np.float32).reshape(-1, 4, 2), texts


def region_annotation(row: dict[str, Any]) -> dict[str, Any]:
    """A region as a COCO annotation without ids: its quad as a polygon, box, area, and the region's own fields.

    Args:
        row: "quad" (4 x 2 list), "level", and any more values for JSON, such as "order", "score", "text".
    """
    quad = np.array(row["quad"], np.float64)
    low, high = quad.min(0), quad.max(0)
    x, y = quad.T
    return {
        "segmentation": [quad.ravel().tolist()],
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2,
        "iscrowd": 0,
        **{key: value for key, value in row.items() if key != "level"},
    }


def coco_of_regions(pictures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A COCO file of the regions of pictures; ids count from 1.

    Args:
        pictures: "file_name", "width", "height" and "regions", rows as for `region_annotation`.
    """
    from textsam import __version__

    levels = list(dict.fromkeys(row["level"] for picture in pictures for row in picture["regions"]))
    annotations: list[dict[str, Any]] = []
    images = []
    for image_id, picture in enumerate(pictures, start=1):
        images.append({"id": image_id, **{key: picture[key] for key in ("file_name", "width", "height")}})
        for row in picture["regions"]:
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": levels.index(row["level"]) + 1}
            annotations.append({**ids, **region_annotation(row)})
    return {
        "info": {"description": f"Text regions by TextSAM {__version__}"},
        "images": images,
        "categories": [{"id": i, "name": level} for i, level in enumerate(levels, start=1)],
        "annotations": annotations,
    }
