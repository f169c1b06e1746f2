"""The commands of train/, run as somebody runs them: what is wrong is told in one sentence, and nothing is lost."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from scenes import write_coco

import textsam
from textsam.files.coco import load_coco
from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder
from train import command, crop_embeddings, crop_encoder, loop, run_files
from train.ablation import ROWS, table_of
from train.data import CocoSamples, Sample, Source
from train.mask_detail import DetailCrops, write_crops
from train.package import package
from train.plain_photos import write_plain
from train.tiny import SETS, read_crop_embeddings
from train.tiny import main as train_tiny

TINY = Path(textsam.__file__).parent / "weights/textsam-tiny"
OCR = TINY.with_name("textsam-tiny-ocr")
NAMES = {"voc": ("cat", "dog"), "coco": ("cat", "car")}  # of the other sets: cup and dog


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names, a trunk, encoders and data in miniature, and files that are none of these."""
    root = tmp_path_factory.mktemp("world")
    encoder = SmallTextEncoder.from_pretrained(TINY / "text_encoder")
    names = encoder.vocabulary.names
    with torch.no_grad():
        embeddings = encoder.encode(list(names)).numpy()
    arrays = {"names": np.array(names), "embeddings": embeddings, "source": np.array(["coco"] * len(names))}
    np.savez(root / "names.npz", **arrays)
    np.savez(root / "lacks.npz", names=arrays["names"], embeddings=embeddings)
    np.savez(root / "source.npz", **{**arrays, "source": np.array(["mine"] * len(names))})
    np.savez(root / "short.npz", **{**arrays, "embeddings": embeddings[:5]})
    trunk = SmallCropEncoder.from_pretrained(TINY / "crop_encoder").trunk.state_dict()
    save_file({name: value.contiguous() for name, value in trunk.items()}, root / "trunk.safetensors")
    save_file({"a": torch.zeros(2)}, root / "other.safetensors")
    for name in ("empty.npz", "empty.safetensors", "empty.json", "empty.pt"):
        (root / name).touch()
    (root / "list.json").write_text("[]")
    (root / "object.json").write_text("{}")
    for number, (name, *_) in enumerate(SETS):
        file = write_coco(root / "data" / name, 2, 2 * number)
        content = json.loads(file.read_text())
        for category, known in zip(content["categories"], NAMES.get(name, ("cup", "dog")), strict=True):
            category["name"] = known
        for copy in ("train.json", "val.json", "train_semantic.json"):
            (file.parent / copy).write_text(json.dumps(content))
    return root


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps the precision of a process's first training, which here depends on the machine."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `python -m train.NAME ARGUMENTS`."""
    module = importlib.import_module(f"train.{name}")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        return command.run(module.main)
    except SystemExit as left:  # argparse
        return int(left.code or 0)


TINY_OPTIONS = (
    "--data data --names names.npz --trunk trunk.safetensors --text-encoder TINY/text_encoder --out out --steps 1 "
    "--size 64 --batch-size 1 --workers 0 "
)
CACHE = "cache --data data --vocabulary TINY/text_encoder/vocabulary.json --trunk trunk.safetensors --out out.pt "
FIT = "fit --crops empty.pt --names names.npz --trunk trunk.safetensors "
CARD = "--record object.json --scores object.json --model TINY "
PACKAGE = "--model TINY --text-encoder TINY/text_encoder --crop-encoder TINY/crop_encoder --out out "
WRONG = [
    ("text_encoder", "--out out --names none.npz", "none.npz is missing"),
    ("text_encoder", "--out out --names empty.npz", "empty.npz must be an npz"),
    ("text_encoder", "--out out --names lacks.npz", "source is not a file"),
    ("text_encoder", "--out out --names source.npz", "'mine'; expected coco"),
    ("text_encoder", "--out out --names short.npz", "embeddings (K, 512)"),
    ("text_encoder", "--out out --names names.npz --steps 0", "--steps: expected a whole number of at least 1"),
    ("text_encoder", "--out empty.pt --names names.npz", "empty.pt is a file"),
    ("level_names", "--names empty.npz --out out/extra.safetensors", "must be an npz"),
    ("crop_encoder", CACHE + "--trunk other.safetensors", "must hold MobileNetV2's"),
    ("crop_encoder", CACHE + "--trunk empty.safetensors", "not a safetensors file"),
    ("crop_encoder", CACHE + "--vocabulary empty.json", "is not a vocabulary"),
    ("crop_encoder", FIT, "empty.pt must be what `train.crop_encoder cache` wrote"),
    ("crop_embeddings", "voc --data none --crop-encoder TINY/crop_encoder --out out", "none is missing"),
    ("crop_embeddings", "voc --data data --crop-encoder TINY/crop_encoder --out o --per-image 0", "at least 1"),
    ("tiny", TINY_OPTIONS + "--size 65", "multiple of 16 px"),
    ("tiny", TINY_OPTIONS + "--crops other.safetensors", "SET/ANNOTATION_ID"),
    ("tiny", TINY_OPTIONS + "--teacher trunk.safetensors", "lacks classifier.weight"),
    ("tiny", TINY_OPTIONS + "--unlabelled data", "give --teacher"),
    ("tiny", TINY_OPTIONS + "--minutes 0", "--minutes: expected a number above 0"),
    ("tiny", TINY_OPTIONS + "--min-scale 3", "--min-scale 3.0 is above --max-scale 2.0"),
    ("tiny", TINY_OPTIONS + "--init none/such/model", "no folder 'none/such/model'"),
    ("mask_detail", "--data none --out out", "none is missing"),
    ("ink_finish", "--photos data --out out --scenes 0", "at least 1"),
    ("synthetic_text", "--photos data --out out --blocks 0", "at least 1"),
    ("synthetic_text", "--photos data --out out --textless 2", "from 0 to 1"),
    ("plain_photos", "none.json --out out", "none.json is missing"),
    ("stamp_objects", "--stamps none --text-encoder TINY/text_encoder --out out", "none is missing"),
    ("stamp_objects", "--stamps data --text-encoder TINY/text_encoder --out out", "no object with a known name"),
    ("ocr", "--words none.json --out out --script hangul", "--script does nothing without --photos"),
    ("ocr", "--words none.json --out out --levels empty.safetensors --model textsam-tiny", "not a safetensors file"),
    ("package", PACKAGE + "--share 0.3", "--share does nothing without --start"),
    ("package", PACKAGE + "--start OCR", "have other parts"),
    ("package", PACKAGE + "--photos none.json", "none.json is missing"),
    ("package", PACKAGE + "--image-size 447", "multiple of 16 px"),
    ("package", "--model TINY --out out", "give both --text-encoder and --crop-encoder"),
    ("model_card", CARD + "--record list.json", "list.json must hold a JSON object"),
    ("model_card", CARD + "--record empty.json", "empty.json is not JSON"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG)
def test_what_is_wrong_is_told_in_one_sentence(
    name: str, arguments: str, message: str, world: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for file in world.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    words = [word.replace("TINY", str(TINY)).replace("OCR", str(OCR)) for word in arguments.split()]
    code = run(name, *words, monkeypatch=monkeypatch)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told
    assert code == (2 if " error: " in told else 1)
    assert not (tmp_path / "out" / "model.safetensors").exists()  # half a package


@pytest.mark.parametrize("written_by", ["evaluate", "evaluate --ocr"])
def test_other_scores_make_no_card(
    written_by: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"name": "x", "summary": "y", "stages": [], "data": [], "failures": [], "limits": []}
    (tmp_path / "record.json").write_text(json.dumps(record))
    scores = OCR / "ocr_scores.json" if written_by == "evaluate" else TINY / "scores.json"
    more = [] if written_by == "evaluate" else [f"--ocr-scores={TINY / 'scores.json'}"]
    arguments = [f"--record={tmp_path / 'record.json'}", f"--scores={scores}", f"--model={TINY}", *more]
    assert run("model_card", *arguments, monkeypatch=monkeypatch) == 1
    assert f"must hold what `textsam {written_by}` writes, but lacks" in capsys.readouterr().err


def test_an_error_of_the_program_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> Callable[[], None]:
        def main() -> None:
            raise error

        return main

    for mistake in (KeyError("x"), TypeError("x"), RuntimeError("x"), IndexError("x")):
        with pytest.raises(type(mistake)):
            command.run(fail(mistake))
    assert command.run(fail(KeyboardInterrupt())) == 130
    behind = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    assert command.run(fail(ValueError(f"{behind}ValueError: none of the 3 pictures: can be read\n"))) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "train: none of the 3 pictures: can be read"


def test_results_find_a_folder_that_was_not_there(world: Path, tmp_path: Path) -> None:
    """Found out after the last crop, it would cost all of them."""
    crop_encoder.main(
        ["cache", f"--data={world / 'data'}", f"--vocabulary={TINY / 'text_encoder/vocabulary.json'}",
         f"--trunk={world / 'trunk.safetensors'}", f"--out={tmp_path / 'new' / 'crops.pt'}"]
    )  # fmt: skip
    out = tmp_path / "newer" / "crops.safetensors"
    crop_embeddings.main(["voc", f"--data={world / 'data'}", f"--crop-encoder={TINY / 'crop_encoder'}", f"--out={out}"])
    assert (tmp_path / "new" / "crops.pt").is_file()
    assert len(load_file(out)) == 4


def test_crops_of_photos_are_cut_upright(tmp_path: Path) -> None:
    """A camera's file says how it is to be turned, and its masks are drawn on the turned picture."""
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 255, (60, 40, 3), np.uint8))
    upright.save(tmp_path / "upright.png")
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    model = SmallCropEncoder.from_pretrained(TINY / "crop_encoder")
    from textsam.files.rle import encode_mask

    mask = np.zeros((60, 40), bool)
    mask[35:58, 5:30] = True
    one, other = (
        crop_encoder.cache_features(
            model, [(tmp_path / name, encode_mask(mask), "cat")], augment=False, rng=np.random.default_rng(0)
        )
        for name in ("upright.png", "turned.png")
    )
    assert torch.allclose(one, other)


def tiny_arguments(world: Path, data: Path, out: Path, *more: str) -> list[str]:
    text = TINY_OPTIONS.replace("TINY", str(TINY)).replace("--data data", f"--data={data}").replace("--out out", "")
    words = [str(world / word) if (world / word).is_file() else word for word in text.split()]
    return [*words, f"--out={out}", *more]


def changed(world: Path, tmp_path: Path, change: Callable[[dict], None]) -> Path:
    shutil.copytree(world / "data", tmp_path / "data")
    for file in (tmp_path / "data").glob("*/train*.json"):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    return tmp_path / "data"


def test_pictures_without_objects_and_names_do_not_end_a_training(world: Path, tmp_path: Path) -> None:
    data = changed(world, tmp_path, lambda content: content.update(annotations=[], categories=[]))
    train_tiny(tiny_arguments(world, data, tmp_path / "run"))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_ids_that_are_words(world: Path, tmp_path: Path) -> None:
    def rename(content: dict) -> None:
        for entry in content["annotations"]:
            entry["id"] = f"a{entry['id']}"

    data = changed(world, tmp_path, rename)
    crops = tmp_path / "crops.safetensors"
    crop_embeddings.main(["voc", f"--data={data}", f"--crop-encoder={TINY / 'crop_encoder'}", f"--out={crops}"])
    samples = samples_of(data / "voc")
    assert {key for sample in samples for key in sample.keys} <= set(read_crop_embeddings(crops))


def samples_of(folder: Path, count: int = 6, names: dict[str, int] | None = None) -> list[Sample]:
    names = {"cat": 0, "dog": 1} if names is None else names
    data = CocoSamples([Source(folder)], names, size=64, instances=2, seed=0, length=count)
    return [data[i] for i in range(count)]


def test_a_damaged_picture_gives_way_to_the_next(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(world / "data" / "voc", tmp_path / "voc")
    file = tmp_path / "voc" / "images" / "0.png"
    file.write_bytes(file.read_bytes()[:80])
    with caplog.at_level(logging.WARNING, "train"):
        assert len(samples_of(tmp_path / "voc", 12)) == 12
    assert [str(file) in line for line in caplog.messages] == [True]
    (tmp_path / "voc" / "images" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 pictures can be read"):
        samples_of(tmp_path / "voc")


def test_names_that_nobody_knows_are_told(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "train"):
        samples_of(world / "data" / "voc", 1, {"cat": 0})
    assert "unknown names, trained by their shapes alone: 'dog'" in caplog.text


def test_crops_of_other_data_are_refused(world: Path, tmp_path: Path) -> None:
    save_file({"elsewhere/1": torch.zeros(2, 512)}, tmp_path / "crops.safetensors")
    arguments = tiny_arguments(world, world / "data", tmp_path / "run", f"--crops={tmp_path / 'crops.safetensors'}")
    with pytest.raises(ValueError, match="crops of none of the sets"):
        train_tiny(arguments)


def test_a_training_goes_on_with_what_it_was_begun_with(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = tiny_arguments(world, world / "data", tmp_path / "run")
    train_tiny(arguments)
    for other in (["--muon"], ["--frozen-blocks=2"], [f"--init={TINY}"]):
        with pytest.raises(ValueError, match="go on with the same command"):
            train_tiny([*arguments, "--resume", *other])
    with caplog.at_level(logging.WARNING, "train"):
        train_tiny([*arguments, "--resume"])
    assert "has done 1 of 1 steps: nothing is left to train" in caplog.text
    (tmp_path / "run" / "last.pt").write_bytes((tmp_path / "run" / "last.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.pt is damaged"):
        train_tiny([*arguments, "--resume"])


def test_a_kill_between_two_files_leaves_something_to_go_on_from(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step there is no later one that would write the model."""
    arguments = tiny_arguments(world, world / "data", tmp_path / "run")

    def die(*_: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "write_model", die)
        with pytest.raises(SystemExit):
            train_tiny(arguments)
    train_tiny([*arguments, "--resume"])
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_options_of_time_that_cannot_be() -> None:
    for options in ({"minutes": 0}, {"minutes": -1}, {"stop_after": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            loop.LoopOptions(**options)


def test_a_second_package_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    package(TINY, TINY / "text_encoder", TINY / "crop_encoder", tmp_path / "out")
    package(OCR, None, None, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "extra_names.safetensors", "model.safetensors", "training.json"
    ]  # fmt: skip


def test_a_model_is_not_packaged_over_itself(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="name another folder"):
        package(tmp_path / "model", TINY / "text_encoder", TINY / "crop_encoder", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_a_row_without_absence_has_a_table(tmp_path: Path) -> None:
    figures = {"iou_classes": 0.5, "iou_pairs": 0.25, "auroc": None}  # every name was in every picture
    (tmp_path / "default.json").write_text(json.dumps({"trained": figures}))
    assert table_of(tmp_path).splitlines()[-1] == f"| `default` | {ROWS['default'].what} | 0.500 | 0.250 | - | - |"


def test_a_set_without_crops_is_left_out(world: Path, tmp_path: Path) -> None:
    data = changed(world, tmp_path, lambda content: content.update(annotations=[]))
    for name, *_ in SETS[1:]:
        shutil.rmtree(data / name)
    files = write_crops(textsam.load("textsam-tiny"), data, tmp_path / "crops", {"model": "x"})
    with pytest.raises(ValueError, match="no object in any photo"):
        DetailCrops(files, 4, 0)


def test_plain_photos_of_crowds_and_of_the_same_name(tmp_path: Path) -> None:
    mask = {"size": [8, 8], "counts": [0, 64]}
    images = [{"id": i, "file_name": f"{'ab'[i % 2]}/{i // 2}.png", "width": 8, "height": 8} for i in range(4)]
    for entry in images:
        path = tmp_path / "set" / "images" / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (60 * entry["id"], 0, 0)).save(path)
    annotations = [
        {"id": 1, "image_id": 2, "category_id": 1, "segmentation": mask, "iscrowd": 1, "bbox": [0, 0, 8, 8]},
        {"id": 2, "image_id": 3, "category_id": 1, "segmentation": mask, "iscrowd": 0, "bbox": [0, 0, 8, 8]},
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "Book"}]}
    (tmp_path / "set" / "val.json").write_text(json.dumps(content))
    assert write_plain([tmp_path / "set" / "val.json"], tmp_path / "plain") == 2
    colours = [int(image.read()[0, 0, 0]) for image in load_coco(tmp_path / "plain" / "instances.json")]
    assert colours == [0, 60]
