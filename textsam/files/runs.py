"""Many pictures, one after the other: resumable, and a broken file stops nothing.

For every picture `photo.jpg` the output folder holds `overlays/photo.png`, `masks/photo/000-cat.png` ... and
`records/photo.json`, which is begun before them and whole after them: a picture with a whole record is done.
`annotations.json` (COCO) and, on request, `dataset/` gather all pictures of the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
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

MAX_STEM_BYTES = 240  # file systems allow 255
DIGEST_BLOCK = 1 << 22  # bytes


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
        overwrite: do everything again, and replace what is of no run or of another picture.
        on_picture: told after each picture, with "done", "skipped" or "failed".
    Returns:
        what was done; failed pictures are in `failures` with one sentence each.
    Raises:
        FileExistsError: `out` holds, under the names to be written, what no run wrote.
    """
    summary = RunSummary()
    named: list[tuple[Path, str, ImageRecord]] = []
    names = output_names(paths)
    gathered = [out / place for place in ["annotations.json"] + ["dataset"] * (dataset_format is not None)]
    foreign = [place for name in names for place in _outputs(out, name) if _is_foreign(place, _record_path(out, name))]
    begin_run(out, [] if overwrite else gathered, [] if overwrite else foreign)
    for path, name in zip(paths, names, strict=True):
        try:
            identity = {"settings": settings, "source": file_identity(path)}
            record = None if overwrite else _finished_record(out, name, identity)
            outcome = "skipped" if record else "done"
            if record is None and not overwrite:
                check_same_picture(_record_path(out, name), path)
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
    classes = category_list(summary.records, categories)
    if summary.records or not paths:  # where nothing could be done, what was done before stays
        write_json(out / "annotations.json", coco_document(summary.records, classes))
    if dataset_format is not None and summary.records:
        write_dataset(out / "dataset", dataset_format, named, classes)
    return summary


def output_names(paths: Sequence[Path]) -> list[str]:
    """A unique name for each picture's outputs: the file name without suffix, with it where two would be alike."""
    stems = [path.stem for path in paths]
    counts = Counter(stems)
    taken: set[str] = set()
    names = []
    for path, stem in zip(paths, stems, strict=True):
        name = _file_stem(stem if counts[stem] == 1 else path.name.replace(".", "_"))
        while name.lower() in taken:  # some file systems do not tell capitals apart
            name += "_"
        taken.add(name.lower())
        names.append(name)
    return names


def begin_run(out: Path, places: Sequence[Path], foreign: Sequence[Path] = ()) -> None:
    """Makes the folder of records: from here on `places` beside it are taken to be of a run.

    Args:
        places: to be written; in the first run nothing may be there yet.
        foreign: to be written in any run, and there already, of no run.
    Raises:
        FileExistsError: something is.
    """
    there = [] if (out / "records").is_dir() else [place for place in places if place.exists()]
    there += foreign
    if there:
        raise FileExistsError(
            f"{there[0]} exists, and no record says that a run wrote it: remove it, give another --out, or --overwrite."
        )
    (out / "records").mkdir(parents=True, exist_ok=True)


def check_same_picture(record: Path, path: Path) -> None:
    """Refuses to replace what a run made of another picture, such as a.jpg before a.png, that is still there.

    Raises:
        FileExistsError: the record is of it.
    """
    try:
        other = Path(json.loads(record.read_bytes())["source"]["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing is there, or nothing that tells of a picture
    if other != path.resolve() and other.is_file():
        raise FileExistsError(f"{record} is of {other}, another picture: give another --out, or --overwrite.")


def _file_stem(name: str) -> str:
    """A name in UTF-8 that leaves room for a suffix; OpenCV, for one, crashes on bytes that are no text."""
    name = re.sub("[\ud800-\udfff]", "_", name)
    if len(name.encode()) <= MAX_STEM_BYTES:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{name.encode()[:160].decode(errors='ignore')}-{digest}"


def _process(
    path: Path, out: Path, name: str, segment: Callable[[RgbImage], sv.Detections], identity: dict[str, Any]
) -> ImageRecord:
    image = read_image(path)
    detections = segment(image)
    record = image_record(path.name, image, detections)
    record_path = _record_path(out, name)
    write_json(record_path, identity)  # from here until the end the picture does not count as done, but as ours
    masks, overlay = _outputs(out, name)
    write_masks(masks, detections)
    write_png(overlay, draw_overlay(image, detections))
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
    masks, overlay = _outputs(out, name)
    return record if same and masks.is_dir() and overlay.is_file() else None


def file_identity(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}  # `read_image` says what is wrong
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def weights_identity(model: str | None, adapter: str | None = None) -> list[Any]:
    """What tells weights from others under the same name, on any machine: digests of their files.

    Args:
        model, adapter: as `textsam.load` takes them; of a Hub id nothing is known but the name.
    """
    from textsam.checkpoints.encoders import EMBEDDED, packaged_folder
    from textsam.checkpoints.loading import PACKAGED

    name = EMBEDDED if model is None else model
    of_model = _weights_digests(packaged_folder(name) if name in PACKAGED else Path(name).expanduser())
    return [of_model, None if adapter is None else _weights_digests(Path(adapter).expanduser())]


def _weights_digests(path: Path) -> list[str]:
    files = [path] if path.is_file() else sorted({*path.glob("*"), *path.glob("*/*")})
    weights = [file for file in files if file.suffix in (".safetensors", ".bin", ".pth", ".pt")]
    digests = []
    for file in weights:
        digest = hashlib.blake2b(digest_size=8)
        with file.open("rb") as opened:
            while block := opened.read(DIGEST_BLOCK):
                digest.update(block)
        digests.append(f"{file.name} {digest.hexdigest()}")
    return digests


def _outputs(out: Path, name: str) -> tuple[Path, Path]:
    """The folder of masks and the overlay."""
    return out / "masks" / name, out / "overlays" / f"{name}.png"


def _is_foreign(place: Path, record: Path) -> bool:
    return place.exists() and not record.exists()  # in this order, since another process may be at work here


def _record_path(out: Path, name: str) -> Path:
    return out / "records" / f"{name}.json"
