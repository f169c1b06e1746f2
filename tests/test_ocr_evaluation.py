"""`textsam evaluate --ocr`: reading the truth, finders whose scores are known, the classical finders, the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner
from written import box

from textsam.commands.cli import app
from textsam.evaluation.ocr_baselines import BASELINES, FoundText
from textsam.evaluation.ocr_scoring import run_ocr
from textsam.evaluation.ocr_truth import load_text_dataset, outline_of, polygon_of, stroke_file
from textsam.files.rle import encode_mask

SIZE_HW = (120, 240)
# id -> (level, quad, transcript, legible); picture 3 has no text
WRITTEN: dict[int, list[tuple[str, np.ndarray, str, bool]]] = {
    1: [
        ("word", box(20, 20, 80, 40), "Exit", True),
        ("word", box(90, 20, 160, 40), "출구", True),
        ("word", box(20, 80, 60, 90), "###", False),
        ("text line", box(20, 20, 160, 40), "Exit 출구", True),
    ],
    2: [("word", box(30, 50, 120, 80), "Hotel", True), ("text line", box(30, 50, 120, 80), "Hotel", True)],
    3: [],
}


def ink(number: int) -> np.ndarray:
    """The left half of every legible word."""
    mask = np.zeros(SIZE_HW, bool)
    for level, quad, _, legible in WRITTEN[number]:
        if level == "word" and legible:
            (x1, y1), (x2, y2) = quad[0].astype(int), quad[2].astype(int)
            mask[y1:y2, x1 : (x1 + x2) // 2] = True
    return mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures, whose first pixel is their number, with words, lines and ink."""
    folder = tmp_path / "signs"
    (folder / "images").mkdir(parents=True)
    (folder / "strokes").mkdir()
    images, annotations = [], []
    for number, entries in WRITTEN.items():
        picture = np.full((*SIZE_HW, 3), 200, np.uint8)
        picture[0, 0] = number
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray(ink(number).astype(np.uint8) * 255).save(folder / "strokes" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE_HW[0], "width": SIZE_HW[1]})
        for level, quad, text, legible in entries:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ["word", "text line"].index(level) + 1,
                    "segmentation": [quad.ravel().tolist()],
                    "iscrowd": int(not legible),
                    "text": text,
                    "legible": legible,
                }
            )
    categories = [{"id": 1, "name": "word"}, {"id": 2, "name": "text line"}]
    path = folder / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def perfect(picture: np.ndarray) -> FoundText:
    entries = WRITTEN[int(picture[0, 0, 0])]
    words, lines = (
        np.array([quad for found, quad, _, legible in entries if found == level and legible], np.float32)
        for level in ("word", "text line")
    )
    return FoundText(words, lines, ink(int(picture[0, 0, 0])), ink(int(picture[0, 0, 0])))


def spoilt(picture: np.ndarray) -> FoundText:
    """Misses the Hotel, marks the illegible word, a wrong word by the sign, half of the ink, 10% of the empty photo."""
    found = perfect(picture)
    number = int(picture[0, 0, 0])
    if number == 1:
        more = np.stack([box(20, 80, 60, 90), box(155, 20, 175, 40)])
        strokes = found.strokes & (np.arange(SIZE_HW[0]) < 30)[:, None]
        return FoundText(np.concatenate([found.words, more]), found.lines, strokes, found.marked)
    marked = np.zeros(SIZE_HW, bool)
    marked[: SIZE_HW[0] // 10] = True
    return FoundText(np.zeros((0, 4, 2)), found.lines, np.zeros(SIZE_HW, bool), marked)


def test_a_perfect_finder(data: Path) -> None:
    report = run_ocr([data], perfect, model_name="perfect")
    scores = report.sets["signs/val"]["perfect"]
    assert scores.images == 3
    for counts in (scores.words, scores.lines):
        assert [counts[key] for key in ("precision", "recall", "f")] == [1, 1, 1]
        assert counts["pq"] == pytest.approx(1)
    assert (scores.words["truths"], scores.lines["truths"]) == (3, 2)
    assert scores.strokes["fgiou"] == scores.strokes["f"] == 1
    assert {script: counts["truths"] for script, counts in scores.scripts.items()} == {"latin": 2, "hangul": 1}
    assert scores.marked["within"] == 1
    assert (scores.marked["photos"], scores.marked["mean"]) == (1, 0)


def test_a_spoilt_finder_by_hand(data: Path) -> None:
    scores = run_ocr([data], spoilt, model_name="spoilt").sets["signs/val"]["spoilt"]
    # two right, the illegible one does not count, one wrong, the Hotel missed
    assert (scores.words["detections"], scores.words["matched"]) == (3, 2)
    assert scores.words["precision"] == scores.words["recall"] == pytest.approx(2 / 3)
    assert scores.words["pq"] == pytest.approx(2 / (2 + 0.5 + 0.5))
    # the wrong one overlaps the Hangul word
    assert (scores.scripts["hangul"]["detections"], scores.scripts["hangul"]["matched"]) == (2, 1)
    assert scores.scripts["latin"]["recall"] == 0.5
    # ink: 30 x 20 + 35 x 20 on the sign, of which half is found; 45 x 30 of the Hotel is not
    assert scores.strokes["fgiou"] == pytest.approx(650 / 2650)
    assert scores.strokes["precision"] == 1
    assert scores.stroke_scripts["hangul"]["fgiou"] == pytest.approx(0.5)
    assert scores.stroke_scripts["latin"]["fgiou"] == pytest.approx(300 / (600 + 1350))
    assert scores.marked["mean"] == pytest.approx(0.1)
    assert scores.marked["within"] == 0


def test_report_and_pictures_are_written(data: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    run_ocr([data], perfect, model_name="perfect", out=tmp_path / "scores", limit=2, console=console)
    content = json.loads((tmp_path / "scores" / "ocr_scores.json").read_text("utf-8"))
    assert set(content["sets"]["signs/val"]) == {"perfect", *BASELINES}
    assert content["sets"]["signs/val"]["perfect"]["words"]["f"] == 1
    assert content["limit"] == 2
    with Image.open(tmp_path / "scores" / "ocr_cases.png") as sheet:
        assert sheet.width > 300
    text = console.export_text()
    assert "adaptive threshold" in text
    assert "IoU above 0.5" in text


def test_figures_are_whole_on_a_narrow_screen(data: Path) -> None:
    console = Console(record=True, width=80)
    run_ocr([data], perfect, model_name="a-model-of-a-longer-name", console=console)
    text = console.export_text()
    assert "hangul" in text
    assert "0.…" not in text
    assert "1.…" not in text


def test_icdar_in_coco_form_holds_words(data: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 1, "name": "text"}]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]

    dataset = load_text_dataset(change(data, rename))
    truth = dataset.truth(dataset.coco.images[0])
    assert truth.word_texts == ["Exit", "출구"]
    np.testing.assert_allclose(truth.words[0], box(20, 20, 80, 40))
    assert [polygon.tolist() for polygon in truth.ignored_words] == [box(20, 80, 60, 90).tolist()]
    assert truth.lines == []
    assert not truth.is_text_free
    assert dataset.truth(dataset.coco.images[2]).is_text_free


@pytest.mark.parametrize("mark", [{"iscrowd": 1}, {"ignore": 1}, {"legible": False}, {"text": "###"}])
def test_what_does_not_count(data: Path, mark: dict[str, Any]) -> None:
    dataset = load_text_dataset(change(data, lambda content: content["annotations"][0].update(mark)))
    truth = dataset.truth(dataset.coco.images[0])
    assert truth.word_texts == ["출구"]
    assert len(truth.ignored_words) == 2
    assert truth.ignored_pixels[20:40, 20:80].all()


def test_attributes_of_cvat_say_what_is_written(data: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            if "text" in annotation:
                annotation["attributes"] = {"occluded": False, "text": annotation.pop("text")}
        content["annotations"][0]["attributes"]["text"] = "###"

    dataset = load_text_dataset(change(data, move))
    truth = dataset.truth(dataset.coco.images[0])
    assert truth.word_texts == ["출구"]
    assert len(truth.ignored_words) == 2


def test_boxes_without_a_segmentation_are_outlines(data: Path) -> None:
    """As Label Studio, Roboflow and CVAT write rectangles; CVAT says how far it is turned, clockwise."""

    def to_boxes(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        content["annotations"][0] |= {"bbox": [20, 20, 60, 20], "attributes": {"occluded": False, "rotation": 90.0}}
        content["annotations"][1]["bbox"] = [20.5, 30, 60, 20]

    dataset = load_text_dataset(change(data, to_boxes), max_bad_share=1)
    turned, straight = (outline_of(annotation) for annotation in dataset.annotations[dataset.coco.images[0].id][:2])
    np.testing.assert_allclose(turned, [[60, 0, 60, 60, 40, 60, 40, 0]], atol=1e-9)
    assert straight == [[20.5, 30, 80.5, 30, 80.5, 50, 20.5, 50]]
    for wrong in (None, [], [1, 2, 3], "1,2,3,4", [1, 2, None, 4]):
        with pytest.raises(ValueError, match="it has no outline: neither a segmentation nor a bbox of four numbers"):
            outline_of({"segmentation": [], "bbox": wrong})


def test_ink_as_annotations(data: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 3, "name": "text stroke"})
        rle = encode_mask(ink(2))
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        content["annotations"].append({"id": 99, "image_id": 2, "category_id": 3, "segmentation": segmentation})

    dataset = load_text_dataset(change(data, add))
    np.testing.assert_array_equal(dataset.truth(dataset.coco.images[1]).strokes, ink(2))
    assert not dataset.truth(dataset.coco.images[0]).strokes.any()  # annotations win over files


def test_outline_of_an_rle() -> None:
    mask = np.zeros(SIZE_HW, bool)
    mask[20:40, 30:90] = True
    np.testing.assert_allclose(polygon_of(encode_mask(mask), SIZE_HW), box(30, 20, 90, 40), atol=1e-3)


@pytest.mark.parametrize("name", BASELINES)
def test_classical_finders_find_plain_print(name: str) -> None:
    picture = np.full((200, 460, 3), 230, np.uint8)
    for text, place in (("CLASSIC", (20, 60)), ("FINDER", (215, 60)), ("READS", (20, 140))):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 1.4, (20, 20, 20), 4, cv2.LINE_AA)
    found = BASELINES[name](picture)
    assert len(found.words) == 3
    assert len(found.lines) == 2
    true = picture[..., 0] < 125
    assert (found.strokes & true).sum() / (found.strokes | true).sum() > 0.6
    assert (found.marked | ~found.strokes).all()
    nothing = BASELINES[name](np.full((100, 100, 3), 128, np.uint8))
    assert (nothing.words.shape, nothing.lines.shape, nothing.strokes.any()) == ((0, 4, 2), (0, 4, 2), False)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["categories"].clear(), "annotations are bad"),
        (lambda c: [k.update(name=f"cat {k['id']}") for k in c["categories"]], 'expected a category "word".*got cat 1'),
    ],
)
def test_bad_data_sets(data: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_ocr([change(data, edit)], perfect, model_name="perfect")
    with pytest.raises(ValueError, match="no data set given"):
        run_ocr([], perfect, model_name="perfect")


def test_a_picture_that_cannot_be_read_is_named(data: Path) -> None:
    Image.new("L", (3, 3)).save(data.parent / "strokes" / "1.png")
    report = run_ocr([data], perfect, model_name="perfect", max_bad_share=0.5)
    assert report.sets["signs/val"]["perfect"].images == 2
    assert "image 1" in report.problems[0]
    assert "(3, 3)" in report.problems[0]
    with pytest.raises(ValueError, match=r"1 of 3 pictures cannot be used \(at most 10% allowed\). First: .*image 1"):
        run_ocr([data], perfect, model_name="perfect")


def test_exports_of_the_same_name_and_a_model_named_as_a_baseline_stand_beside_each_other(data: Path) -> None:
    other = data.parent.parent / "other" / "signs"
    shutil.copytree(data.parent, other)
    change(other / "val.json", lambda content: content["images"].pop())
    report = run_ocr([data, other / "val.json"], perfect, model_name="MSER")
    assert {name: scores["MSER"].images for name, scores in report.sets.items()} == {
        "signs/val": 3, "signs/val (2)": 2,
    }  # fmt: skip
    assert report.sets["signs/val"]["MSER"].words["f"] == 1


def test_a_picture_with_bad_annotations_alone_is_not_free_of_text(data: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            del annotation["id"]
            if annotation["image_id"] == 2:
                annotation["segmentation"] = []

    dataset = load_text_dataset(change(data, spoil), max_bad_share=0.5)
    truths = [dataset.truth(image) for image in dataset.coco]
    assert [truth.is_text_free for truth in truths] == [False, False, True]
    assert [len(truth.words) for truth in truths] == [2, 0, 0]


def test_ink_lies_below_strokes_as_its_picture_below_its_folder(tmp_path: Path) -> None:
    for name in ("strokes/a/1.png", "strokes/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    file = tmp_path / "val.json"
    assert stroke_file(file, tmp_path / "images" / "a" / "1.jpg") == tmp_path / "strokes" / "a" / "1.png"
    assert stroke_file(file, tmp_path / "2.jpg") == tmp_path / "strokes" / "2.png"
    assert stroke_file(file, tmp_path / "b" / "2.jpg") == tmp_path / "strokes" / "2.png"
    assert stroke_file(file, tmp_path / "images" / "b" / "1.jpg") is None


def test_the_command(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--ocr", str(data), "--model", str(tiny_folder), "--device", "cpu"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "was not trained to find written text" in " ".join(refused.output.split())
    refused = CliRunner().invoke(app, [*arguments, "--prompts", "box"])
    assert refused.exit_code == 2
