"""The folder of a labelling run: settings, manifest, shards of results, and what is gathered from them at the end.

`manifest.parquet` says which picture belongs to which shard and is only ever added to. `shards/part-N.parquet` holds
the results of shard N and is written whole, under a name that its number alone determines: a shard is there or not,
whoever wrote it and however often.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from textsam.files.atomic import opened_atomically, write_atomically
from textsam.files.export import SCORES, write_json
from textsam.labelling.sources import Reference, optional

Row = dict[str, Any]


def result_schema() -> Any:
    """The columns of a shard: the picture, its objects as in COCO, and the error of one that could not be labelled."""
    pa = optional("pyarrow")
    numbers = [("score", pa.float32()), *((name, pa.float32()) for name in SCORES)]
    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    objects = pa.struct(
        [
            ("category_name", pa.string()),
            ("bbox", pa.list_(pa.float32())),
            ("area", pa.int64()),
            ("segmentation", mask),
            ("iscrowd", pa.int8()),
            *numbers,
        ]
    )
    picture = [("key", pa.string()), ("location", pa.string()), ("row", pa.int64())]
    sizes = [("width", pa.int32()), ("height", pa.int32())]
    return pa.schema([*picture, *sizes, ("annotations", pa.list_(objects)), ("error", pa.string())])


class RunFolder:
    """The files of one run under `out`, a local folder or one that all machines share."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def check_settings(self, settings: Row) -> None:
        """Write the settings, or compare them with those that the folder was begun with.

        Raises:
            ValueError: they differ. FileExistsError: there are annotations of something else.
        """
        path = self.out / "settings.json"
        if path.is_file():
            now = json.loads(json.dumps(settings))
            before = {"weights": now.get("weights"), **json.loads(path.read_bytes())}  # older folders do not name them
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            if changed:
                raise ValueError(
                    f"{self.out} was begun with other settings ({', '.join(sorted(changed))}): give another --out."
                )
        elif (self.out / "annotations.json").exists():
            raise FileExistsError(f"{self.out / 'annotations.json'} is of no earlier run: give another --out.")
        write_json(path, settings)

    def forget_settings(self) -> None:
        """After an error: settings with which nothing was labelled, a mistyped class, say, do not bind the next run."""
        if not any(self.out.glob("shards/part-*.parquet")):
            (self.out / "settings.json").unlink(missing_ok=True)

    def plan(self, references: Sequence[Reference], shard_size: int) -> dict[int, int]:
        """Give every picture that is new a place in a shard; those of an earlier run keep theirs.

        Tables that this or another run wrote are left out: their folders may lie in the source.

        Returns:
            number of pictures by number of the shard.
        Raises:
            ValueError: the folder holds a picture of the same name from elsewhere.
        """
        pa, parquet = optional("pyarrow"), optional("pyarrow.parquet")
        path = self.out / "manifest.parquet"
        rows = parquet.read_table(path).to_pylist() if path.is_file() else []
        known = {row["key"]: row["location"] for row in rows}
        tables = {reference.location for reference in references if reference.row >= 0}
        results = {table for table in tables if _is_of_a_run(Path(table))}
        new = []
        for reference in references:
            reference = replace(reference, key=_spelt(reference.key), location=_spelt(reference.location))
            before = known.get(reference.key)
            if before is None:
                new += [reference] * (reference.location not in results)
            elif not _same_place(before, reference.location):
                raise ValueError(
                    f"{self.out} holds {reference.key} of {before}, not of {reference.location}: give another --out."
                )
        first = 1 + max((row["shard"] for row in rows), default=-1)
        rows += [{**vars(reference), "shard": first + i // shard_size} for i, reference in enumerate(new)]
        if new:
            types = [("key", pa.string()), ("location", pa.string()), ("row", pa.int64()), ("shard", pa.int64())]
            self._write(path, pa.Table.from_pylist(rows, pa.schema(types)))
        counts: dict[int, int] = {}
        for row in rows:
            counts[row["shard"]] = counts.get(row["shard"], 0) + 1
        return counts

    def references(self, shard: int) -> list[Reference]:
        """The pictures of a shard, in order."""
        parquet = optional("pyarrow.parquet")
        table = parquet.read_table(self.out / "manifest.parquet", filters=[("shard", "=", shard)])
        return [Reference(row["key"], row["location"], row["row"]) for row in table.to_pylist()]

    def left(self, shard: int, size: int) -> int:
        """How many of the `size` pictures of a shard are to be labelled: all, or those that could not be before."""
        path = self.shard_path(shard)
        if not path.is_file():
            return size
        errors = optional("pyarrow.parquet").read_table(path, columns=["error"])["error"]
        return len(errors) - errors.null_count

    def shard_path(self, shard: int) -> Path:
        return self.out / "shards" / f"part-{shard:07d}.parquet"

    def write_shard(self, shard: int, rows: Sequence[Row]) -> None:
        self._write(self.shard_path(shard), optional("pyarrow").Table.from_pylist(list(rows), result_schema()))

    def read_shard(self, shard: int) -> list[Row]:
        return optional("pyarrow.parquet").read_table(self.shard_path(shard)).to_pylist()

    def gather(
        self, shards: Sequence[int], categories: Sequence[str], *, coco: bool = True
    ) -> tuple[int, int, list[Row]]:
        """Write `errors.parquet` and `annotations.json` (COCO) from the shards, one shard in memory at a time.

        Args:
            coco: False leaves `annotations.json` out, which for very many pictures nobody can read.
        Returns:
            numbers of pictures and of objects, and the pictures that could not be labelled.
        """
        failed: list[Row] = []
        pictures = objects = 0
        for shard in shards:
            rows = self.read_shard(shard)
            failed += [row for row in rows if row["error"] is not None]
            pictures += sum(row["error"] is None for row in rows)
            objects += sum(len(row["annotations"]) for row in rows)
        pa = optional("pyarrow")
        names = ("key", "location", "row", "error")
        types = pa.schema([(name, pa.int64() if name == "row" else pa.string()) for name in names])
        table = pa.Table.from_pylist([{name: row[name] for name in names} for row in failed], types)
        self._write(self.out / "errors.parquet", table)
        if coco:
            self._write_coco(shards, categories)
        return pictures, objects, failed

    def _write_coco(self, shards: Sequence[int], categories: Sequence[str]) -> None:
        # Filled piece by piece: the document may exceed the memory.
        with opened_atomically(self.out / "annotations.json") as binary, io.TextIOWrapper(binary, "utf-8") as file:
            listed = [{"id": i, "name": name} for i, name in enumerate(categories, start=1)]
            file.write(f'{{"categories": {json.dumps(listed)}')
            for part, entries in (("images", self._images), ("annotations", self._annotations)):
                file.write(f',\n"{part}": [')
                for number, entry in enumerate(entries(shards, categories)):
                    file.write((",\n" if number else "\n") + json.dumps(entry, allow_nan=False))
                file.write("]")
            file.write("}\n")

    def _good_rows(self, shards: Sequence[int]) -> Iterator[tuple[int, Row]]:
        number = 0
        for shard in shards:
            for row in self.read_shard(shard):
                if row["error"] is None:
                    number += 1
                    yield number, row

    def _images(self, shards: Sequence[int], categories: Sequence[str]) -> Iterator[Row]:
        for number, row in self._good_rows(shards):
            yield {"id": number, "file_name": row["key"], "width": row["width"], "height": row["height"]}

    def _annotations(self, shards: Sequence[int], categories: Sequence[str]) -> Iterator[Row]:
        ids = {name: i for i, name in enumerate(categories, start=1)}
        count = 0
        for number, row in self._good_rows(shards):
            for annotation in row["annotations"]:
                count += 1
                rest = {k: v for k, v in annotation.items() if k != "category_name" and v is not None}
                category = ids[annotation["category_name"]]
                yield {"id": count, "image_id": number, "category_id": category, **rest}

    @staticmethod
    def _write(path: Path, table: Any) -> None:
        buffer = io.BytesIO()
        optional("pyarrow.parquet").write_table(table, buffer, compression="zstd")
        write_atomically(path, buffer.getvalue())


def _is_of_a_run(table: Path) -> bool:
    is_shard = table.parent.name == "shards" and table.name.startswith("part-")
    out = table.parent.parent if is_shard else table.parent
    known = is_shard or table.name in ("manifest.parquet", "errors.parquet")
    return known and all((out / name).is_file() for name in ("manifest.parquet", "settings.json"))


def _same_place(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def _spelt(name: str) -> str:
    """A file name, or with backslashes one that is not UTF-8, which no table holds as it is."""
    return name.encode("utf-8", "backslashreplace").decode()
