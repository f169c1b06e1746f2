"""Labelling at scale: every kind of source, the same results by every engine, and after a kill."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

import textsam
from textsam.commands.cli import app
from textsam.files.rle import decode_mask
from textsam.labelling.engines import run_local
from textsam.labelling.shards import RunFolder
from textsam.labelling.sources import PictureReader, list_pictures
from textsam.labelling.step import LabelSettings
from textsam.language.queries import QueryList
from textsam.queries import find_queries

CLASSES = "cat = cat | person @ 0\ndog @ 0\n!zebra\n"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.fixture
def photos(in_tmp: Path) -> Path:
    """Seven good pictures in two folders, a broken one, and a file that is none."""
    for number in range(7):
        path = in_tmp / "photos" / ("deep" if number % 2 else ".") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels(number)))
    (in_tmp / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (in_tmp / "photos" / "notes.md").write_text("none")
    (in_tmp / "classes.txt").write_text(CLASSES)
    return in_tmp / "photos"


def label(tiny_folder: Path, source: object, *options: object) -> Result:
    words = ["label", source, "--classes", "classes.txt", "--model", tiny_folder, "--device", "cpu", *options]
    return CliRunner().invoke(app, list(map(str, words)))


def rows(out: str | Path) -> list[dict]:
    folder = Path(out) / "shards"
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_shards_coco_and_error_table(photos: Path, tiny_folder: Path) -> None:
    result = label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    assert result.exit_code == 1, result.output  # one picture is broken
    assert "in 7 pictures" in result.output
    assert [path.name for path in sorted(Path("out/shards").iterdir())] == [f"part-{i:07d}.parquet" for i in range(3)]
    (error,) = pq.read_table("out/errors.parquet").to_pylist()
    assert error["key"] == "broken.jpg"
    assert "cannot be read" in error["error"] or "not a picture" in error["error"]
    coco = COCO("out/annotations.json")
    assert {image["file_name"] for image in coco.loadImgs(coco.getImgIds())} == {
        f"deep/{i}.png" if i % 2 else f"{i}.png" for i in range(7)
    }
    sam = textsam.load(tiny_folder, device="cpu")
    row = next(row for row in rows("out") if row["key"] == "deep/3.png")
    expected = find_queries(sam, pixels(3), QueryList.parse(CLASSES.splitlines()))
    assert len(expected) > 0
    np.testing.assert_array_equal([decode_mask(a["segmentation"]) for a in row["annotations"]], expected.mask)
    assert [a["category_name"] for a in row["annotations"]] == list(expected.data["class_name"])


def test_sources_give_the_same_pictures(photos: Path) -> None:
    import datasets
    import fsspec

    good = sorted(path for path in photos.rglob("*.png"))
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": path.read_bytes(), "path": None} for path in good], kinds)
    table = pa.table({"id": list(range(len(good))), "image": column})
    pq.write_table(table, "table.parquet", row_group_size=2)
    entries = [{"id": i, "file_name": str(path.relative_to(photos))} for i, path in enumerate(good)]
    Path("photos/set.json").write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    Path("list.txt").write_text("\n".join(map(str, good)))
    files = datasets.Dataset.from_dict({"image": [str(path) for path in good]})
    files.cast_column("image", datasets.Image()).save_to_disk("saved")
    memory = fsspec.filesystem("memory")
    for path in good:
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    sources = {
        "photos/**/*.png": 7,
        "table.parquet": 7,
        "photos/set.json": 7,
        "list.txt": 7,
        "datasets:saved": 7,
        "memory://bucket": 7,
        str(good[0]): 1,
    }
    for source, count in sources.items():
        references = list_pictures(source)
        assert len({reference.key for reference in references}) == len(references) == count, source
        reader = PictureReader()
        found = sorted(reader.read(reference).tobytes() for reference in references)
        expected = sorted(Image.open(path).tobytes() for path in good)
        assert found == (expected if count == 7 else [Image.open(good[0]).tobytes()]), source
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no file or folder nowhere"),
        ("empty", "No pictures in empty"),
        ("words.parquet", "has no column of image bytes, but word"),
    ],
)
def test_sources_without_pictures(in_tmp: Path, source: str, message: str) -> None:
    Path("empty").mkdir()
    pq.write_table(pa.table({"word": ["cat"]}), "words.parquet")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        PictureReader().read(list_pictures(source)[0])


def test_a_second_run_adds_what_is_new_and_refuses_other_classes(photos: Path, tiny_folder: Path) -> None:
    label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    before = {path: path.stat().st_mtime_ns for path in Path("out/shards").iterdir()}
    (photos / "0-new.png").write_bytes(png(pixels(20)))
    result = label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    assert "8 done before" in result.output
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert sorted(row["key"] for row in rows("out")) == sorted(r.key for r in list_pictures("photos"))
    Path("classes.txt").write_text("cat\n")
    result = label(tiny_folder, photos, "--out", "out")
    assert result.exit_code == 1
    assert "begun with another classes" in result.output


def test_stopped_and_started_again_loses_and_doubles_nothing(photos: Path, tiny_folder: Path) -> None:
    done = []

    def stop_in_the_third_shard(good: bool) -> None:
        done.append(good)
        if len(done) == 5:
            raise KeyboardInterrupt

    settings = LabelSettings(tuple(CLASSES.splitlines()), model=str(tiny_folder), device="cpu")
    folder = RunFolder("out")
    folder.check_settings(settings.identity())
    shards = list(folder.plan(list_pictures("photos"), 2))
    with pytest.raises(KeyboardInterrupt):
        list(run_local(settings, "out", shards, stop_in_the_third_shard))
    assert [path.name for path in sorted(Path("out/shards").iterdir())] == [f"part-{i:07d}.parquet" for i in range(2)]
    result = label(tiny_folder, photos, "--out", "out", "--shard-size", "2")
    assert "4 done before" in result.output
    label(tiny_folder, photos, "--out", "whole", "--shard-size", "100")
    assert rows("out") == rows("whole")
    assert len(rows("out")) == 8
