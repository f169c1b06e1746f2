"""What there is to label: references to pictures in folders, globs, clouds, COCO files, parquet tables and data sets.

Nothing is decoded here; `PictureReader` does that where the picture is labelled.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from textsam.files.coco import image_folder, picture_file
from textsam.files.images import IMAGE_SUFFIXES, RgbImage, read_image

DATASET_PREFIX = "datasets:"
_OPEN_TABLES = 4
_PICTURE_COLUMNS = ("image", "img", "picture", "photo")


@dataclass(frozen=True)
class Reference:
    """One picture.

    Attributes:
        key: unique in its source; the file name in the annotations.
        location: path or URL of the picture, or of the table that it is a row of.
        row: in that table; -1 for a file of its own.
    """

    key: str
    location: str
    row: int = -1


def optional(module: str) -> Any:
    """A module of the `label` extra.

    Raises:
        ImportError: it is not installed, naming the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'This needs {module}: pip install "textsam[label]".') from error


@contextmanager
def _suppliers_errors(location: str) -> Iterator[None]:
    """Turns the errors of clouds, web servers and archives, each of a kind of its own, into OSError."""
    try:
        yield
    except FileNotFoundError as error:
        if str(error) not in location:
            raise
        raise FileNotFoundError(f"There is no file {location}.") from error  # rather than the address alone
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{location} cannot be read ({type(error).__name__}: {error}).") from error


def list_pictures(source: str) -> list[Reference]:
    """Every picture of a source, sorted, each once.

    Args:
        source: a picture; a folder, searched to its bottom; a glob such as "photos/**/*.jpg"; a .txt with an address in
            each line; a .parquet (or a folder or glob of them) with a column of image bytes; each of these also as a
            URL that fsspec knows (s3://, gs://, hf://, zip://::photos.zip...); a COCO .json on this machine; or
            "datasets:NAME[:SPLIT]", a data set of the Hub or a folder that `save_to_disk` wrote.
    Raises:
        FileNotFoundError: there is nothing at this address. OSError: it cannot be read. ValueError: there is no picture
            in it, or a damaged table. ImportError: a library of the `label` extra is missing.
    """
    with _suppliers_errors(source):
        return _list_pictures(source)


def _list_pictures(source: str) -> list[Reference]:
    if source.startswith(DATASET_PREFIX):
        return [Reference(f"{row:09d}", source, row) for row in range(len(_dataset(source)[0]))]
    if source.endswith(".json"):
        if "://" in source:
            raise ValueError(f"Expected a COCO file on this machine, got {source}: download it, and its pictures.")
        return _of_coco(Path(source))
    if source.endswith(".txt"):
        lines = [line.strip() for line in _read_bytes(source).decode("utf-8-sig").splitlines()]
        locations = [line for line in dict.fromkeys(lines) if line]
        return [Reference(location, location) for location in locations] or _nothing(source)
    root, files = _find_files(source)
    links = source.split("::")  # in zip://photos::s3://bucket/photos.zip, say, photos is what is listed
    listed = next((number for number, link in enumerate(links) if "://" in link), len(links))
    inside = "".join(f"::{link}" for link in links[listed + 1 :])
    references = []
    for file in files:
        key = file.removeprefix(root).lstrip("/") or file.rsplit("/", 1)[-1]
        if file.endswith(".parquet"):
            rows = _open_table(file + inside).metadata.num_rows
            references += [Reference(f"{key}#{row:09d}", file + inside, row) for row in range(rows)]
        else:
            references.append(Reference(key, file + inside))
    return references or _nothing(source)


def _nothing(source: str) -> Any:
    raise ValueError(f"No pictures in {source}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} and .parquet.")


def _find_files(source: str) -> tuple[str, list[str]]:
    """The longest folder without wildcards, and the files below it, all as fsspec addresses."""
    files, path = _file_system(source)
    if any(sign in path for sign in "*?[") and not files.exists(path):  # brackets may be part of a name
        found = [name for name in files.glob(path) if not files.isdir(name)]
        root = path[: min(path.index(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
    elif files.isdir(path):
        found, root = files.find(path), path
    elif files.exists(path):
        found, root = [path], path
    else:
        raise FileNotFoundError(f"There is no file or folder {source}.")
    suffixes = (*IMAGE_SUFFIXES, ".parquet")
    names = sorted(n for n in found if n.lower().endswith(suffixes) and not n.rsplit("/", 1)[-1].startswith("."))
    root, *addresses = (files.unstrip_protocol(name).removeprefix("file://") for name in [root, *names])
    return root, addresses


def _of_coco(path: Path) -> list[Reference]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f'{path} is not a COCO file: it has no list named "images".')
    folder = image_folder(path, content["images"])
    names = [entry["file_name"] for entry in content["images"] if isinstance(entry, dict) and "file_name" in entry]
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise ValueError(f"{path}: expected a file_name of each image as text, got {odd[0]!r}.")
    return [Reference(name, str(picture_file(folder, name))) for name in dict.fromkeys(names)] or _nothing(str(path))


def _file_system(location: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path there."""
    if location.startswith(("http://", "https://")):
        optional("aiohttp")
    return optional("fsspec.core").url_to_fs(location)


def _read_bytes(location: str) -> bytes:
    files, path = _file_system(location)
    return files.cat_file(path)  # type: ignore[no-any-return]


def _open_table(location: str) -> Any:
    files, path = _file_system(location)
    try:
        table = optional("pyarrow.parquet").ParquetFile(files.open(path, "rb"))
    except ValueError as error:
        raise ValueError(f"{location} is not a whole parquet file: {error}") from error
    table.files = files  # an archive closes when nobody holds its file system
    return table


def _dataset(location: str) -> tuple[Any, str]:
    """The data set, undecoded, and the name of its image column."""
    datasets = optional("datasets")
    name, _, split = location.removeprefix(DATASET_PREFIX).partition(":")
    split = split or "train"
    if Path(name).is_dir() and any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
        data = datasets.load_from_disk(name)
        data = data[split] if isinstance(data, dict) else data
    else:
        data = datasets.load_dataset(name, split=split)
    columns = [column for column, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(f"{location} has no column of images, but {', '.join(data.features)}.")
    return data.cast_column(columns[0], datasets.Image(decode=False)), columns[0]


class PictureReader:
    """Reads the pictures of references; keeps the last few tables open, and of each the last group of rows."""

    def __init__(self) -> None:
        self._tables: OrderedDict[str, Any] = OrderedDict()

    def read(self, reference: Reference) -> RgbImage:
        """(H, W, 3) uint8 RGB.

        Raises:
            OSError, ValueError: as `textsam.files.images.read_image`.
        """
        with _suppliers_errors(reference.location):
            return self._read(reference)

    def _read(self, reference: Reference) -> RgbImage:
        if reference.row < 0:
            if "://" in reference.location:
                return read_image(_read_bytes(reference.location))
            if "\\udc" in reference.location and not os.path.exists(reference.location):
                raise ValueError(f"The name {reference.location} is not UTF-8: rename the file.")
            return read_image(reference.location)
        if reference.location not in self._tables:
            is_dataset = reference.location.startswith(DATASET_PREFIX)
            self._tables[reference.location] = (_DatasetRows if is_dataset else _ParquetRows)(reference.location)
            if len(self._tables) > _OPEN_TABLES:
                self._tables.popitem(last=False)
        table = self._tables[reference.location]
        value = table.value(reference.row)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise ValueError(f"Row {reference.row} of {reference.location} has no picture.")
        try:
            return read_image(value)
        except ValueError as error:
            raise ValueError(f"Row {reference.row}, column {table.column!r}: {error}") from error


class _DatasetRows:
    def __init__(self, location: str) -> None:
        self.data, self.column = _dataset(location)

    def value(self, row: int) -> Any:
        return self.data[row][self.column]


class _ParquetRows:
    def __init__(self, location: str) -> None:
        types = optional("pyarrow.types")
        self.file = _open_table(location)
        fields = [
            field
            for field in self.file.schema_arrow
            if types.is_binary(field.type)
            or types.is_large_binary(field.type)
            or types.is_binary_view(field.type)
            or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        ]
        if not fields:
            names = ", ".join(self.file.schema_arrow.names)
            raise ValueError(f"{os.path.basename(location)} has no column of image bytes, but {names}.")
        # Bytes alone may be anything, such as a hash: a name says most, then the form that data sets give pictures.
        named = {name: rank for rank, name in enumerate(_PICTURE_COLUMNS)}
        best = min(fields, key=lambda f: (named.get(f.name.lower(), len(named)), not types.is_struct(f.type)))
        self.column = best.name
        self._first = 0
        self._rows: Any = None

    def value(self, row: int) -> Any:
        if self._rows is None or not self._first <= row < self._first + len(self._rows):
            first = 0
            for group in range(self.file.metadata.num_row_groups):
                count = self.file.metadata.row_group(group).num_rows
                if row < first + count:
                    self._first, self._rows = first, self.file.read_row_group(group, [self.column])[self.column]
                    break
                first += count
        return self._rows[row - self._first].as_py()
