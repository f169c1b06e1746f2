"""The text of many pictures as files, one picture after the other; resumable, and a broken picture stops nothing.

For every picture `photo.jpg` the output folder holds
`crops/photo/000.png` ...: an upright crop of each region, in reading order;
`glyphs/photo/000.png` ...: its ink alone, RGBA in the picture's own pixels (models that know of ink);
`plate_masks/photo.png`: white where the picture must be painted over; `plates/photo.png`: painted over (on request);
`icdar/photo.txt`; and `records/photo.json`, which is begun before them and whole after them: a picture with a whole
record is done.
`annotations.json` (COCO) gathers all pictures of the run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from textsam.files.atomic import folder_written_atomically
from textsam.files.export import write_json, write_png
from textsam.files.images import RgbImage, read_image
from textsam.files.runs import PICTURE_ERRORS, begin_run, check_same_picture, file_identity, output_names
from textsam.files.text_export import coco_of_regions, write_icdar
from textsam.text_regions.cutouts import clean_plate, glyph_cutouts, plate_mask
from textsam.text_regions.rectify import recognise_regions, rectified_crops
from textsam.text_regions.regions import TextRegions

ReadPicture = Callable[[RgbImage], tuple[TextRegions, np.ndarray | None]]
"""A picture to its regions and the logits (H, W) of its ink, or None."""


@dataclass
class TextRunSummary:
    """What a run did; the records are in the order of the pictures, without the failed ones."""

    records: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    failures: dict[Path, str] = field(default_factory=dict)


def run_crops(
    paths: Sequence[Path],
    out: Path,
    read: ReadPicture,
    *,
    settings: dict[str, Any],
    plate: bool = False,
    recognise: Callable[[np.ndarray], str] | None = None,
    overwrite: bool = False,
    on_picture: Callable[[Path, str], None] = lambda path, outcome: None,
) -> TextRunSummary:
    """Reads pictures and writes everything under `out`.

    Args:
        settings: JSON values that determine the result together with the picture; a picture whose record has the same
            is skipped.
        plate: also write the plates that are painted over.
        recognise: an upright crop (h, w, 3) uint8 RGB to its transcript; None: no transcripts. Name it in the settings:
            nothing else tells one recogniser from another.
        overwrite: do everything again, and replace what is of no run or of another picture.
        on_picture: told after each picture, with "done", "skipped" or "failed".
    Raises:
        FileExistsError: `out` holds, under the names to be written, what no run wrote.
    """
    summary = TextRunSummary()
    names = output_names(paths)
    foreign = [path for name in names for path in _foreign(out, name, plate)]
    begin_run(out, [] if overwrite else [out / "annotations.json"], [] if overwrite else foreign)
    for path, name in zip(paths, names, strict=True):
        try:
            identity = {"settings": {**settings, "plate": plate}, "source": file_identity(path)}
            record = None if overwrite else _finished(out, name, plate, identity)
            outcome = "skipped" if record else "done"
            if record is None and not overwrite:
                check_same_picture(_record_path(out, name), path)
            if record is None:
                record = _process(path, name, out, read, plate, recognise, identity)
        except PICTURE_ERRORS as error:
            outcome = "failed"
            summary.failures[path] = " ".join(str(error).split()) or type(error).__name__
        else:
            summary.records.append(record)
            summary.skipped += outcome == "skipped"
        on_picture(path, outcome)
    if summary.records or not paths:  # where nothing could be done, what was done before stays
        write_json(out / "annotations.json", coco_of_regions(summary.records))
    return summary


def _process(
    path: Path,
    name: str,
    out: Path,
    read: ReadPicture,
    plate: bool,
    recognise: Callable[[np.ndarray], str] | None,
    identity: dict[str, Any],
) -> dict[str, Any]:
    picture = read_image(path)
    regions, ink = read(picture)
    if recognise is not None:
        regions = recognise_regions(picture, regions, recognise)
    for place in _written(out, name):
        # What an earlier run with other options wrote, and this one may not, would not belong to these regions.
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
    record_path = _record_path(out, name)
    write_json(record_path, identity)  # from here until the end the picture does not count as done, but as ours
    files = _file_names(len(regions))
    _write_pictures(out / "crops" / name, files, rectified_crops(picture, regions))
    mask = plate_mask(regions, ink)
    write_png(out / "plate_masks" / f"{name}.png", mask.astype(np.uint8) * 255)
    places: list[list[int]] = []
    if plate or ink is not None:
        cleaned = clean_plate(picture, mask)
        if plate:
            write_png(out / "plates" / f"{name}.png", cleaned)
        if ink is not None:
            cutouts = glyph_cutouts(picture, regions, ink, cleaned)
            _write_pictures(out / "glyphs" / name, files, [cutout.rgba for cutout in cutouts])
            places = [[cutout.left, cutout.top] for cutout in cutouts]
    write_icdar(out / "icdar" / f"{name}.txt", regions.quads, regions.texts)
    rows = region_rows(regions)
    for index, (row, file) in enumerate(zip(rows, files, strict=True)):
        row["crop"] = f"crops/{name}/{file}"
        if places:
            row |= {"glyphs": f"glyphs/{name}/{file}", "glyphs_left_top": places[index]}
    height, width = picture.shape[:2]
    record = {"file_name": path.name, "width": width, "height": height, "regions": rows}
    write_json(record_path, {**identity, "record": record})
    return record


def region_rows(regions: TextRegions) -> list[dict[str, Any]]:
    """Regions as values for JSON, in reading order."""
    rows = []
    for index in range(len(regions)):
        row: dict[str, Any] = {
            "level": regions.level,
            "order": index,
            "line": int(regions.line[index]),
            "block": int(regions.block[index]),
            "quad": np.round(regions.quads[index].astype(float), 2).tolist(),
            "score": round(float(regions.scores[index]), 6),
        }
        if regions.texts is not None:
            row["text"] = regions.texts[index]
        rows.append(row)
    return rows


def _file_names(count: int) -> list[str]:
    """Of the pictures of regions: as long as each other, so that they sort in reading order."""
    digits = max(3, len(str(count - 1)))
    return [f"{index:0{digits}d}.png" for index in range(count)]


def _write_pictures(folder: Path, files: Sequence[str], pictures: Sequence[np.ndarray]) -> None:
    with folder_written_atomically(folder) as new:
        for file, pixels in zip(files, pictures, strict=True):
            Image.fromarray(pixels).save(new / file)


def _outputs(out: Path, name: str, plate: bool) -> list[Path]:
    """What there is of every picture; `glyphs` only with ink."""
    files = [f"crops/{name}", f"plate_masks/{name}.png", f"icdar/{name}.txt"] + [f"plates/{name}.png"] * plate
    return [out / file for file in files]


def _foreign(out: Path, name: str, plate: bool) -> list[Path]:
    """What is there under the names to be written and of no run."""
    there = [path for path in [*_outputs(out, name, plate), out / "glyphs" / name] if path.exists()]
    ours = _written(out, name)  # asked for afterwards, since another process may be at work here
    return [path for path in there if path not in ours]


def _written(out: Path, name: str) -> list[Path]:
    """What an earlier run wrote, by its record."""
    path = _record_path(out, name)
    if not path.exists():
        return []
    try:
        plate = bool(json.loads(path.read_bytes())["settings"]["plate"])
    except (OSError, ValueError, KeyError, TypeError):
        plate = True  # a damaged record is one of a run all the same
    return [*_outputs(out, name, plate), out / "glyphs" / name]


def _record_path(out: Path, name: str) -> Path:
    return out / "records" / f"{name}.json"


def _finished(out: Path, name: str, plate: bool, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier run with the same settings on the same file, if its outputs are still there."""
    try:
        stored = json.loads(_record_path(out, name).read_bytes())
        record = stored.pop("record")
        pictures = [out / row[kind] for row in record["regions"] for kind in ("crop", "glyphs") if kind in row]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    there = all(path.exists() for path in [*_outputs(out, name, plate), *pictures])
    return record if there and stored == json.loads(json.dumps(identity)) else None
