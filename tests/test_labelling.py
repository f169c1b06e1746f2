"""Labelling at scale: every kind of source, the same results by every engine, and after a kill."""

import io
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import supervision as sv
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

import textsam
from textsam.commands.cli import app
from textsam.files.rle import decode_mask
from textsam.labelling.engines import run_local
from textsam.labelling.shards import RunFolder
from textsam.labelling.sources import PictureReader, Reference, list_pictures
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


def test_archives_are_sources(photos: Path) -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(photos.parent).as_posix())
        archive.writestr("tables/table.parquet", _table_bytes())
    Path("list.txt").write_text("zip://photos/0.png::photos.zip\nzip://photos/deep/1.png::photos.zip\n")
    sources = {
        "zip://::photos.zip": 8,
        "zip://photos::photos.zip": 7,
        "zip://photos/*.png::photos.zip": 4,
        "zip://photos/0.png::file://" + str(Path("photos.zip").resolve()): 1,
        "simplecache::zip://photos::photos.zip": 7,
        "zip://tables::photos.zip": 1,
        "list.txt": 2,
    }
    for source, count in sources.items():
        references = list_pictures(source)
        assert len(references) == count, source
        assert all(PictureReader().read(reference).shape == (40, 56, 3) for reference in references), source
    assert [reference.key for reference in list_pictures("zip://photos::photos.zip")][-1] == "deep/5.png"


def _table_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [png(pixels(1))]}), buffer)
    return buffer.getvalue()


def test_errors_of_suppliers_stop_nothing(photos: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("broken.zip").write_bytes(b"PK\3\4")
    Path("list.txt").write_text("zip://0.png::broken.zip\nmemory://nowhere/a.png\nmemory://cut/a.png\nphotos/0.png\n")

    def cut_off(files: Any, path: str) -> bytes:
        raise ClientPayloadError("Response payload is not completed") if "cut" in path else FileNotFoundError(path)

    class ClientPayloadError(Exception):
        """As aiohttp's: no OSError."""

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", cut_off)
    result = label(tiny_folder, "list.txt", "--out", "out")
    assert result.exit_code == 1
    assert "in 1 picture, " in result.output
    assert "zip://0.png::broken.zip cannot be read (BadZipFile: File is not a zip file)." in result.output
    assert "There is no file memory://nowhere/a.png." in result.output
    assert "memory://cut/a.png cannot be read (ClientPayloadError: Response payload is not" in result.output
    result = label(tiny_folder, "zip://::broken.zip", "--out", "other")
    assert "textsam: zip://::broken.zip cannot be read (BadZipFile" in result.output


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no file or folder nowhere"),
        ("empty", "No pictures in empty"),
        ("words.parquet", "has no column of image bytes, but word"),
        ("hash.parquet", "Row 0, column 'hash': the bytes given"),
        ("cut.parquet", "cut.parquet is not a whole parquet file: Parquet file size is 0 bytes"),
        ("cut.json", "cut.json is not a JSON file: Expecting"),
        ("memory://bucket/set.json", "Expected a COCO file on this machine"),
        ("numbers.json", "expected a file_name of each image as text, got 7"),
    ],
)
def test_sources_without_pictures(in_tmp: Path, source: str, message: str) -> None:
    Path("empty").mkdir()
    Path("cut.parquet").touch()
    Path("cut.json").touch()
    pq.write_table(pa.table({"hash": [b"\0\1"]}), "hash.parquet")
    Path("numbers.json").write_text(json.dumps({"images": [{"id": 1, "file_name": 7}]}))
    pq.write_table(pa.table({"word": ["cat"]}), "words.parquet")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        PictureReader().read(list_pictures(source)[0])


@pytest.mark.parametrize("name", ["Photo", "view", "struct"])
def test_the_column_of_pictures_is_told_from_other_bytes(in_tmp: Path, name: str) -> None:
    data = png(pixels(1))
    column = {"struct": pa.array([{"bytes": data}]), "view": pa.array([data], pa.binary_view())}.get(name, [data])
    others = {"key": [7]} if name == "view" else {"hash": [b"\0\1"]}
    pq.write_table(pa.table({**others, name: column}), "table.parquet")
    np.testing.assert_array_equal(PictureReader().read(list_pictures("table.parquet")[0]), pixels(1))


def test_brackets_in_a_name_are_part_of_it(in_tmp: Path) -> None:
    for name in ("Trip [2023]/cat[1].png", "Trip [2023]/dog.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(png(pixels(1)))
    assert [r.key for r in list_pictures("Trip [2023]")] == ["cat[1].png", "dog.png"]
    assert [r.key for r in list_pictures("Trip [2023]/cat[1].png")] == ["cat[1].png"]
    assert [r.key for r in list_pictures("Trip*/[a-d]og.png")] == ["Trip [2023]/dog.png"]


def test_a_list_may_begin_with_a_mark(in_tmp: Path) -> None:
    Path("list.txt").write_text("a.png\nb.png\n", "utf-8-sig")
    assert [reference.key for reference in list_pictures("list.txt")] == ["a.png", "b.png"]


def test_web_addresses_name_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ImportError, match=r'aiohttp: pip install "textsam\[label\]"'):
        PictureReader().read(Reference("a", "https://example.org/a.png"))


def test_a_run_does_not_label_its_own_tables(photos: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    Path("classes.txt").write_text(CLASSES)
    for out in ("labels", ".", "labels", "."):
        label(tiny_folder, ".", "--out", out)
        names = sorted(row["key"].split("/")[-1] for row in rows(out))
        assert names == [*(f"{number}.png" for number in range(7)), "broken.jpg"]


def test_a_name_that_is_not_utf8_stops_nothing(photos: Path, tiny_folder: Path) -> None:
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(png(pixels(1)))
    result = label(tiny_folder, photos, "--out", "out")
    assert "in 7 pictures" in result.output
    assert "caf\\udce9.png is not UTF-8: rename the file" in result.output


def test_pictures_of_another_source_are_refused(photos: Path, tiny_folder: Path) -> None:
    label(tiny_folder, photos, "--out", "out")
    (photos.parent / "others").mkdir()
    (photos.parent / "others" / "0.png").write_bytes(png(pixels(9)))
    result = label(tiny_folder, "others", "--out", "out")
    assert result.exit_code == 1
    assert "out holds 0.png of " in result.output
    assert len(rows("out")) == 8
    Path("own").mkdir()
    Path("own/annotations.json").write_text("mine")
    assert "is of no earlier run" in label(tiny_folder, photos, "--out", "own").output
    assert [path.name for path in Path("own").iterdir()] == ["annotations.json"]


def test_an_object_without_pixels_is_none(photos: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((2, 40, 56), bool)
    masks[1, 10:20, 10:20] = True
    found = sv.Detections(xyxy=sv.mask_to_xyxy(masks).astype(np.float32), mask=masks)
    found.data["class_name"] = np.array(["cat", "cat"])
    monkeypatch.setattr("textsam.queries.find_queries", lambda *_, **__: found)
    result = label(tiny_folder, photos / "0.png", "--out", "out")
    assert "1 object in 1 picture" in result.output
    assert [a["area"] for a in json.loads(Path("out/annotations.json").read_text())["annotations"]] == [100]


def test_a_repaired_picture_is_labelled(photos: Path, tiny_folder: Path) -> None:
    label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    before = rows("out")
    (photos / "broken.jpg").write_bytes(png(pixels(20)))
    result = label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    assert result.exit_code == 0, result.output
    assert "7 done before" in result.output
    assert "in 8 pictures" in result.output
    number = next(i for i, row in enumerate(before) if row["error"] is not None)
    now = rows("out")
    assert now[number]["error"] is None
    assert now[number]["width"] == 56
    assert [*now[:number], *now[number + 1 :]] == [*before[:number], *before[number + 1 :]]


def test_a_second_run_adds_what_is_new_and_refuses_other_classes(
    photos: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    broken = RunFolder("out").shard_path(next(i for i in range(3) if RunFolder("out").left(i, 3)))
    before = {path: path.stat().st_mtime_ns for path in Path("out/shards").iterdir() if path != broken}
    (photos / "0-new.png").write_bytes(png(pixels(20)))
    result = label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    assert "7 done before" in result.output
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert sorted(row["key"] for row in rows("out")) == sorted(r.key for r in list_pictures("photos"))
    older = json.loads(Path("out/settings.json").read_text())
    del older["weights"]
    Path("out/settings.json").write_text(json.dumps(older))
    assert "8 done before" in label(tiny_folder, photos, "--out", "out").output.replace("9 pictures, ", "")
    Path("classes.txt").write_text("cat\n")
    result = label(tiny_folder, photos, "--out", "out")
    assert result.exit_code == 1
    assert "begun with other settings (classes)" in result.output
    monkeypatch.setattr("textsam.labelling.step.weights_identity", lambda *names: "others")
    assert "begun with other settings (classes, weights)" in label(tiny_folder, photos, "--out", "out").output


def test_what_was_mistaken_before_the_first_shard_can_be_mended(photos: Path, tiny_folder: Path) -> None:
    Path("classes.txt").write_text("cat\nqwertyzz\n")
    assert "does not know 'qwertyzz'" in label(tiny_folder, photos, "--out", "out").output
    Path("classes.txt").write_text(CLASSES)
    assert "in 7 pictures" in label(tiny_folder, photos, "--out", "out").output


def test_runs_into_one_folder_gather_at_once(photos: Path, tiny_folder: Path) -> None:
    label(tiny_folder, photos, "--out", "out", "--shard-size", 3)
    whole, folder = Path("out/annotations.json").read_bytes(), RunFolder("out")
    images = folder._images

    def meanwhile(*arguments: Any) -> Any:
        yield from images(*arguments)
        RunFolder("out").gather(range(3), ["cat", "dog"])

    folder._images = meanwhile  # type: ignore[method-assign]
    folder.gather(range(3), ["cat", "dog"])
    assert json.loads(Path("out/annotations.json").read_bytes())["images"] == json.loads(whole)["images"]
    assert {path.name for path in Path("out").iterdir()} == {
        "annotations.json", "errors.parquet", "manifest.parquet", "settings.json", "shards",
    }  # fmt: skip


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
