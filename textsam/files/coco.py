"""COCO-format instance files: polygons, RLE, compressed RLE, crowds and regions to ignore.

Bad entries (a mask of another size than its image, an empty polygon, a missing picture, a category without a name) are
counted, kept as `Problem`s that name the file and the id, and skipped; only when more than a stated share of the
images or of the annotations is bad does reading fail.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from textsam.files.coco_structures import CocoDataset, CocoImage, Problem, Region
from textsam.files.rle import segmentation_to_rle

MAX_BAD_SHARE = 0.1
"""Share of bad images or annotations above which a file is refused."""


def load_coco(
    path: str | Path,
    image_dir: str | Path | None = None,
    *,
    max_bad_share: float = MAX_BAD_SHARE,
    outline: Callable[[dict[str, Any]], object] = lambda annotation: annotation.get("segmentation"),
) -> CocoDataset:
    """Reads a COCO instances file.

    Args:
        path: the JSON file.
        image_dir: folder that `file_name` is relative to; by default the one where pictures are, see `image_folder`.
        max_bad_share: in [0, 1]; a larger share of bad images, or of bad annotations, is an error.
        outline: an annotation to its polygons or RLE; ValueError: it has none.
    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: not a COCO instances file, or more than `max_bad_share` of it is bad.
    """
    path = Path(path)
    data = _read_json(path)
    folder = image_folder(path, data["images"], image_dir)
    problems: list[Problem] = []
    categories = _read_categories(data["categories"], path, problems)
    records = _read_images(data["images"], folder, path, problems)
    bad_images = sum(p.where == "image" for p in problems)
    if records or not data["images"]:
        _check_share(bad_images, len(data["images"]), "images", path, problems, max_bad_share)
    else:
        raise ValueError(
            f"{path}: none of its {len(data['images'])} images can be used; looked in {folder} "
            f"(put the pictures in images/ beside the file, or name their folder: image_dir=, textsam evaluate: "
            f"--images). First problem: {problems[-1]}"
        )

    instances: dict[int | str, list[Region]] = {image_id: [] for image_id in records}
    ignore: dict[int | str, list[Region]] = {image_id: [] for image_id in records}
    skipped_ids = {_id_of(entry) for entry in data["images"] if isinstance(entry, dict)} - set(records)
    bad_annotations, taken = 0, set()
    for index, annotation in enumerate(data["annotations"]):
        if isinstance(annotation, dict) and _key(annotation.get("image_id")) in skipped_ids:
            continue  # its image has been reported already
        try:
            region, image_id, is_ignored = _read_annotation(annotation, records, categories, outline)
        except ValueError as error:
            bad_annotations += 1
            problems.append(Problem(path.name, "annotation", _label(annotation, index), str(error)))
            continue
        (ignore if is_ignored else instances)[image_id].append(region)
        taken.add(index)
    _check_share(bad_annotations, len(data["annotations"]), "annotations", path, problems, max_bad_share)

    images = []
    for image_id, (entry, file, height, width) in records.items():
        extra = _read_ignore_regions(entry, height, width, path, problems)
        images.append(
            CocoImage(image_id, file, height, width, tuple(instances[image_id]), tuple(ignore[image_id] + extra))
        )
    name = f"{path.parent.resolve().name}/{path.stem}"
    return CocoDataset(path, name, categories, images, problems, frozenset(taken))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such dataset file: {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise ValueError(f"{path} is not a COCO instances file: it has no list named {', '.join(missing)}")
    return data


def image_folder(path: Path, entries: list, image_dir: str | Path | None = None) -> Path:
    """The folder that the `file_name`s of a COCO file are relative to: `image_dir`, or the first of the usual places
    that holds one of the pictures.

    Those are `images/` beside the file and its own folder (Roboflow, Label Studio), and, for a file in `annotations/`,
    `../images/SUBSET`, `../SUBSET` (COCO itself) and `../images` (CVAT), with the file named `instances_SUBSET.json`.

    Raises:
        FileNotFoundError: there is no folder `image_dir`.
    """
    if image_dir is not None:
        if not Path(image_dir).is_dir():
            raise FileNotFoundError(f"no such image folder: {image_dir}")
        return Path(image_dir)
    above, subset = path.parent.parent, path.stem.rpartition("_")[2]
    beside = path.parent / "images"
    usual = (beside, path.parent, above / "images" / subset, above / subset, above / "images")
    names = [entry["file_name"] for entry in entries if isinstance(entry, dict) and _is_name(entry.get("file_name"))]
    for folder in filter(Path.is_dir, usual):
        if any(_is_file(picture_file(folder, name)) for name in names):
            return folder
    return beside if beside.is_dir() else path.parent


def picture_file(folder: Path, file_name: str) -> Path:
    """The path of a `file_name`, which may have been written on Windows."""
    path = folder / file_name
    return path if "\\" not in file_name or _is_file(path) else folder / file_name.replace("\\", "/")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _read_categories(entries: list, path: Path, problems: list[Problem]) -> dict[int | str, str]:
    categories: dict[int | str, str] = {}
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        key = _id_of(entry)
        if not isinstance(name, str) or not name.strip():
            problems.append(Problem(path.name, "category", _label(entry, index), "it has no name"))
        elif key is None or key in categories:
            problems.append(Problem(path.name, "category", _label(entry, index), "its id is missing or used twice"))
        else:
            categories[key] = name.strip()
    return categories


def _read_images(
    entries: list, folder: Path, path: Path, problems: list[Problem]
) -> dict[int | str, tuple[dict, Path, int, int]]:
    """id -> (entry, file, height, width) of every usable image."""
    records: dict[int | str, tuple[dict, Path, int, int]] = {}
    for index, entry in enumerate(entries):
        try:
            key, record = _read_image_entry(entry, folder)
            if key in records:
                raise ValueError("its id is used twice")
            records[key] = record
        except ValueError as error:
            problems.append(Problem(path.name, "image", _label(entry, index), str(error)))
    return records


def _read_image_entry(entry: Any, folder: Path) -> tuple[int | str, tuple[dict, Path, int, int]]:
    key = _id_of(entry)
    if key is None:
        raise ValueError("its id is missing")
    file_name, height, width = (entry.get(name) for name in ("file_name", "height", "width"))
    if not _is_name(file_name):
        raise ValueError("it has no file_name")
    file = picture_file(folder, file_name)
    if not _is_file(file):
        raise ValueError(f"no such picture: {file}")
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise ValueError(f"height and width must be positive integers, got {height}, {width}")
    return key, (entry, file, height, width)


def _read_annotation(
    annotation: object, records: dict, categories: dict, outline: Callable[[dict[str, Any]], object]
) -> tuple[Region, int | str, bool]:
    """(region, image id, whether it is a region to ignore); ValueError says what is wrong."""
    if not isinstance(annotation, dict):
        raise ValueError(f"an annotation must be an object, got {type(annotation).__name__}")
    image_id, category_id = _key(annotation.get("image_id")), _key(annotation.get("category_id"))
    if image_id is None or image_id not in records:
        raise ValueError(f"no image has the id {annotation.get('image_id')!r}")
    if category_id not in categories:
        raise ValueError(f"no category with a name has the id {annotation.get('category_id')!r}")
    _, _, height, width = records[image_id]
    rle = segmentation_to_rle(outline(annotation), height, width)
    region = Region(_id_of(annotation), category_id, rle)
    return region, image_id, bool(annotation.get("iscrowd") or annotation.get("ignore"))


def _read_ignore_regions(entry: dict, height: int, width: int, path: Path, problems: list[Problem]) -> list[Region]:
    """`void_rle` (ignored for all names) and `crowd` (ignored for its name) of one image entry."""
    regions = []
    listed = entry.get("crowd")
    crowd: list[Any] = listed if isinstance(listed, list) else []
    for candidate in crowd + ([{"segmentation": entry["void_rle"]}] if entry.get("void_rle") else []):
        try:
            if not isinstance(candidate, dict):
                raise ValueError(f"must be an object, got {type(candidate).__name__}")
            rle = segmentation_to_rle(candidate.get("segmentation"), height, width)
            regions.append(Region(None, _key(candidate.get("category_id")), rle))
        except ValueError as error:
            problems.append(Problem(path.name, "ignore region", f"of image {_label(entry, 0)}", str(error)))
    return regions


def _check_share(
    bad: int, total: int, what: str, path: Path, problems: Sequence[Problem], max_bad_share: float
) -> None:
    if total and bad / total > max_bad_share:
        kinds = Counter(p.message for p in problems if what.startswith(p.where))
        first = "; ".join(str(p) for p in problems[:3])
        raise ValueError(
            f"{path}: {bad} of {total} {what} are bad ({bad / total:.0%}, at most {max_bad_share:.0%} allowed; "
            f"{len(kinds)} kinds). First: {first}"
        )


def _key(value: object) -> int | str | None:
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _id_of(entry: object) -> int | str | None:
    return _key(entry.get("id")) if isinstance(entry, dict) else None


def _label(entry: object, index: int) -> str:
    key = _id_of(entry)
    return str(key) if key is not None else f"(entry {index}, without a usable id)"
