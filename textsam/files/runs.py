"""Many pictures, one after the other: resumable, and a broken file stops nothing.

For every picture `photo.jpg` the output folder holds `overlays/photo.png`, `masks/photo/000-cat.png` ... and
`records/photo.json`, which is written last: a picture with a record is done. `annotations.json` (COCO) and, on
request, `dataset/` gather all pictures of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsam.files.dataset_export import write_dataset
from textsam.files.export import (
    ImageRecord,
    category_list,
    coco_document,
    draw_overlay,
    image_record,
    write_json,
    write_masks,
    write_png,
)
from textsam.files.images import RgbImage, read_image

if TYPE_CHECKING:
    import supervision as sv

# A picture that cannot be read, does not suit the prompt, or does not fit into memory (torch: RuntimeError).
PICTURE_ERRORS = (OSError, ValueError, TypeError, RuntimeError, MemoryError)


@dataclass
class RunSummary:
    """What a run did; the records are in the order of the pictures, without the failed ones."""

    records: list[ImageRecord] = field(default_factory=list)
    done: int = 0
    skipped: int = 0
    failures: dict[Path, str] = field(default_factory=dict)


def run_images(
    paths: Sequence[Path],
    out: Path,
    segment: Callable[[RgbImage], sv.Detections],
    *,
    settings: dict[str, Any],
    categories: Sequence[str] = (),
    dataset_format: str | None = None,
    overwrite: bool = False,
    on_picture: Callable[[Path, str], None] = lambda path, outcome: None,
) -> RunSummary:
    """Segments pictures and writes everything under `out`.

    Args:
        paths: the pictures.
        out: output folder; made when missing.
        segment: (H, W, 3) uint8 RGB to detections with masks.
        settings: JSON values that, together with the picture file, determine the result. A picture whose record has
            the same settings and the same file size and time is skipped.
        categories: names to list in the annotations even where they were not found.
        dataset_format: "coco", "yolo", "voc" or None.
        overwrite: do everything again.
        on_picture: told after each picture, with "done", "skipped" or "failed".
    Returns:
        what was done; failed pictures are in `failures` with one sentence each.
    """
    summary = RunSummary()
    named: list[tuple[Path, str, ImageRecord]] = []
    for path, name in zip(paths, output_names(paths), strict=True):
        try:
            identity = {"settings": settings, "source": file_identity(path)}
            record = None if overwrite else _finished_record(out, name, identity)
            outcome = "skipped" if record else "done"
            record = record or _process(path, out, name, segment, identity)
        except PICTURE_ERRORS as error:
            outcome = "failed"
            summary.failures[path] = " ".join(str(error).split()) or type(error).__name__
        else:
            summary.records.append(record)
            named.append((path, name, record))
            summary.skipped += outcome == "skipped"
            summary.done += outcome == "done"
        on_picture(path, outcome)
    names = category_list(summary.records, categories)
    write_json(out / "annotations.json", coco_document(summary.records, names))
    if dataset_format is not None:
        write_dataset(out / "dataset", dataset_format, named, names)
    return summary


def output_names(paths: Sequence[Path]) -> list[str]:
    """A unique name for each picture's outputs: the file name without suffix, with it where two would be alike."""
    stems = [path.stem for path in paths]
    taken: set[str] = set()
    names = []
    for path, stem in zip(paths, stems, strict=True):
        name = stem if stems.count(stem) == 1 else path.name.replace(".", "_")
        while name.lower() in taken:  # some file systems do not tell capitals apart
            name += "_"
        taken.add(name.lower())
        names.append(name)
    return names


def _process(
    path: Path, out: Path, name: str, segment: Callable[[RgbImage], sv.Detections], identity: dict[str, Any]
) -> ImageRecord:
    record_path = _record_path(out, name)
    record_path.unlink(missing_ok=True)  # from here until the end the picture does not count as done
    image = read_image(path)
    detections = segment(image)
    record = image_record(path.name, image, detections)
    write_masks(out / "masks" / name, detections)
    write_png(out / "overlays" / f"{name}.png", draw_overlay(image, detections))
    write_json(record_path, {**identity, "record": asdict(record)})
    return record


def _finished_record(out: Path, name: str, identity: dict[str, Any]) -> ImageRecord | None:
    """The record of an earlier run with the same settings on the same file, if its outputs are still there."""
    try:
        stored = json.loads(_record_path(out, name).read_bytes())
        record = ImageRecord(**stored.pop("record"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no record, or not one of ours: the picture is not done
    same = stored == json.loads(json.dumps(identity))
    there = (out / "overlays" / f"{name}.png").is_file() and (out / "masks" / name).is_dir()
    return record if same and there else None


def file_identity(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}  # `read_image` says what is wrong
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _record_path(out: Path, name: str) -> Path:
    return out / "records" / f"{name}.json"
