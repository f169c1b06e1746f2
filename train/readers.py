"""Data sets on disk or on the Hub to records: COCO, Hugging Face, SA-1B, folders of masks.

A source is rows of Hugging Face `datasets` (in memory-mapped tables, or as a stream) and a function that makes a
`Record` of a row. `open_source` chooses by what it is given.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from textsam.files.coco import MAX_BAD_SHARE, load_coco
from textsam.files.images import list_images
from train.records import LOGGED, Account, Record, logger, make_record

MAX_COLOURS = 1000  # in a picture of masks
REGION = {"id": Value("string"), "name": Value("string"), "counts": Value("binary"), "iscrowd": Value("bool")}
COCO_FEATURES = Features(
    {
        "id": Value("string"),
        "path": Value("string"),
        "height": Value("int32"),
        "width": Value("int32"),
        "regions": List(REGION),
    }
)


@dataclass
class RecordSource:
    """Rows, and how one becomes a record. `convert` raises OSError or ValueError for a row that is bad as a whole."""

    name: str
    rows: Dataset | IterableDataset
    convert: Callable[[dict[str, Any]], Record]
    account: Account

    @property
    def is_stream(self) -> bool:
        """Read in order only, with neither a length nor an index."""
        return isinstance(self.rows, IterableDataset)


@dataclass(frozen=True)
class Columns:
    """Which column of a Hugging Face data set holds what.

    Args:
        image: pictures, path or bytes.
        masks: one of: a list of binary mask pictures; one picture whose values or colours number the instances, 0 or
            black for none; a
            list of COCO segmentations (polygons or RLE); a list of COCO annotations, with their own "id".
        names: a list, the name of each mask; class numbers are looked up in the column's `ClassLabel`. None: nameless.
        id: of the picture; None: its number.
    """

    image: str = "image"
    masks: str = "masks"
    names: str | None = None
    id: str | None = None

    @classmethod
    def parse(cls, text: str) -> Columns:
        """From "image=photo,masks=objects,names=labels".

        Raises:
            ValueError: a word that is no field.
        """
        pairs = [part.partition("=") for part in text.split(",") if part]
        wrong = [key for key, _, value in pairs if key not in cls.__dataclass_fields__ or not value]
        if wrong:
            raise ValueError(f"columns must be image=, masks=, names= or id= and a column's name, but has {wrong}")
        return cls(**{key: value for key, _, value in pairs})


def open_source(
    text: str, *, columns: Columns | None = None, streaming: bool = False, max_bad_share: float = MAX_BAD_SHARE
) -> RecordSource:
    """The source that a word of the command line names.

    Args:
        text: FILE.json: COCO instances, pictures where `image_folder` looks for them. A folder with `train.json` or
            Roboflow's `_annotations.coco.json`: the same. FILE.tar or a folder of them: SA-1B's shards. A folder of
            .jpg and .json pairs: SA-1B unpacked. A folder with
            `images/` and `masks/`: see `open_mask_folder`. hf:NAME or hf:NAME:SPLIT, or a folder that
            `save_to_disk` wrote or that holds parquet files: Hugging Face datasets.
        columns, streaming: of a Hugging Face data set.
    Raises:
        FileNotFoundError, ValueError: there is no such data, or more than `max_bad_share` of it is bad.
    """
    if text.startswith("hf:"):
        name, _, split = text.removeprefix("hf:").partition(":")
        rows = load_dataset(name, split=split or "train", streaming=streaming)
        return from_hugging_face(rows, columns or Columns(), name=name, max_bad_share=max_bad_share)
    path = Path(text)
    for file in (path, path / "train.json", path / "_annotations.coco.json"):
        if file.suffix == ".json" and (file == path or file.is_file()):
            return open_coco(file, max_bad_share=max_bad_share)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return open_sa1b_shards([path] if path.suffix == ".tar" else sorted(path.glob("*.tar")), max_bad_share)
    if not path.exists():
        raise FileNotFoundError(f"There is no data set {text}.")
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return open_mask_folder(path, max_bad_share)
    if (path / "dataset_dict.json").is_file() and (path / "train").is_dir():
        path = path / "train"
    if (path / "dataset_info.json").is_file():
        rows = Dataset.load_from_disk(str(path))
        rows = rows.to_iterable_dataset() if streaming else rows
        return from_hugging_face(rows, columns or Columns(), name=path.name, max_bad_share=max_bad_share)
    if any(path.rglob("*.parquet")):
        rows = load_dataset(str(path), split="train", streaming=streaming)
        return from_hugging_face(rows, columns or Columns(), name=path.name, max_bad_share=max_bad_share)
    if any(file.with_suffix(".jpg").is_file() for file in path.rglob("*.json")):
        return open_sa1b_folder(path, max_bad_share)
    files = [str(file.relative_to(path)) for file in sorted(path.rglob("*.json"))[:3]]
    raise ValueError(
        f"{text} is no data set: expected a COCO .json, SA-1B's .tar files or .jpg and .json pairs, a folder with "
        "images/ and masks/, or a Hugging Face data set (hf:NAME)."
        + (f" If one of {', '.join(files)} is a COCO file, name that file itself." if files else "")
    )


def open_coco(path: Path, image_dir: Path | None = None, *, max_bad_share: float = MAX_BAD_SHARE) -> RecordSource:
    """COCO instances: polygons, RLE, crowds (ignored)."""
    data = load_coco(path, image_dir, max_bad_share=max_bad_share)
    account = Account(path.name, max_bad_share)
    for problem in data.problems[:LOGGED]:
        logger.warning("skipped (%d in all): %s", len(data.problems), problem)
    rows = []
    for image in data:
        regions = [
            {"id": str(r.id), "name": data.name_of(r), "counts": r.rle["counts"], "iscrowd": crowd}
            for group, crowd in ((image.instances, False), (image.ignore, True))
            for r in group
        ]
        size = {"height": image.height, "width": image.width}
        rows.append({"id": str(image.id), "path": str(image.path), **size, "regions": regions})
    if not rows:
        raise ValueError(f"{path} has no picture to train on")
    convert = partial(_coco_record, name=data.name, account=account)
    return RecordSource(data.name, Dataset.from_list(rows, features=COCO_FEATURES), convert, account)


def _coco_record(row: dict[str, Any], name: str, account: Account) -> Record:
    size = (row["height"], row["width"])
    annotations = [{**r, "segmentation": {"size": list(size), "counts": r["counts"]}} for r in row["regions"]]
    return make_record(account, name, row["id"], Path(row["path"]), size, annotations)


def from_hugging_face(
    rows: Dataset | IterableDataset, columns: Columns, *, name: str, max_bad_share: float = MAX_BAD_SHARE
) -> RecordSource:
    """Any data set whose pictures and masks are in columns.

    Raises:
        ValueError: it has no such column, naming those that it has.
    """
    wanted = [column for column in vars(columns).values() if column is not None]
    there = rows.column_names
    if there is not None and (missing := [column for column in wanted if column not in there]):
        raise ValueError(
            f"{name} has no column {', '.join(missing)}, only {', '.join(there)}: say which with --columns."
        )
    features, labels = rows.features or {}, None
    if isinstance(features.get(columns.image), ImageFeature):
        rows = rows.cast_column(columns.image, ImageFeature(decode=False))  # decoded late, and only if used
    if columns.names is not None:
        feature = features.get(columns.names)
        labels = getattr(getattr(feature, "feature", feature), "int2str", None)
    # Other columns would be decoded for nothing.
    rows = rows.select_columns(wanted)
    if columns.id is None and isinstance(rows, Dataset):
        rows = rows.add_column("_number", list(range(len(rows))))
    account = Account(name, max_bad_share)
    return RecordSource(
        name, rows, partial(_mapped_record, columns=columns, labels=labels, name=name, account=account), account
    )


def _mapped_record(
    row: dict[str, Any], columns: Columns, labels: Callable[[int], str] | None, name: str, account: Account
) -> Record:
    cell = row[columns.image]
    if isinstance(cell, dict):
        picture = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"])
    else:
        picture = cell if isinstance(cell, bytes) else Path(cell)
    # A stream without ids has no numbers that mean the same after a new start.
    key = row.get(columns.id or "_number")
    if key is None:
        key = blake2b(picture, digest_size=8).hexdigest() if isinstance(picture, bytes) else picture
    annotations = _annotations(row[columns.masks])
    if columns.names is not None:
        names = row[columns.names]
        if len(names) != len(annotations):
            raise ValueError(f"it has {len(annotations)} masks but {len(names)} names")
        for annotation, value in zip(annotations, names, strict=True):
            annotation["name"] = labels(value) if labels is not None and isinstance(value, int) else value
    return make_record(account, name, key, picture, _size_of(picture), annotations)


def _annotations(cell: Any) -> list[dict[str, Any]]:
    """A cell of a mask column, in any of the forms that `Columns` names."""
    if isinstance(cell, Image.Image):
        return _numbered(np.asarray(cell))
    if isinstance(cell, dict) and "counts" not in cell:  # a list of structs comes as a struct of lists
        cell = [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]
    annotations = []
    for mask in cell:
        if isinstance(mask, Image.Image):
            annotations.append({"segmentation": _first_channel(np.asarray(mask)) > 0})
        elif isinstance(mask, dict) and "segmentation" in mask:
            annotations.append(dict(mask))
        else:
            annotations.append({"segmentation": mask})
    return annotations


def _numbered(numbers: np.ndarray) -> list[dict[str, Any]]:
    """(H, W) numbers, or (H, W, 3 or 4) colours, as COCO's panoptic pictures have them -> a mask for each but 0."""
    coloured = numbers.ndim == 3 and numbers.shape[2] >= 3
    numbers = numbers[..., :3].astype(np.int64) @ (1, 256, 256**2) if coloured else _first_channel(numbers)
    values = np.unique(numbers)
    if coloured and len(values) > MAX_COLOURS:
        raise ValueError(f"its masks have {len(values)} colours, at most {MAX_COLOURS} are read: write flat colours")
    return [{"id": int(value), "segmentation": numbers == value} for value in values if value]


def _first_channel(mask: np.ndarray) -> np.ndarray:
    return mask if mask.ndim == 2 else mask[..., 0]


def _size_of(picture: Path | bytes) -> tuple[int, int]:
    """(H, W) as the picture is read, that is upright."""
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
        turned = ImageOps.exif_transpose(opened) if opened.getexif().get(0x0112, 1) != 1 else opened
        return turned.height, turned.width


def open_sa1b_folder(folder: Path, max_bad_share: float = MAX_BAD_SHARE) -> RecordSource:
    """SA-1B unpacked: `sa_N.json` beside `sa_N.jpg`, at any depth."""
    paths = sorted(str(path) for path in folder.rglob("*.json"))
    account = Account(folder.name, max_bad_share)
    convert = partial(_sa1b_file_record, name=folder.name, account=account)
    return RecordSource(folder.name, Dataset.from_dict({"path": paths}), convert, account)


def _sa1b_file_record(row: dict[str, Any], name: str, account: Account) -> Record:
    path = Path(row["path"])
    return _sa1b_record(path.read_bytes(), path.with_suffix(".jpg"), path.stem, name, account)


def _sa1b_record(text: bytes, picture: Path | bytes, key: str, name: str, account: Account) -> Record:
    content = json.loads(text)
    try:
        size = (int(content["image"]["height"]), int(content["image"]["width"]))
        annotations = list(content["annotations"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not SA-1B's: it lacks image.height, image.width or annotations ({error})") from error
    return make_record(account, name, key, picture, size, annotations)


def open_sa1b_shards(paths: list[Path], max_bad_share: float = MAX_BAD_SHARE) -> RecordSource:
    """SA-1B as it is released: tar files of .jpg and .json pairs, read as a stream and never unpacked."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"There is no shard {', '.join(missing)}.")
    name = paths[0].name if len(paths) == 1 else paths[0].parent.name
    account = Account(name, max_bad_share)
    # A list is what `datasets` shares out between processes: each reads its own shards.
    rows = IterableDataset.from_generator(_read_shards, gen_kwargs={"paths": [str(path) for path in paths]})
    return RecordSource(name, rows, partial(_sa1b_shard_record, name=name, account=account), account)


def _read_shards(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Pairs in the order of the tar; a file without its other half is passed on with None."""
    for path in paths:
        waiting: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                if member.isfile() and kind in ("jpg", "json"):
                    pair = waiting.setdefault(key, {})
                    pair[kind] = tar.extractfile(member).read()
                    if len(pair) == 2:
                        yield {"key": Path(key).name, **waiting.pop(key)}
        for key, pair in waiting.items():
            yield {"key": Path(key).name, "jpg": pair.get("jpg"), "json": pair.get("json")}


def _sa1b_shard_record(row: dict[str, Any], name: str, account: Account) -> Record:
    for kind in ("jpg", "json"):
        if row.get(kind) is None:
            raise ValueError(f"its .{kind} is missing")
    return _sa1b_record(row["json"], row["jpg"], row["key"], name, account)


def open_mask_folder(folder: Path, max_bad_share: float = MAX_BAD_SHARE) -> RecordSource:
    """`images/NAME.*` with `masks/NAME.png`, whose values or colours number the instances (0 or black for none), or
    `masks/NAME/*.png`, a picture for each mask, named by what it shows: `cat.png`, `cat_2.png`."""
    pictures = [str(path) for path in list_images(folder / "images")]
    account = Account(folder.name, max_bad_share)
    convert = partial(_folder_record, masks=folder / "masks", name=folder.name, account=account)
    return RecordSource(folder.name, Dataset.from_dict({"path": pictures}), convert, account)


def _folder_record(row: dict[str, Any], masks: Path, name: str, account: Account) -> Record:
    path = Path(row["path"])
    annotations = []
    if (masks / path.stem).is_dir():
        for file in sorted((masks / path.stem).glob("*.png")):
            label = file.stem.rpartition("_")[0] if file.stem.rpartition("_")[2].isdigit() else file.stem
            with Image.open(file) as opened:
                mask = _first_channel(np.asarray(opened)) > 0
            annotations.append({"id": file.stem, "name": label.replace("_", " ") or None, "segmentation": mask})
    elif (masks / f"{path.stem}.png").is_file():
        with Image.open(masks / f"{path.stem}.png") as opened:
            annotations = _numbered(np.asarray(opened))
    else:
        raise ValueError(f"it has no masks: neither {path.stem}.png nor {path.stem}/ in {masks}")
    return make_record(account, name, path.stem, path, _size_of(path), annotations)
