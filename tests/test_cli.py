"""The command line, with a small random model on disk: what it writes, what it skips, how it fails."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner, Result

import textsam
from textsam.commands.cli import app
from textsam.commands.options import parse_boxes, parse_names, parse_points, read_mask
from textsam.commands.run import object_table, picture_progress
from textsam.files.rle import decode_mask
from textsam.files.runs import output_names, run_images, weights_identity
from textsam.predictor import TextSam


@pytest.fixture
def photo(in_tmp: Path, cat_photo: np.ndarray) -> Path:
    path = in_tmp / "cat.png"
    Image.fromarray(cat_photo[::2, ::2]).save(path)
    return path


@pytest.fixture
def folder(in_tmp: Path, cat_photo: np.ndarray) -> Path:
    """Three good pictures, and one that is cut off."""
    folder = in_tmp / "photos"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.fromarray(cat_photo[i * 50 : i * 50 + 90, :120]).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:700])
    return folder


@pytest.fixture
def run(tiny_folder: Path) -> Callable[..., Result]:
    def invoke(command: str, *arguments: object) -> Result:
        words = [command, *map(str, arguments), "--model", str(tiny_folder), "--device", "cpu"]
        return CliRunner().invoke(app, words)

    return invoke


def annotations(out: Path) -> dict:
    return json.loads((out / "annotations.json").read_text())


def masks_of(document: dict) -> np.ndarray:
    return np.stack([decode_mask(annotation["segmentation"]) for annotation in document["annotations"]])


def test_geometry_gives_the_predictor_s_masks(run: Callable, photo: Path, tiny_folder: Path) -> None:
    result = run("segment", photo, "--box", "10,10,120,100", "--box", "50,40,200,140", "--out", "result")
    assert result.exit_code == 0, result.output
    out = Path("result")
    document = annotations(out)
    expected = textsam.load(tiny_folder, device="cpu").predict(photo, boxes=[[10, 10, 120, 100], [50, 40, 200, 140]])
    np.testing.assert_array_equal(masks_of(document), expected.mask)
    scores = [annotation["score"] for annotation in document["annotations"]]
    np.testing.assert_allclose(scores, expected.confidence, atol=1e-6)
    assert document["images"] == [{"id": 1, "file_name": "cat.png", "width": 226, "height": 150}]
    assert document["categories"] == [{"id": 1, "name": "object"}]
    stored = np.stack([np.asarray(Image.open(path)) for path in sorted((out / "masks" / "cat").iterdir())])
    np.testing.assert_array_equal(stored, expected.mask * 255)
    with Image.open(out / "overlays" / "cat.png") as overlay:
        assert overlay.size == (226, 150)
    assert "2 objects in 1 picture" in result.output


def test_another_side(run: Callable, photo: Path, tiny_folder: Path) -> None:
    """Also for a run that has the pictures at the model's own side already."""
    for side in ([], ["--image-size", "96"]):
        assert run("segment", photo, "--box", "10,10,120,100", *side).exit_code == 0
    expected = textsam.load(tiny_folder, device="cpu", image_size=96).predict(photo, boxes=[10, 10, 120, 100])
    (annotation,) = json.loads(Path("out/annotations.json").read_text())["annotations"]
    assert np.array_equal(decode_mask(annotation["segmentation"]), expected.mask[0])
    assert "multiple of 16, got 100: use 96" in run("segment", photo, "--text", "cat", "--image-size", "100").output


def test_points_labels_and_mask(run: Callable, photo: Path, tiny_folder: Path) -> None:
    rough = np.zeros((150, 226), np.uint8)
    rough[40:100, 60:160] = 255
    Image.fromarray(rough).save("rough.png")
    arguments = ["--point", "100,70", "--point", "5,5,0", "--mask", "rough.png", "--multimask"]
    assert run("segment", photo, *arguments).exit_code == 0
    expected = textsam.load(tiny_folder, device="cpu").predict(
        photo, points=[[100, 70], [5, 5]], point_labels=[1, 0], mask_input=rough > 0, multimask_output=True
    )
    assert len(expected) == 3
    np.testing.assert_array_equal(masks_of(annotations(Path("out"))), expected.mask)


def test_mask_on_transparent_ground(in_tmp: Path) -> None:
    """Light and not transparent is the object, and the ground is not, whichever colour lies hidden there."""
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0] = [[255, 255, 255, 255], [255, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save("cut.png", exif=exif)
    np.testing.assert_array_equal(read_mask(Path("cut.png")), [[False, False, False, True]])


def test_an_object_without_pixels_is_none(run: Callable, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((2, 150, 226), bool)
    masks[1, 10:20, 30:40] = True
    found = sv.Detections(xyxy=sv.mask_to_xyxy(masks).astype(np.float32), mask=masks)
    monkeypatch.setattr(TextSam, "predict", lambda *_, **__: found)
    result = run("segment", photo, "--box", "10,10,10,10", "--box", "30,10,40,20", "--format", "yolo")
    assert [(a["id"], a["area"]) for a in annotations(Path("out"))["annotations"]] == [(1, 100)]
    assert "1 object in 1 picture" in result.output
    assert len(Path("out/dataset/labels/cat.txt").read_text().splitlines()) == 1


def test_words(run: Callable, photo: Path, tiny_folder: Path) -> None:
    arguments = ["--text", "cat,dog", "--text", "cat", "--negative-text", "zebra", "--max-instances", "2"]
    result = run("segment", photo, *arguments, "--threshold", "0")
    assert result.exit_code == 0, result.output
    expected = textsam.load(tiny_folder, device="cpu").predict(
        photo, text=["cat", "dog"], negative_text=["zebra"], max_instances=2, threshold=0.0
    )
    document = annotations(Path("out"))
    assert [category["name"] for category in document["categories"]] == ["cat", "dog"]
    names = [document["categories"][a["category_id"] - 1]["name"] for a in document["annotations"]]
    assert names == list(expected.data["class_name"])
    assert len(names) > 0
    np.testing.assert_array_equal(masks_of(document), expected.mask)
    assert all(0 <= annotation["presence"] <= 1 for annotation in document["annotations"])


def test_generate(run: Callable, photo: Path, tiny_folder: Path) -> None:
    options = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    arguments = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = run("generate", photo, *arguments)
    assert result.exit_code == 0, result.output
    expected = textsam.load(tiny_folder, device="cpu").generate(photo, **options)
    assert len(expected) > 0
    np.testing.assert_array_equal(masks_of(annotations(Path("out"))), expected.mask)


def test_generate_has_all_options_of_the_library() -> None:
    from dataclasses import fields

    from textsam.prompting.automatic_options import AutomaticOptions

    command = get_command(app).commands["generate"]
    defaults = {parameter.name: parameter.default for parameter in command.params}
    for field in fields(AutomaticOptions):
        if field.name == "point_grids":
            continue  # arrays: for Python only
        assert defaults[field.name] == pytest.approx(field.default), field.name


def test_folder_goes_on_after_a_broken_file(run: Callable, folder: Path) -> None:
    result = run("segment", folder, "--box", "10,10,60,60", "--out", "result")
    assert result.exit_code == 1
    assert "3 pictures, 1 failed" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "broken.jpg" in result.stderr
    assert "truncated" in result.stderr
    document = annotations(Path("result"))
    assert [image["file_name"] for image in document["images"]] == ["a.png", "b.jpg", "c.png"]
    assert [annotation["image_id"] for annotation in document["annotations"]] == [1, 2, 3]
    assert not list(Path("result").rglob("*broken*"))
    assert not list(Path("result").rglob(".*"))  # no temporary file is left


def test_folder_resumes(run: Callable, folder: Path) -> None:
    arguments = ["segment", folder, "--box", "10,10,60,60", "--out", "result"]
    run(*arguments)
    first = annotations(Path("result"))
    times = {path: path.stat().st_mtime_ns for path in Path("result/overlays").iterdir()}
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes())
    result = run(*arguments)
    assert result.exit_code == 0
    assert "4 pictures, 3 done before" in result.stdout
    assert len(annotations(Path("result"))["annotations"]) == 4
    for path, time in times.items():
        assert path.stat().st_mtime_ns == time
    # Other settings, a changed picture, a lost output, or --overwrite: done again.
    assert "done before" not in run(*arguments[:3], "20,20,60,60", "--out", "result").stdout
    run(*arguments)
    Image.new("RGB", (80, 80)).save(folder / "a.png")
    assert "3 done before" in run(*arguments).stdout
    Path("result/overlays/b.png").unlink()
    assert "3 done before" in run(*arguments).stdout
    Path("result/records/c.json").write_text('{"half')
    assert "3 done before" in run(*arguments).stdout
    assert "done before" not in run(*arguments, "--overwrite").stdout
    assert first["annotations"][1]["segmentation"] == annotations(Path("result"))["annotations"][1]["segmentation"]


def test_what_cannot_be_asked_leaves_what_was_done(run: Callable, folder: Path) -> None:
    (folder / "broken.jpg").unlink()
    run("segment", folder, "--box", "10,10,60,60", "--out", "result")
    before = {path: path.read_bytes() for path in Path("result").rglob("*.json")}
    assert len(before) == 4
    asked = run("segment", folder, "--text", "cat", "--point", "9,9", "--max-instances", "1", "--out", "result")
    impossible = run("generate", folder, "--crop-overlap-ratio", "1", "--out", "result")
    assert (asked.exit_code, impossible.exit_code) == (2, 2)
    outside = run("segment", folder, "--box", "500,500,900,900", "--out", "result")
    assert "3 failed" in outside.output
    assert before == {path: path.read_bytes() for path in Path("result").rglob("*.json")}


def test_names_are_shown_as_they_are() -> None:
    annotation = {"category_name": "cat [/] [red]", "bbox": [0, 0, 1, 1], "area": 1}
    shown = Console(width=100, file=io.StringIO())
    shown.print(object_table([annotation]))
    assert "cat [/] [red]" in shown.file.getvalue()


def test_what_is_of_no_run_is_not_replaced(run: Callable, folder: Path) -> None:
    arguments = ["segment", folder, "--box", "10,10,60,60", "--out", "own", "--format", "coco"]
    for place in ("own/annotations.json", "own/dataset/data.yaml", "own/masks/a/000.png", "own/overlays/c.png"):
        Path(place).parent.mkdir(parents=True)
        Path(place).write_text("mine")
        result = run(*arguments)
        assert result.exit_code == 1
        assert "no record says that a run wrote it: remove it, give another --out, or --overwrite" in result.stderr
        assert [path for path in Path("own").rglob("*") if path.is_file()] == [Path(place)]
        shutil.rmtree("own")
    Path("own/masks/a").mkdir(parents=True)
    assert "3 pictures, 1 failed" in run(*arguments, "--overwrite").stdout
    assert "3 done before" in run(*arguments).stdout
    # Nor in a later run, under the name of a picture that came later.
    Image.new("RGB", (80, 80)).save(folder / "new.png")
    for place in ("own/masks/new/mine.png", "own/overlays/new.png"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text("mine")
        assert "new" in run(*arguments).stderr
        assert Path(place).read_text() == "mine"
        Path(place).unlink()
    Path("own/masks/new").rmdir()
    assert "4 pictures, 3 done before" in run(*arguments).stdout


def test_two_pictures_of_one_name_do_not_replace_each_other(run: Callable, photo: Path) -> None:
    box = ("--box", "10,10,120,100")
    assert run("segment", photo, *box).exit_code == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    Path("other").mkdir()
    for other in (Path("cat.jpg"), Path("other/cat.png")):
        Image.open(photo).convert("RGB").save(other)
        result = run("segment", other, *box)
        assert result.exit_code == 1
        assert flat(result.stderr).endswith("cat.png, another picture: give another --out, or --overwrite.")
        assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    assert run("segment", "cat.jpg", *box, "--overwrite").exit_code == 0
    Path("cat.jpg").rename("other/cat.jpg")  # the same picture in another place
    assert run("segment", "other/cat.jpg", *box).exit_code == 0


def change_a_weight(path: str) -> None:
    weights = load_file(path)
    floating = [value for value in weights.values() if value.is_floating_point()]
    floating[len(floating) // 2].add_(0.5)
    save_file(weights, path)


def test_other_weights_in_the_same_place_are_other_results(photo: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, "model")
    words = ["segment", str(photo), "--box", "10,10,60,60", "--model", "model", "--device", "cpu"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert "1 done before" in CliRunner().invoke(app, words).stdout
    os.utime("model/model.safetensors", ns=(1, 1))  # as a copy on another machine
    assert "1 done before" in CliRunner().invoke(app, words).stdout
    change_a_weight("model/model.safetensors")
    assert "done before" not in CliRunner().invoke(app, words).stdout
    before = weights_identity("model")
    change_a_weight("model/text_encoder/model.safetensors")
    assert weights_identity("model") != before
    assert weights_identity(None) == weights_identity("textsam-tiny") != weights_identity("textsam-tiny-ocr")


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_odd_file_names(kind: str, run: Callable, photo: Path) -> None:
    """A name that is not UTF-8, on which OpenCV would crash, and one as long as file systems allow."""
    Path("photos").mkdir()
    names = [os.fsdecode(b"caf\xe9.png"), "x" * 251 + ".png"]
    for name in names:
        shutil.copy(photo, Path("photos") / name)
    arguments = ["segment", "photos", "--text", "cat", "--box", "10,10,120,100", "--format", kind]
    assert run(*arguments).exit_code == 0
    assert {image["file_name"] for image in annotations(Path("out"))["images"]} >= set(names[1:])
    assert len(list(Path("out/dataset/images").iterdir())) == 2
    assert "2 done before" in run(*arguments).stdout


def test_interrupted_run_resumes(folder: Path) -> None:
    done: list[tuple] = []

    def segment(image: np.ndarray) -> sv.Detections:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(image.shape)
        mask = np.ones((1, *image.shape[:2]), bool)
        return sv.Detections(xyxy=sv.mask_to_xyxy(mask).astype(np.float32), mask=mask)

    paths = [folder / "a.png", folder / "c.png"]
    with pytest.raises(KeyboardInterrupt):
        run_images(paths, Path("result"), segment, settings={})
    assert not Path("result/annotations.json").exists()
    done.append(())
    summary = run_images(paths, Path("result"), segment, settings={})
    assert (summary.skipped, summary.done) == (1, 1)
    assert len(done) == 3


@pytest.mark.parametrize("step", ["write_png", "write_masks"])
def test_a_picture_of_which_half_was_written_is_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    def segment(image: np.ndarray) -> sv.Detections:
        mask = np.ones((1, *image.shape[:2]), bool)
        return sv.Detections(xyxy=sv.mask_to_xyxy(mask).astype(np.float32), mask=mask)

    with monkeypatch.context() as patched:
        patched.setattr(f"textsam.files.runs.{step}", stop)
        with pytest.raises(KeyboardInterrupt):
            run_images([folder / "a.png"], Path("result"), segment, settings={})
    summary = run_images([folder / "a.png"], Path("result"), segment, settings={})
    assert (summary.skipped, summary.done, len(summary.failures)) == (0, 1, 0)


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_dataset_formats(kind: str, run: Callable, photo: Path) -> None:
    assert run("segment", photo, "--text", "cat", "--box", "10,10,120,100", "--format", kind).exit_code == 0
    images, dataset = "out/dataset/images", Path("out/dataset")
    loaded = {
        "coco": lambda: sv.DetectionDataset.from_coco(images, str(dataset / "annotations.json")),
        "yolo": lambda: sv.DetectionDataset.from_yolo(images, str(dataset / "labels"), str(dataset / "data.yaml")),
        "voc": lambda: sv.DetectionDataset.from_pascal_voc(images, str(dataset / "annotations")),
    }[kind]()
    assert loaded.classes == ["cat"]
    assert [Path(path).name for path in loaded.image_paths] == ["cat.png"]


BAD_USAGE = {
    "nothing asked": ([], "say what to segment"),
    "empty text": (["--text", "cat,,dog"], "empty text"),
    "unknown word": (["--text", "dgo"], "dgo"),
    "point without y": (["--point", "12"], "expected x,y"),
    "point of words": (["--point", "left,top"], "expected x,y"),
    "point label": (["--point", "1,2,3"], "1 (object) or 0"),
    "short box": (["--box", "1,2,3"], "expected x1,y1,x2,y2"),
    "points with boxes": (["--point", "1,2", "--box", "1,2,3,4", "--box", "1,2,3,4"], "one object"),
    "mask with boxes": (["--mask", "m.png", "--box", "1,2,3,4", "--box", "1,2,3,4"], "one mask"),
    "multimask of words": (["--text", "cat", "--multimask"], "--multimask"),
    "threshold": (["--text", "cat", "--threshold", "2"], "--threshold"),
    "format": (["--text", "cat", "--format", "pdf"], "pdf"),
    "dtype": (["--text", "cat", "--dtype", "int3"], "int3"),
    "instances of a point": (["--text", "cat", "--point", "9,9", "--max-instances", "1"], "max_instances"),
    "unknown negative": (["--text", "cat", "--negative-text", "dgo"], "--negative-text"),
}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_is_exit_code_2(case: str, run: Callable, photo: Path) -> None:
    arguments, message = BAD_USAGE[case]
    result = run("segment", photo, *arguments)
    assert result.exit_code == 2
    assert message in flat(result.stderr)
    assert not Path("out").exists()


FAILURES = {
    "box outside": (["--box", "500,500,900,900"], "cat.png"),
    "box inverted": (["--box", "50,50,10,10"], "cat.png"),
    "box nan": (["--box", "nan,50,60,70"], "cat.png"),
    "mask missing": (["--mask", "nothing.png"], "nothing.png"),
    "mask of another size": (["--mask", "small.png"], "cat.png"),
    "mask of labels": (["--mask", "labels.png"], "labels.png is dark everywhere"),
    "mask without ground": (["--mask", "white.png"], "white.png is light everywhere"),
    "mask all transparent": (["--mask", "clear.png"], "clear.png is dark everywhere"),
    "mask not an array": (["--mask", "text.npy"], "text.npy"),
    "no such device": (["--box", "1,1,9,9", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_exit_code_1_and_one_line(case: str, run: Callable, photo: Path, tiny_folder: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save("small.png")
    Image.fromarray(np.array([[0, 1]], np.uint8)).save("labels.png")
    Image.new("L", (226, 150), 255).save("white.png")
    Path("text.npy").write_text("hello")
    Image.new("RGBA", (226, 150), (255, 255, 255, 0)).save("clear.png")
    arguments, message = FAILURES[case]
    words = ["segment", str(photo), "--model", str(tiny_folder), "--device", "cpu", *arguments]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert result.stderr.startswith("textsam: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_unknown_model_and_missing_picture(photo: Path) -> None:
    result = CliRunner().invoke(app, ["segment", str(photo), "--text", "cat", "--model", "sam-huge"])
    assert result.exit_code == 1
    assert result.stderr.startswith("textsam: There is no model 'sam-huge'")
    result = CliRunner().invoke(app, ["segment", "nothing.jpg", "--text", "cat"])
    assert result.exit_code == 2
    assert "no file or folder nothing.jpg" in flat(result.stderr)
    Path("empty").mkdir()
    result = CliRunner().invoke(app, ["generate", "empty"])
    assert result.exit_code == 1
    assert "No pictures in empty" in result.stderr


@pytest.mark.parametrize("command", ["segment", "generate", "label", "crops", "evaluate", "demo", "export"])
def test_an_output_folder_that_is_a_file(command: str, photo: Path) -> None:
    source = {"label": ["--classes", str(photo), "."], "demo": [], "export": []}.get(command, [str(photo)])
    option = "--onnx" if command == "export" else "--out"
    result = CliRunner().invoke(app, [command, *source, option, str(photo)])
    assert result.exit_code == 2
    assert re.search(rf"'{option}': \w+ '{photo}' is a file\.$", flat(result.stderr))


def test_a_class_list_that_is_not_there(photo: Path) -> None:
    result = CliRunner().invoke(app, ["label", ".", "--classes", "nope.txt"])
    assert result.exit_code == 2
    assert re.search(r"'--classes': \w+ 'nope.txt' does not exist\.$", flat(result.stderr))


@pytest.mark.parametrize("command", [[], *([command] for command in get_command(app).commands)])
def test_help_is_short_and_long(command: list[str]) -> None:
    short, long = (CliRunner().invoke(app, [*command, option]) for option in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert short.output == long.output


def test_progress_shows_file_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("textsam.commands.run.errors", shown)
    with picture_progress(1) as advance:
        advance(Path("a[b].jpg"), "done")
    assert "a[b].jpg done" in shown.file.getvalue()


def test_as_a_program(photo: Path, tiny_folder: Path) -> None:
    """Through the entry point in a process of its own: nothing on stderr when all is well."""
    arguments = ["segment", str(photo), "--model", str(tiny_folder), "--device", "cpu", "--point", "100,70"]
    good = subprocess.run([sys.executable, "-m", "textsam", *arguments], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([sys.executable, "-m", "textsam", "segment", "."], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
    version = subprocess.run([sys.executable, "-m", "textsam", "--version"], capture_output=True, text=True)
    assert version.stdout.strip() == textsam.__version__


def test_demo(tiny_folder: Path, in_tmp: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--model", str(tiny_folder)])
    assert result.exit_code == 0, result.output
    document = annotations(Path("demo"))
    assert [image["file_name"] for image in document["images"]] == ["astronaut.png", "coffee.png", "chelsea.png"]
    for word in ("person", "cup", "cat", "zebra"):
        assert word in result.output
    for name, size in {"astronaut": (512, 512), "coffee": (600, 400), "chelsea": (451, 300)}.items():
        with Image.open(f"demo/overlays/{name}.png") as overlay:
            assert overlay.size == size
    count = sum(1 for path in Path("demo/masks").rglob("*.png"))
    assert count == len(document["annotations"])
    asked = [(annotation["image_id"], annotation["category_id"]) for annotation in document["annotations"]]
    assert len(set(asked)) == len(asked)  # one object of a word
    assert CliRunner().invoke(app, ["demo", "--model", str(tiny_folder)]).exit_code == 0
    for place in ("annotations.json", "overlays/coffee.png", "masks/chelsea/mine.png"):
        path = Path("own", place)
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        result = CliRunner().invoke(app, ["demo", "--model", str(tiny_folder), "--out", "own"])
        assert "exists, and is of no demo: give another --out." in result.output
        assert [file for file in Path("own").rglob("*") if file.is_file()] == [path]
        shutil.rmtree("own")


def test_info(tiny_folder: Path) -> None:
    (tiny_folder / "README.md").write_text("---\nlicense: x\n---\n# A card of its own\n")
    result = CliRunner().invoke(app, ["info", "--model", str(tiny_folder)])
    assert result.exit_code == 0, result.output
    for part in (textsam.__version__, "torch", "cpu", "TEXTSAM_NATIVE=0", "mobile, 128 px", "A card of its own"):
        assert part in result.output
    assert "license: x" not in result.output


def test_evaluate(run: Callable, folder: Path) -> None:
    with Image.open(folder / "a.png") as picture:
        size = picture.size
    polygon = [5, 5, 60, 5, 60, 50, 5, 50]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon], "bbox": [5, 5, 55, 45]}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}],
        "annotations": [{**annotation, "area": 55 * 45, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "images").mkdir()
    (folder / "a.png").rename(folder / "images" / "a.png")
    (folder / "val.json").write_text(json.dumps(document))
    result = run("evaluate", folder / "val.json", "--prompts", "box", "--out", "scores")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("scores/scores.json").read_text())
    result = run("evaluate", "nothing.json")
    assert result.exit_code == 1
    assert "nothing.json" in result.stderr


def test_output_names() -> None:
    paths = [Path(name) for name in ("a.png", "a.jpg", "b.png", "a_jpg.png", "B.jpg")]
    assert output_names(paths) == ["a_png", "a_jpg", "b", "a_jpg_", "B_"]
    assert output_names([Path("caf\udce9.png"), Path("caf_.png")]) == ["caf_", "caf__"]
    long = output_names([Path("ж" * 125 + end + ".png") for end in "ab"])
    assert len(set(long)) == 2
    assert all(len(name.encode()) < 200 for name in long)


def test_parsers() -> None:
    assert parse_names([" cat , red bus", "cat"], "--text") == ["cat", "red bus"]
    assert parse_names(None, "--text") == []
    assert parse_points(["1,2", "3.5,4,0", "5,6,1"]) == ([[1, 2], [3.5, 4], [5, 6]], [1, 0, 1])
    assert parse_boxes(["1,2,3,4.5"]) == [[1, 2, 3, 4.5]]
    assert parse_boxes(None) == []
