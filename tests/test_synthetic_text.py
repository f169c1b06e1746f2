"""Synthetic text: the same for the same seed, and its truth agrees with its pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import train.fonts
from textsam.files.coco import load_coco
from train import fonts
from train.fonts import faces_for, installed_faces
from train.synthetic_text import SyntheticText, as_dataset, main
from train.text_layers import Style, draw_layer
from train.text_scenes import Scene, SceneOptions, short_side
from train.text_targets import CORES, core, fill, level_masks
from train.text_words import draw_word, word_is_held_out

LATIN = (("latin", 1.0),)
OPTIONS = SceneOptions(size=(160, 128), scripts=LATIN, textless=0.0, blocks=2)

pytestmark = pytest.mark.skipif(not installed_faces(), reason="no fonts are installed")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        noise = np.random.default_rng(number).integers(60, 120, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((240, 200), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def scenes(photos: Path) -> list[Scene]:
    source = SyntheticText([photos], OPTIONS, seed=3)
    found = [source[number] for number in range(12)]
    assert sum(bool(scene.words) for scene in found) >= 9
    return [scene for scene in found if scene.words]


def test_a_scene_is_a_function_of_seed_and_number(photos: Path) -> None:
    first, again = (SyntheticText([photos], OPTIONS, seed=5) for _ in range(2))
    other = SyntheticText([photos], OPTIONS, seed=6)
    _ = again[0]  # what was asked before must not matter
    one, two = first[7], again[7]
    assert np.array_equal(one.pixels, two.pixels)
    assert np.array_equal(one.strokes, two.strokes)
    assert [(w.text, w.strip.tolist()) for w in one.words] == [(w.text, w.strip.tolist()) for w in two.words]
    assert not np.array_equal(first[7].pixels, other[7].pixels)
    assert [s.pixels.tobytes() for s, _ in zip(first, range(2), strict=False)] == [
        first[i].pixels.tobytes() for i in range(2)
    ]


def test_glyphs_lie_in_their_words_and_words_in_lines_and_blocks(scenes: list[Scene]) -> None:
    for scene in scenes:
        size = (scene.strokes.shape[1], scene.strokes.shape[0])
        inside = fill([word.strip for word in scene.words], size, stride=1, samples=2) > 0
        near = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        cut = np.zeros(scene.strokes.shape, bool)  # words that are mostly outside the picture are not listed
        cut[:24], cut[-24:], cut[:, :24], cut[:, -24:] = True, True, True, True
        assert not (scene.strokes & ~near & ~cut).any()
        for word in scene.words:
            mask = fill([word.strip], size, stride=1, samples=2) > 0.5
            if mask.sum() > 40:
                assert (scene.strokes & mask).sum() > 0.03 * mask.sum(), word.text
        for words, wider in ((scene.words, scene.lines), (scene.lines, scene.blocks)):
            outer = fill([w.strip for w in wider], size, stride=1, samples=2)
            inner = fill([w.strip for w in words], size, stride=1, samples=2)
            if not any(w.strip.shape[1] > 2 for w in wider):  # curved outlines are polylines
                assert (inner * (outer < 0.2)).mean() < 0.01


def test_transcripts_of_lines_and_blocks_are_those_of_their_words(scenes: list[Scene]) -> None:
    for scene in scenes:
        for line in scene.lines:
            assert line.text == " ".join(word.text for word in scene.words if word.line == line.line)
        for number, block in enumerate(scene.blocks):
            assert block.text == "\n".join(line.text for line in scene.lines if line.block == number)


def test_strokes_are_the_ink_itself() -> None:
    """On a plain ground, without effects, the pixels that differ from the ground are the glyphs."""
    font = faces_for("latin")[0].at(40)
    style = Style(fills=((255.0, 255.0, 255.0),), outline=0.0)
    layer = draw_layer([["Ink", "two"], ["lines"]], font, style, np.random.default_rng(0))
    assert layer is not None
    assert np.array_equal(layer.glyphs, layer.alpha)
    assert [word.text for word in layer.words] == ["Ink", "two", "lines"]
    for word in layer.words:
        x1, y1, x2, y2 = map(int, word.box)
        part = layer.glyphs[y1:y2, x1:x2] > 0
        assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))  # the box is tight


def test_effects_are_not_strokes() -> None:
    font = faces_for("latin")[0].at(40)
    plain = Style(fills=((255.0, 255.0, 255.0),))
    rich = replace(plain, outline=0.1, shadow=(0.1, 0.1), glow=0.2, panel=(0.0, 0.0, 90.0), gradient=(255.0, 0.0, 0.0))
    masks = []
    for style in (plain, rich):
        layer = draw_layer([["Ink"]], font, style, np.random.default_rng(0))
        assert layer is not None
        x1, y1, x2, y2 = map(int, layer.words[0].box)
        masks.append(layer.glyphs[y1:y2, x1:x2])
        assert (layer.alpha >= layer.glyphs - 1e-6).all()
    assert np.array_equal(*masks)
    assert (layer.alpha > 0.5).sum() > 2 * (layer.glyphs > 0.5).sum()


@pytest.mark.parametrize("family", ["Linux Biolinum Keyboard O", "Noto Sans Symbols", "Noto Color Emoji"])
def test_fonts_whose_letters_are_pictures_write_no_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the file need not say it: LinBiolinum_K.otf draws each letter as a key."""
    face = fonts.Face("LinBiolinum_K.otf", 0, family, frozenset({"latin"}))
    monkeypatch.setattr(fonts, "_read_faces", lambda path: [face])
    installed_faces.cache_clear()
    assert not installed_faces()
    monkeypatch.undo()
    installed_faces.cache_clear()
    assert installed_faces()


def test_held_out_fonts_and_words_are_disjoint(photos: Path) -> None:
    training, validation = ({face.family for face in faces_for("latin", held_out)} for held_out in (False, True))
    if len({face.family for face in faces_for("latin")}) > 1 and training != validation:
        assert not training & validation
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        assert all(word_is_held_out(draw_word(rng, "latin", held_out)) == held_out for _ in range(50))
    for script, low, high in (("hangul", "가", "힣"), ("han", "一", "龥")):
        word = draw_word(rng, script).rstrip(",.!?:~")
        assert word
        assert all(low <= letter <= high for letter in word)


def test_a_core_grows_back_to_its_outline() -> None:
    strip = np.array([[[10.0, 20.0], [90.0, 20.0]], [[10.0, 40.0], [90.0, 40.0]]])
    inner = core(strip)
    np.testing.assert_allclose(inner, [[[15.0, 25.0], [85.0, 25.0]], [[15.0, 35.0], [85.0, 35.0]]])
    grown = short_side(inner) / 2
    np.testing.assert_allclose(inner[0, 0] - grown, strip[0, 0])
    np.testing.assert_allclose(inner[1, 1] + grown, strip[1, 1])


def test_cores_of_neighbours_do_not_touch(scenes: list[Scene]) -> None:
    parted = total = 0
    for scene in scenes:
        masks = level_masks(scene)
        assert set(CORES) < set(masks)
        legible = [line for line in scene.lines if line.legible and short_side(line.strip) > 10]
        if len(legible) == len(scene.lines):
            total += len(legible)
            parted += cv2.connectedComponents((masks["text line"] > 0.5).astype(np.uint8))[0] - 1
    assert total > 0
    assert parted >= 0.8 * total


def test_command_line_writes_coco_and_strokes(photos: Path, tmp_path: Path) -> None:
    arguments = ["--photos", str(photos), "--out", str(tmp_path), "--count", "4", "--size", "160x128"]
    main([*arguments, "--script", "latin", "--textless", "0"])
    data = load_coco(tmp_path / "instances.json")
    assert list(data.categories.values()) == ["word", "text line", "text block"]
    assert [(image.width, image.height) for image in data] == [(160, 128)] * 4
    entries = json.loads((tmp_path / "instances.json").read_text("utf-8"))["annotations"]
    assert {entry["category_id"] for entry in entries} == {1, 2, 3}
    assert all(len(entry["quad"]) == 4 and entry["text"] and entry["script"] == "latin" for entry in entries)
    strokes = np.asarray(Image.open(tmp_path / "strokes" / "000000.png"))
    scene = SyntheticText([photos], replace(OPTIONS, blocks=4), seed=0)[0]
    assert np.array_equal(strokes, scene.strokes)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "000000.png")), scene.pixels)


@pytest.mark.parametrize("size", ["1280", "1280*720", "0x720", "1280x-720", "x"])
def test_a_size_in_another_form_is_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit):
        main(["--photos", str(photos), "--out", str(tmp_path / "out"), "--size", size])
    assert f"expected WIDTHxHEIGHT of at least 16 px each, such as 1280x720, got '{size}'" in capsys.readouterr().err


def test_as_a_dataset(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    source = SyntheticText([photos], OPTIONS, seed=3)
    rows = as_dataset(source, 2, cache_dir=tmp_path)
    assert len(rows) == 2
    scene = source[0]
    assert np.array_equal(np.asarray(rows[0]["image"]), scene.pixels)
    assert [w["text"] for w in rows[0]["written"] if w["category"] == "word"] == [w.text for w in scene.words]


def test_a_damaged_photo_is_told_once_and_gives_way(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (photos / "0.png").read_bytes()
    for name, content in {"0.png": whole, "1.png": whole[: len(whole) // 2], "2.jpg": b"", "._3.jpg": b"junk"}.items():
        (tmp_path / name).write_bytes(content)
    scenes = SyntheticText([tmp_path], OPTIONS, seed=3)
    assert all(scenes[number].pixels.shape == (128, 160, 3) for number in range(12))
    assert caplog.text.count("skipped: ") == 3
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match="none of the 3 photos can be read"):
        SyntheticText([tmp_path], OPTIONS)[0]


def test_missing_fonts_and_photos_are_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="name a folder of photos without text"):
        SyntheticText([tmp_path], OPTIONS)
    monkeypatch.setattr(train.fonts, "FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(FileNotFoundError, match=r"writes hangul is installed.*apt-get install fonts-nanum"):
        SyntheticText([photos], replace(OPTIONS, scripts=(("hangul", 1.0),)))
