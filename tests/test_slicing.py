"""Small things in large pictures: what slices add to the whole photo, and what they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

import textsam
from textsam import slicing
from textsam.commands.cli import app
from textsam.files.rle import decode_mask
from textsam.labelling.step import Labeller, LabelSettings
from textsam.prompting.detections import to_detections
from textsam.slicing import find_in_slices

SIDE = 100


def ask(part: np.ndarray) -> sv.Detections:
    """A finder of red and of green blobs, to which the rest is too small below a tenth of the picture: larger blobs are
    surer, and whatever is nearer than a tenth of it flows together."""
    reach = max(part.shape[:2]) // 10
    masks, classes, scores = [], [], []
    for number in (0, 1):
        near = ndimage.binary_closing(np.pad(part[..., number] > 127, reach), iterations=reach // 2)
        near = near[reach:-reach, reach:-reach]
        labels, count = ndimage.label(near)
        for label in range(1, count + 1):
            mask = labels == label
            if np.sqrt(mask.sum()) >= reach:
                masks.append(mask)
                classes.append(number)
                scores.append(0.5 + 0.4 * mask.mean())
    masks = np.stack(masks) if masks else np.zeros((0, *part.shape[:2]), bool)
    return to_detections(
        masks,
        confidence=np.array(scores),
        class_id=np.array(classes, int),
        class_names=[("red", "green")[number] for number in classes],
    )


def draw(*boxes: tuple[int, int, int, int], channel: int = 0, size: int = 300) -> np.ndarray:
    """A black picture with boxes xyxy of one colour."""
    picture = np.zeros((size, size, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        picture[y1:y2, x1:x2, channel] = 255
    return picture


def test_small_things_are_found_once_each() -> None:
    """Those in the overlap of slices, too, and at the photo's own border."""
    boxes = [(0, 0, 20, 20), (80, 30, 96, 46), (140, 140, 158, 158), (281, 281, 300, 300), (40, 200, 57, 217)]
    picture = draw(*boxes)
    assert len(ask(picture)) == 0
    found = find_in_slices(ask, picture, SIDE)
    assert sorted(map(tuple, found.xyxy.tolist())) == sorted((a, b, c - 1, d - 1) for a, b, c, d in boxes)
    assert isinstance(found.mask, sv.CompactMask)
    np.testing.assert_array_equal(found.mask.to_dense().any(axis=0), picture[..., 0] > 0)
    assert set(found.data) == {"class_name"}


def test_a_large_thing_is_the_whole_photos() -> None:
    """Its parts in the slices are cut, but for one in whose middle it seems to end."""
    picture = draw((60, 60, 240, 240), (10, 10, 26, 26))
    found = find_in_slices(ask, picture, SIDE)
    assert sorted(map(tuple, found.xyxy.tolist())) == [(10, 10, 25, 25), (60, 60, 239, 239)]
    assert found.confidence[0] > 0.6  # best first

    def with_an_end(part: np.ndarray) -> sv.Detections:
        found = ask(part)
        if part.shape[0] == SIDE and len(found):
            inner = np.zeros_like(found.mask[:1])
            inner[0, 40:60, 40:60] = True
            extra = to_detections(inner, confidence=np.array([0.99]), class_names=["red"])
            found = sv.Detections.merge([found, extra])
        return found

    assert (60, 60, 239, 239) in set(map(tuple, find_in_slices(with_an_end, picture, SIDE).xyxy.tolist()))


def test_a_coarse_find_gives_way_to_what_makes_it_up() -> None:
    boxes = [(x, y, x + 18, y + 18) for x in (30, 62) for y in (30, 62)]
    picture = draw(*boxes)
    assert len(ask(picture)) == 1
    assert len(find_in_slices(ask, picture, SIDE)) == 4
    green = np.maximum(picture, draw((140, 20, 280, 160), channel=1))
    found = find_in_slices(ask, green, SIDE, max_instances=2)
    assert found.class_id.tolist() == [0, 0, 1]  # most of two, each class's together
    assert found.data["class_name"].tolist() == ["red", "red", "green"]


def test_what_ends_just_before_an_edge_of_a_slice_is_cut() -> None:
    """Masks of cut things may stop a pixel short; at the photo's own border that is no cut."""

    def ask_short(part: np.ndarray) -> sv.Detections:
        inner = part.copy()
        inner[[0, -1]] = inner[:, [0, -1]] = 0
        return ask(inner)

    too_large_for_the_overlap = (60, 73, 88, 101)
    assert len(find_in_slices(ask_short, draw(too_large_for_the_overlap), SIDE)) == 0
    found = find_in_slices(ask_short, draw((0, 0, 20, 20), (280, 280, 300, 300)), SIDE)
    assert sorted(map(tuple, found.xyxy.tolist())) == [(1, 1, 19, 19), (280, 280, 298, 298)]


def test_nothing_and_small_photos() -> None:
    nothing = find_in_slices(ask, draw(), SIDE)
    assert len(nothing) == 0
    assert isinstance(nothing.mask, sv.CompactMask)
    assert len(find_in_slices(lambda part: sv.Detections.empty(), draw(), SIDE)) == 0
    assert isinstance(find_in_slices(ask, draw((60, 60, 240, 240)), SIDE).mask, sv.CompactMask)  # nothing in slices
    picture = draw((10, 10, 50, 50), size=90)
    found = find_in_slices(ask, picture, SIDE)
    np.testing.assert_array_equal(found.mask, ask(picture).mask)
    with pytest.raises(ValueError, match="at least 32 px, got 31"):
        find_in_slices(ask, picture, 31)


@pytest.mark.parametrize("name", ["quad", "point_coords"])
def test_places_that_would_have_to_move_are_refused(name: str) -> None:
    def ask_places(part: np.ndarray) -> sv.Detections:
        found = ask(part)
        found.data[name] = found.xyxy[:, :2]
        return found

    with pytest.raises(ValueError, match=rf"by words, got data of places \({name}\)"):
        find_in_slices(ask_places, draw((60, 60, 240, 240)), SIDE)


@pytest.mark.parametrize("shape", [(40, 130), (130, 64), (97, 131)])
def test_any_shape_and_a_photo_as_a_file(tiny_folder: Path, in_tmp: Path, shape: tuple[int, int]) -> None:
    sam = textsam.load(tiny_folder, device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(picture).save("photo.png")
    found = find_in_slices(lambda part: sam.predict(part, text=["cat", "dog"], threshold=0), "photo.png", 64)
    assert len(found)
    assert found.mask.shape == (len(found), *shape)
    assert set(sam.predict(picture, text="cat").data) == set(found.data)


def test_the_commands(tiny_folder: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    Image.fromarray(picture).save("photo.png")
    asked = []

    def spy(ask: Any, image: Any, side: int, max_instances: int | None = None) -> sv.Detections:
        asked.append((side, max_instances))
        return find_in_slices(ask, image, side, max_instances)

    monkeypatch.setattr(slicing, "find_in_slices", spy)
    words = ["segment", "photo.png", "--model", str(tiny_folder), "--device", "cpu", "--threshold", "0"]
    result = CliRunner().invoke(app, [*words, "--text", "cat", "--slice", "64", "--max-instances", "3"])
    assert result.exit_code == 0, result.output
    sam = textsam.load(tiny_folder, device="cpu")
    expected = find_in_slices(lambda part: sam.predict(part, text="cat", threshold=0, max_instances=3), picture, 64, 3)
    written = json.loads(Path("out/annotations.json").read_text())["annotations"]
    masks = np.stack([decode_mask(annotation["segmentation"]) for annotation in written])
    np.testing.assert_array_equal(masks, np.asarray(expected.mask))
    settings = LabelSettings(("cat",), str(tiny_folder), device="cpu", threshold=0)
    assert "slice" not in settings.identity()
    sliced = replace(settings, slice=64)
    assert sliced.identity()["slice"] == 64
    assert len(Labeller(sliced).find(picture))
    assert asked == [(64, 3), (64, None)]
    for more in (["--text", "cat", "--point", "3,4"], ["--box", "3,4,20,30"]):
        refused = CliRunner().invoke(app, [*words, *more, "--slice", "64"])
        assert refused.exit_code == 2
        assert "goes with --text alone" in refused.output


def test_written_text_is_read_in_tiles_already(in_tmp: Path) -> None:
    Image.fromarray(draw()).save("photo.png")
    words = ["segment", "photo.png", "--model", "textsam-tiny-ocr", "--text", "word", "--slice", "64"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "in tiles already" in result.output
    with pytest.raises(ValueError, match="in tiles already"):
        Labeller(LabelSettings(("word",), "textsam-tiny-ocr", slice=64))
