"""The last drawing of ink from several views: how they are joined, what it adds, and its training in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from tiny_models import randomize

import textsam
from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.fine_masks import FineMasks
from textsam.text_regions.maps import LastDrawing, join_views
from train.fonts import installed_faces
from train.ink_finish import InkCrops, main, with_finish, write_crops
from train.synthetic_text import SyntheticText
from train.text_scenes import SceneOptions

SIDE = 32


def test_views_are_joined_in_the_place_of_the_first() -> None:
    first = np.zeros((4, 5), np.float32)
    moved = np.arange(20, dtype=np.float32).reshape(4, 5) - 30
    mean, difference = join_views(first, {(1, 2): moved, (0, 1): None})
    assert (mean[:2] == 0).all()
    assert (mean[:, 0] == 0).all()
    np.testing.assert_array_equal(mean[2:, 1:], np.clip(moved[:2, :4], -10, 10) / 2)  # neither view drowns the other
    np.testing.assert_array_equal(difference[2:, 1:], np.clip(-moved[:2, :4], -10, 10))
    assert (difference[:2] == 0).all()
    both, apart = join_views(first, {(0, 0): first + 1, (1, 0): first + 5})
    np.testing.assert_allclose(both[:, 1:], 2)
    np.testing.assert_allclose(apart[:, 1:], 5)
    np.testing.assert_allclose(both[:, 0], 0.5)


@torch.no_grad()
def test_the_last_drawing_starts_from_nothing_and_sees_everything() -> None:
    torch.manual_seed(0)
    fine = FineMasks(8, channels=6, finish=True).eval()
    drawing = fine(torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 8, SIDE // 4, SIDE // 4), torch.randn(2, 1, 8, 8))
    mean = 3 * torch.randn(2, 1, SIDE, SIDE)
    apart = torch.rand(2, 1, SIDE, SIDE)
    torch.testing.assert_close(fine.finish_drawing(drawing, mean, apart), mean)
    randomize(fine.finish)
    last = fine.finish_drawing(drawing, mean, apart)
    assert last.shape == mean.shape
    for other in (
        fine.finish_drawing(drawing, mean + 1, apart),
        fine.finish_drawing(drawing, mean, apart + 1),
        fine.finish_drawing(drawing._replace(features=drawing.features + 1), mean, apart),
        fine.finish_drawing(drawing._replace(pixels=2 * drawing.pixels), mean, apart),
    ):
        assert (other - last).abs().max() > 1e-3
    with pytest.raises(ValueError, match="finish_masks=True"):
        FineMasks(8, channels=6).finish_drawing(drawing, mean, apart)
    with pytest.raises(ValueError, match="finish_masks needs fine_masks"):
        TextSamConfig.tiny(finish_masks=True)


def test_only_the_last_drawing_is_new() -> None:
    with pytest.raises(ValueError, match="goes on from a first"):
        with_finish(TextSamModel(TextSamConfig.tiny(image_size=64)))
    model = randomize(TextSamModel(TextSamConfig.tiny(image_size=64, fine_masks=True)))
    wider = with_finish(model)
    assert with_finish(wider) is wider
    state = wider.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (wider.fine_masks.finish.out.weight == 0).all()
    redraw = wider.fine_masks.redraw
    assert torch.equal(wider.fine_masks.finish.first.weight[:, : redraw.first.in_channels], redraw.first.weight)


def test_the_embedded_model_finishes_its_ink() -> None:
    reader = textsam.load("textsam-tiny-ocr").text_reader
    assert reader.model.config.finish_masks
    picture = Image.new("RGB", (448, 448), (90, 110, 140))
    ImageDraw.Draw(picture).text((60, 180), "Harbour 27", fill=(250, 240, 230), font=ImageFont.load_default(size=60))
    answer = reader._tile_reader(["text stroke"])(np.asarray(picture))
    assert isinstance(answer.finish, LastDrawing)
    ink = np.asarray(picture)[..., 0] > 170
    last = answer.finish(answer.strokes, np.zeros_like(answer.strokes)) > 0
    assert (last & ink).sum() / (last | ink).sum() > 0.75


@pytest.mark.skipif(not installed_faces(), reason="no fonts are installed")
def test_training_in_miniature(tmp_path: Path, cat_photo: np.ndarray) -> None:
    """From the embedded model: crops are kept, the part trains and nothing else does, a run is carried on."""
    (tmp_path / "photos").mkdir()
    Image.fromarray(cat_photo).save(tmp_path / "photos" / "cat.png")
    try:
        SyntheticText([tmp_path / "photos"])
    except FileNotFoundError as error:
        pytest.skip(str(error))
    arguments = ["--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--scenes", "1"]
    arguments += ["--hangul-scenes", "1"]
    arguments += ["--batch-size", "2", "--save-every", "1"]
    main([*arguments, "--steps", "2"])
    files = sorted((tmp_path / "run" / "crops").iterdir())
    assert [file.name for file in files] == ["000000-000000.safetensors"]
    of_hangul = tmp_path / "run" / "crops-hangul" / files[0].name
    assert of_hangul.read_bytes() != files[0].read_bytes()
    written = files[0].stat().st_mtime_ns
    trained = textsam.load(tmp_path / "run" / "model", dtype="float32").model.state_dict()
    start = with_finish(textsam.load("textsam-tiny-ocr", dtype="float32").model).state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, start[name])}
    assert changed
    assert all(name.startswith("fine_masks.finish.") for name in changed)
    main([*arguments, "--steps", "3", "--resume"])
    assert files[0].stat().st_mtime_ns == written
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["step"] == 3
    with pytest.raises(FileExistsError, match="holds a training already"):
        main([*arguments, "--steps", "3"])

    (tmp_path / "run" / "last.pt").unlink()  # as if it had been interrupted while it read scenes
    before = files[0].read_bytes()
    main([*arguments, "--steps", "1", "--seed", "1"])
    assert files[0].read_bytes() != before


@pytest.mark.skipif(not installed_faces(), reason="no fonts are installed")
def test_scenes_without_ink(tmp_path: Path, cat_photo: np.ndarray) -> None:
    Image.fromarray(cat_photo).save(tmp_path / "cat.png")
    try:
        scenes = SyntheticText([tmp_path], SceneOptions((320, 320), textless=1.0))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    reader = textsam.load("textsam-tiny-ocr", dtype="float32").text_reader
    (file,) = write_crops(reader, scenes, 1, tmp_path / "crops", {"seed": "0"})
    with pytest.raises(ValueError, match="found no ink in any scene"):
        InkCrops([file], 1, 0)
