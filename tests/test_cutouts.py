"""Sets of objects to paste: what is written can be read, and things are called by their names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import textsam
from textsam.files.coco import load_coco
from textsam.language.vocabulary import Vocabulary
from train.cutouts import CutoutSet, known_name
from train.stamp_objects import SAME, main

TEXT_ENCODER = Path(textsam.__file__).parent / "weights/textsam-tiny/text_encoder"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(TEXT_ENCODER / "vocabulary.json")


def test_a_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    pixels, mask = np.full((40, 60, 3), 9, np.uint8), np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    mask[15:20, 25:30] = False
    pixels[mask] = (200, 30, 30)
    cutouts = CutoutSet(tmp_path)
    cutouts.add(pixels, mask, "cup")
    cutouts.add(pixels[:, ::-1], mask[:, ::-1], "cup")
    cutouts.write()
    data = load_coco(tmp_path / "train.json")
    assert len(data) == len(cutouts) == 2
    assert not data.problems
    assert list(data.categories.values()) == ["cup"]
    image = next(iter(data))
    assert np.array_equal(image.instances[0].mask(), mask[10:30, 20:50])
    assert image.read().shape == (20, 30, 3)
    assert (image.read()[..., 0] > 150).all()  # behind it, too: an outline does not bring the old ground along


def test_names_by_path_and_by_words(vocabulary: Vocabulary) -> None:
    for path, said, name in (
        ("animals/birds/owl", "An owl.", "bird"),
        ("town/roadsigns/stop", "A “Stop” sign. Stop here!", "stop sign"),
        ("town/roadsigns/yield", "“Yield” means to let others go first", None),
        ("food/vegetables/carrot", "A carrot.", "carrot"),
        ("animals/insects/woodlouse", "A quxling.", None),
    ):
        found = known_name(path, said, SAME, vocabulary)
        assert (found and vocabulary.find(found)) == name
    assert known_name("", "cuckoo clock", {}, vocabulary) == "clock"  # nobody knows the whole


def test_stamps(tmp_path: Path) -> None:
    folder = tmp_path / "stamps" / "food"
    (folder / "cartoon").mkdir(parents=True)
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[8:56, 8:56] = (230, 120, 20, 255)
    for name in ("carrot", "cartoon/carrot", "wordless"):
        Image.fromarray(picture).save(folder / f"{name}.png")
    for name in ("carrot", "cartoon/carrot"):
        (folder / f"{name}.txt").write_text("A carrot.\nde.utf8=Eine Karotte.\n", "utf-8")
    out = tmp_path / "out"
    main(["--stamps", str(tmp_path / "stamps"), "--text-encoder", str(TEXT_ENCODER), "--out", str(out)])
    (only,) = load_coco(out / "train.json")  # the drawn one and the one without words are left out
    assert only.instances[0].mask().all()
