"""Training on written text in miniature: data sets are read right, a step learns, the command line leaves a model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from miniatures import CLIP_DIM, HashedWords
from PIL import Image, ImageDraw, ImageFont
from tiny_models import tiny_model
from typer.testing import CliRunner

import textsam
import train.ocr
from textsam.checkpoints.encoders import EXTRA_NAMES, packaged_folder
from textsam.commands.cli import app
from textsam.files.coco import load_coco
from textsam.files.rle import encode_mask
from textsam.model import TextSamConfig, TextSamModel
from textsam.text_regions.levels import LEVELS
from train.fonts import installed_faces
from train.level_names import level_targets
from train.ocr import copy_encoders, with_fine_masks
from train.optimization import LoopOptions, build_optimizer
from train.plain_photos import write_plain
from train.synthetic_text import SyntheticText
from train.text_data import MixedSamples, TextSample
from train.text_photos import TextPhotos, quad_strip, read_text_photos
from train.text_step import WrittenTextStep

ROOT = Path(__file__).parent.parent
SIDE = 96


def write_photos(folder: Path, count: int = 4) -> Path:
    """Photos with two words each, and a third that nobody can read, as a COCO file."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for number in range(count):
        picture = Image.new("RGB", (160, 120), (40 + 20 * number, 70, 60))
        pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=26)
        for word, (x, y) in {"Ink": (20, 20), "two": (80, 22), "###": (30, 80)}.items():
            pen.text((x, y), word, fill=(250, 240, 230), font=font)
            x1, y1, x2, y2 = pen.textbbox((x, y), word, font=font)
            entries.append(
                {"id": len(entries) + 1, "image_id": number + 1, "category_id": 1, "iscrowd": int(word == "###"),
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "text": word,
                 "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            )  # fmt: skip
        picture.save(folder / "images" / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "width": 160, "height": 120})
    file = folder / "train.json"
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "text"}]}
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("words") / "mine")


def test_words_of_a_coco_file(words: Path) -> None:
    photos = TextPhotos(words, SIDE, length=40, scales=(1.0, 1.0))
    assert [len(photo.outlines["word"]) for photo in photos.photos] == [3] * 4
    for index in range(20):
        sample = photos[index]
        assert set(sample.levels) == {"text", "word"}
        assert sample.pixels.shape == (3, SIDE, SIDE)
        bright = torch.nn.functional.avg_pool2d((sample.pixels[0] > 170).float()[None], 4)[0]
        outside = (sample.levels["text"] == 0) & (sample.weights > 0)
        assert bright[outside].sum() < 0.1 * max(float(bright.sum()), 1.0)  # letters lie in words, or count for nothing
        assert (sample.levels["word"] <= sample.levels["text"] + 0.15).all()  # cores
    same, other = photos[3], TextPhotos(words, SIDE, 40, seed=1, scales=(1.0, 1.0))[3]
    assert torch.equal(same.pixels, photos[3].pixels)
    assert not torch.equal(same.pixels, other.pixels)


def test_icdar_folder(words: Path, tmp_path: Path) -> None:
    Image.open(words.parent / "images" / "0.png").save(tmp_path / "img_1.png")
    lines = ["20,20,60,20,60,40,20,40,Ink, blot", "80,22,120,22,120,40,80,40,###"]
    (tmp_path / "gt_img_1.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    (photo,) = read_text_photos(tmp_path)
    assert [(word.counts, word.text) for word in photo.outlines["word"]] == [(True, "Ink, blot"), (False, "###")]
    np.testing.assert_array_equal(photo.outlines["word"][0].strip, [[[20, 20], [60, 20]], [[20, 40], [60, 40]]])
    (tmp_path / "gt_img_1.txt").write_text("20,20,60,20,Ink")
    with pytest.raises(ValueError, match=r"gt_img_1\.txt, line 1: expected x1,y1,\.\.\."):
        read_text_photos(tmp_path)
    (tmp_path / "gt_img_1.txt").write_text("20,20,60,20,60,40,20,40\n")  # as `textsam crops` writes it
    (tmp_path / "._img_1.png").write_bytes(b"what macOS leaves on a stick")
    (photo,) = read_text_photos(tmp_path)
    assert [(word.counts, word.text) for word in photo.outlines["word"]] == [(True, "")]
    (tmp_path / "img_1.png").rename(tmp_path / "img_1.bmp")
    assert [photo.path.name for photo in read_text_photos(tmp_path)] == ["img_1.bmp"]
    (tmp_path / "img_1.bmp").rename(tmp_path / "img_1.png")
    (tmp_path / "gt_img_1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no gt_img_1\.txt beside it"):
        read_text_photos(tmp_path)


def test_bad_files_are_named(words: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a COCO file or a folder"):
        read_text_photos(tmp_path / "nothing.json")
    content = json.loads(words.read_text())
    for annotation in content["annotations"][1:3]:
        annotation["segmentation"] = []
        del annotation["bbox"]
    (words.parent / "bad.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"2 of 12 masks are bad .* mask 2: it has no outline"):
        read_text_photos(words.parent / "bad.json")


def test_rectangles_alone_are_outlines(words: Path) -> None:
    content = json.loads(words.read_text())
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [], "bbox": [20, 20, 60, 20]}
    (words.parent / "boxes.json").write_text(json.dumps(content))
    photo = read_text_photos(words.parent / "boxes.json")[0]
    np.testing.assert_array_equal(photo.outlines["word"][0].strip, [[[20, 20], [80, 20]], [[20, 40], [80, 40]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["categories"][0].update(name="words"), 'expected a category "word" or "text", got words'),
        (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], "no outline of a word that can be read"),
    ],
)
def test_what_teaches_no_words_is_told(words: Path, change: Any, message: str) -> None:
    content = json.loads(words.read_text())
    change(content)
    (words.parent / "none.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_text_photos(words.parent / "none.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSONDecodeError"),
        ("[1]", "TypeError"),
        ('{"images": [], "categories": [{"id": 1, "name": "text"}]}', "KeyError: 'annotations'"),
        ('{"images": [{"id": 1}], "categories": [], "annotations": []}', "KeyError: 'file_name'"),
    ],
)
def test_what_is_no_coco_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=rf"train\.json: expected a COCO file with images, .*{message}"):
        read_text_photos(tmp_path / "train.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "130"], "Expected --size to be a multiple of 16 px, got 130"),
        (["--words-share", "0"], "no text to train on: .* with shares above 0"),
    ],
)
def test_options_that_cannot_train_are_told_before_the_first_step(
    words: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train.ocr.main(["--words", str(words), "--out", str(tmp_path / "out"), "--steps", "1", *arguments])
    assert not (tmp_path / "out").exists()


def test_attributes_of_cvat_and_sizes_that_are_not_said(tmp_path: Path) -> None:
    file = write_photos(tmp_path / "mine", count=1)
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["attributes"] = {"occluded": False, "text": annotation.pop("text")}
        annotation["iscrowd"] = 0
    content["images"][0] |= {"width": None, "height": None}
    file.write_text(json.dumps(content))
    (photo,) = read_text_photos(file)
    assert [(word.counts, word.text) for word in photo.outlines["word"]] == [
        (True, "Ink"), (True, "two"), (False, "###"),
    ]  # fmt: skip
    assert photo.read()[0].shape == (120, 160, 3)


def test_odd_annotations_are_read_as_the_evaluation_reads_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_photos(tmp_path / "mine", count=10)
    content = json.loads(file.read_text())
    box, mask = [20, 20, 60, 20, 60, 40, 20, 40], np.zeros((120, 160), bool)
    mask[80:90, 30:70] = True
    first, second, third, fourth = content["annotations"][:4]
    first["segmentation"] = [[1, 1, 2, 1, 2, 2, 1, 2], box]  # a crumb beside the word
    third["segmentation"] = encode_mask(mask) | {"counts": encode_mask(mask)["counts"].decode()}  # as crowds have it
    del second["iscrowd"], fourth["category_id"]
    second |= {"legible": False}
    content["annotations"].append({**first, "image_id": 99})
    content["annotations"][5]["category_id"] = [1]
    content["categories"].append({"id": 7})
    file.write_text(json.dumps(content), encoding="utf-8-sig")
    photos = read_text_photos(file)
    words = photos[0].outlines["word"]
    assert words[0].strip.tolist() == [[[20, 20], [60, 20]], [[20, 40], [60, 40]]]
    assert [word.counts for word in words] == [True, False, False]
    assert (words[2].strip.min(), words[2].strip.max()) == (30, 90)
    assert len(photos[1].outlines["word"]) == 1
    assert "mask 1: 99" in caplog.text
    assert "mask 6: " in caplog.text


def test_photos_are_read_upright_and_a_bad_one_gives_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the evaluation sees them: a telephone's photo is turned, 16 bits are scaled, what is transparent is white."""
    file = write_photos(tmp_path / "mine", count=2)
    upright = Image.open(file.parent / "images" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(file.parent / "images" / "0.png", exif=exif)
    (file.parent / "images" / "1.png").write_bytes(b"damaged")
    photos = TextPhotos(file, SIDE, length=20)
    pixels, ink = photos.photos[0].read()
    assert ink is None
    np.testing.assert_array_equal(pixels, np.asarray(upright))
    assert all(photos[index].levels["text"].any() for index in range(8) if index)
    assert caplog.text.count("skipped: ") == 1
    content = json.loads(file.read_text())
    content["images"][0] |= {"width": 120, "height": 160}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="none of the 2 photos can be read"):
        TextPhotos(file, SIDE, length=20)[0]


def test_encoders_come_along_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer, in_tmp: Path
) -> None:
    folder = packaged_folder("textsam-tiny-ocr")
    hub.repos["me/ocr"] = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    (tmp_path / "model").mkdir()
    copy_encoders("me/ocr", tmp_path / "model")
    assert (tmp_path / "model" / EXTRA_NAMES).read_bytes() == (folder / EXTRA_NAMES).read_bytes()


def test_polygons_of_many_points_become_their_rectangle() -> None:
    strip = quad_strip([10, 10, 30, 10, 50, 10, 50, 20, 30, 20, 10, 20])
    np.testing.assert_allclose(strip, [[[10, 10], [50, 10]], [[10, 20], [50, 20]]], atol=1e-4)


def test_batches_of_several_sets_take_turns() -> None:
    mixed = MixedSamples([(range(100, 200), 2), (range(300, 400), 1)], batch_size=2, length=12)
    assert [mixed[i] // 100 for i in range(12)] == [1, 1, 1, 1, 3, 3] * 2


def test_levels_are_vectors_of_their_own() -> None:
    names = torch.nn.functional.normalize(torch.randn(200, 128) * 0.4 + torch.randn(128), dim=-1)
    levels = level_targets(names)
    assert levels.shape == (len(LEVELS), 128)
    torch.testing.assert_close(levels.norm(dim=1), torch.ones(len(LEVELS)))
    centred = torch.nn.functional.normalize(levels - names.mean(0), dim=-1)
    assert (centred @ centred.T - torch.eye(len(LEVELS))).abs().max() < 0.2
    assert torch.equal(levels, level_targets(names))


def small_model() -> TextSamModel:
    torch.manual_seed(0)
    config = TextSamConfig.tiny(image_size=SIDE, prompt_dim=32, decoder_heads=2, decoder_mlp_dim=32, clip_dim=CLIP_DIM)
    return with_fine_masks(TextSamModel(config))


def test_a_step_learns_every_level(words: Path) -> None:
    model = small_model()
    assert model.config.fine_masks
    words_encoder = HashedWords()
    step = WrittenTextStep(model, words_encoder.encode(list(LEVELS)), transcripts=words_encoder.encode)
    samples = [TextPhotos(words, SIDE, 8, scales=(1.0, 1.0), near_text=1.0)[i] for i in range(3)]
    for sample in samples:  # what synthetic scenes know besides
        ink = (sample.pixels[0] > 170).float()
        sample.strokes = ink
        sample.levels["text stroke"] = torch.nn.functional.avg_pool2d(ink[None], 4)[0]
    empty = TextSample(samples[0].pixels * 0 + 60, {"text": torch.zeros(24, 24)}, torch.ones(24, 24))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for number in range(40):
        results = step([*samples, empty], torch.Generator().manual_seed(number % 4))
        assert {"text", "iou", "presence", "fine", "similarity", "image_presence", "nothing"} <= set(results)
        loss = sum(value for name, value in results.items() if not name.startswith("_"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert {"Ink", "two"} & set(words_encoder.asked)  # words by what they say
    assert "###" not in words_encoder.asked


def test_objects_need_their_step(words: Path) -> None:
    step = WrittenTextStep(small_model(), HashedWords().encode(list(LEVELS)))
    with pytest.raises(ValueError, match="a batch of objects came"):
        step(["not a TextSample"], torch.Generator())


def walk_through() -> list[list[str]]:
    """The commands of the walk-through in train/README.md, but for the installation."""
    text = (ROOT / "train" / "README.md").read_text("utf-8")
    section = text.split("## Written text: fine-tuning on 50 pictures of one's own", 1)[1]
    block = section.split("```sh\n", 1)[1].split("```", 1)[0]
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    return [command for command in commands if command[0] != "pip"]


@pytest.mark.skipif(not installed_faces(), reason="no fonts are installed")
def test_the_walk_through_runs_as_written(in_tmp: Path) -> None:
    """In miniature: few steps of small pictures; what makes it small is added at the end, where the last one wins."""
    try:
        SyntheticText([write_photos(in_tmp / "mine").parent / "images"])
    except FileNotFoundError as error:
        pytest.skip(str(error))
    (in_tmp / "mine" / "val.json").write_text((in_tmp / "mine" / "train.json").read_text())
    (in_tmp / "photos").mkdir()
    noise = np.random.default_rng(0).integers(60, 120, (200, 240, 3), dtype=np.uint8)
    Image.fromarray(noise).save(in_tmp / "photos" / "plain.png")
    commands = walk_through()
    assert [command[0] for command in commands] == ["textsam", "python", "textsam", "textsam"]
    for command in commands:
        if command[0] == "python":
            assert command[1:3] == ["-m", "train.ocr"]
            small = ["--steps", "2", "--size", "64", "--batch-size", "1"]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, *command[1:], *small], env=environment, check=True, capture_output=True)
            continue
        extra = ["--limit", "1"] if command[1] == "evaluate" else []
        result = CliRunner().invoke(app, [*command[1:], *extra])
        assert result.exit_code == 0, result.output
    before, after = (json.loads((in_tmp / name / "ocr_scores.json").read_text()) for name in ("before", "after"))
    assert before["sets"]["mine/val"].keys() > {"textsam-tiny-ocr"}
    assert after["sets"]["mine/val"]["model"]["images"] == 1
    trained = textsam.load(in_tmp / "runs" / "mine" / "model", device="cpu")
    assert trained.text_reader is not None
    assert trained.model.config.fine_masks
    assert trained.text_encoder.encode(["text line"]).shape == (1, 512)


@pytest.mark.parametrize(("part", "rank"), [("text+decoder", 0), ("all", 2)])
def test_sam_with_a_vit_is_a_start_too(words: Path, part: Any, rank: int) -> None:
    """Without similarity map and fine head; what is frozen gets no gradient, adapters do."""
    model = tiny_model()
    options = LoopOptions(train=part, lora_rank=rank)
    build_optimizer(model, options)
    encoder = HashedWords()
    step = WrittenTextStep(model, encoder.encode(list(LEVELS)), transcripts=encoder.encode)
    samples = [TextPhotos(words, 128, 8, scales=(1.0, 1.0), near_text=1.0)[i] for i in range(2)]
    results = step(samples, torch.Generator().manual_seed(0))
    assert {"text", "presence", "words"} <= set(results)
    assert not {"fine", "similarity", "image_presence"} & set(results)
    sum(value for name, value in results.items() if not name.startswith("_")).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert "prompt_encoder.text_projection.weight" in reached
    assert any(name.startswith("mask_decoder.") for name in reached)
    assert {"lora_" in name for name in reached if name.startswith("image_encoder.")} == ({True} if rank else set())


def test_photos_without_print_are_chosen_by_their_names(in_tmp: Path) -> None:
    for number in (1, 2, 3):
        (in_tmp / "set" / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(in_tmp / "set" / "images" / f"{number}.png")
    mask = {"size": [8, 8], "counts": [0, 64]}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in (1, 2, 3)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i, "segmentation": mask, "iscrowd": 0, "bbox": [0, 0, 8, 8]}
            for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "bus"}, {"id": 2, "name": "cat"}],
    }
    (in_tmp / "set" / "val.json").write_text(json.dumps(content))
    assert write_plain([in_tmp / "set" / "val.json"], in_tmp / "plain") == 2
    kept = load_coco(in_tmp / "plain" / "instances.json")
    assert [image.path.name for image in kept] == ["set_2.png", "set_3.png"]
    assert not any(image.instances for image in kept)
