"""Evaluation against models whose answers are known: the truth, the filled box, nothing; and a small random TextSAM."""

import io
import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from textsam.evaluation.geometry import choose, farthest_from_boundary, next_click
from textsam.evaluation.metrics import filled_boxes
from textsam.evaluation.scoring import EvaluationOptions, run
from textsam.evaluation.sheet import Case, CaseBook
from textsam.evaluation.text import TextScores, _count_instances, semantic_truth
from textsam.files.coco import CocoDataset, load_coco
from textsam.files.rle import encode_mask
from textsam.language.vocabulary import UnknownNameError
from textsam.prompting.detections import to_detections

HEIGHT, WIDTH = 60, 80
NAMES = ("cat", "dog", "bus")
# image -> (name, box of an ellipse): nothing overlaps, and no two images look alike
SCENES: list[list[tuple[str, tuple[int, int, int, int]]]] = [
    [("cat", (4, 5, 30, 28)), ("dog", (40, 10, 70, 50))],
    [("cat", (10, 10, 40, 30)), ("cat", (50, 20, 75, 55)), ("bus", (5, 35, 45, 55))],
    [("dog", (20, 15, 60, 45))],
    [],
]


def ellipse(box: tuple[int, int, int, int]) -> np.ndarray:
    image = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).ellipse(box, fill=1)
    return np.array(image)


def text_rle(mask: np.ndarray) -> dict[str, Any]:
    rle = encode_mask(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A COCO file of four rendered pictures."""
    folder = tmp_path / "shapes"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, scene in enumerate(SCENES, start=1):
        picture = Image.new("RGB", (WIDTH, HEIGHT), (10 * number, 30, 60))
        for name, box in scene:
            colour = {"cat": (250, 120, 20), "dog": (30, 200, 60), "bus": (220, 220, 40)}[name]
            ImageDraw.Draw(picture).ellipse(box, fill=colour)
            mask = ellipse(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": NAMES.index(name) + 1,
                    "segmentation": text_rle(mask),
                    "iscrowd": 0,
                }
            )
        picture.save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    path = folder / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


class Oracle:
    """Answers from the file itself. `answer` turns the true mask of an instance into the one that is returned."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[np.ndarray], np.ndarray] = lambda mask: mask,
        unknown: tuple[str, ...] = (),
        noisy_first_click: bool = False,
    ) -> None:
        self.dataset: CocoDataset = load_coco(path)
        self.by_pixels = {zlib.crc32(image.read().tobytes()): image for image in self.dataset}
        self.answer = answer
        self.unknown = unknown
        self.noisy_first_click = noisy_first_click
        self.calls: list[str] = []
        self.encoded = 0

    def set_image(self, image: np.ndarray) -> None:
        self.image = self.by_pixels[zlib.crc32(image.tobytes())]
        self.truth = [(self.dataset.categories[r.category_id], r.mask()) for r in self.image.instances]
        self.encoded += 1

    def presence(self, image: None, texts: list[str]) -> np.ndarray:
        for text in texts:
            if text in self.unknown:
                raise UnknownNameError(text)
        return np.array([float(any(name == text for name, _ in self.truth)) for text in texts])

    def predict(
        self,
        image: Any = None,
        text: Any = None,
        points: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        *,
        multimask_output: bool = False,
        threshold: float | None = None,
        return_logits: bool = False,
    ) -> Any:
        masks, ids = [], []
        if boxes is not None:
            self.calls.append("box" + (" + text" if text else ""))
            assert text is None or len(text) == len(boxes)
            for row, box in enumerate(boxes):
                mask = filled_boxes(box[None], HEIGHT, WIDTH)[0]
                name, found = max(self.truth, key=lambda each: (each[1] & mask).sum() / (each[1] | mask).sum())
                assert text is None or text[row] == name
                masks.append(found)
        elif points is not None:
            self.calls.append(f"{points.shape[1]} clicks" + (" + text" if text else ""))
            assert (mask_input is None) == (points.shape[1] == 1)
            if text is not None:
                assert len(text) == len(points)
            for row, point in enumerate(points):
                (found,) = (i for i, (_, m) in enumerate(self.truth) if m[int(point[0, 1]), int(point[0, 0])])
                if text is not None:
                    assert text[row] == self.truth[found][0]
                if mask_input is not None:
                    assert mask_input.shape[1:] == (1, 4, 4)
                    assert (mask_input[row] == self.truth[found][1].sum()).all()  # fed back to its own instance
                    for x, y, label in zip(*point[1:].T.astype(int), point_labels[row, 1:], strict=True):
                        assert label == self.truth[found][1][y, x]
                masks.append(self.truth[found][1])
        else:
            self.calls.append("text")
            for index, name in enumerate(text):
                if name in self.unknown:
                    raise UnknownNameError(name)
                for other, mask in self.truth:
                    if other == name:
                        masks.append(mask)
                        ids.append(index)
        repeats = 3 if multimask_output else 1
        areas = np.repeat([float(m.sum()) for m in masks], repeats)
        shown = []
        for mask in masks:
            wrong = np.zeros_like(mask)
            shown += [wrong, self.answer(mask), wrong] if multimask_output else [self.answer(mask)]
        predicted_iou = np.array([0.2, 0.9, 0.1] * len(masks) if multimask_output else [1.0] * len(masks))
        if multimask_output and self.noisy_first_click:
            predicted_iou = np.array([0.9, 0.2, 0.1] * len(masks))
        extra = {"predicted_iou": predicted_iou}
        if return_logits:
            extra["low_res_logits"] = np.ones((len(shown), 4, 4)) * areas[:, None, None]
        stacked = np.array(shown, bool).reshape(-1, HEIGHT, WIDTH)
        confidence = np.ones(len(shown)) if not multimask_output else predicted_iou
        class_id = np.array(ids) if boxes is None and points is None else None
        return to_detections(stacked, confidence=confidence, class_id=class_id, data=extra)


def test_the_truth_scores_one_everywhere(data: Path, tmp_path: Path) -> None:
    model = Oracle(data)
    report = run(data, model, out=tmp_path / "out")
    (scores,) = report.sets
    assert (scores.name, scores.images, scores.instances) == ("shapes/val", 4, 6)
    assert scores.box == 1.0
    assert scores.clicks == {1: 1.0, 3: 1.0, 5: 1.0, 9: 1.0}
    assert (
        scores.one_click_oracle == scores.one_click_single == scores.text_click == scores.one_click_beside_text == 1.0
    )
    assert scores.text_box == scores.box_beside_text == 1.0
    assert scores.text is not None
    assert scores.text["miou_pairs"] == scores.text["miou_classes"] == scores.text["iou_dataset"] == 1.0
    assert scores.text["per_class"] == {"bus": (1.0, 1), "cat": (1.0, 2), "dog": (1.0, 2)}
    assert scores.text["ap"] == pytest.approx(1.0)
    assert scores.absence is not None
    assert (scores.absence["auroc"], scores.absence["present"], scores.absence["absent"]) == (1.0, 5, 7)
    assert scores.absence["confusable"] == {"cat / dog": (1.0, 1.0, 2)}
    assert scores.absence["per_name"] == {"bus": (1.0, 1), "cat": (1.0, 2), "dog": (1.0, 2)}
    assert scores.calibration["box"] == scores.calibration["text"] == scores.calibration["presence"] == 0.0
    assert scores.calibration["one_click"] == pytest.approx(0.1)
    assert 0.7 < scores.filled_box < 0.85 < 0.95 < scores.ellipse < 1.0
    assert report.problem_count == 0
    assert report.overall.box == 1.0
    assert model.encoded == 4  # every picture once
    # nobody clicks on a perfect mask again
    assert set(model.calls) == {"box", "box + text", "1 clicks", "1 clicks + text", "text"}

    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["sets"][0]["clicks"]["9"] == 1.0
    assert written["options"]["max_instances"] == 32
    with Image.open(tmp_path / "out" / "cases.png") as sheet:
        assert sheet.size[0] == 4 * 300
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cases.png", "scores.json"]


def test_the_filled_box_scores_as_its_baseline(data: Path) -> None:
    def box_of(mask: np.ndarray) -> np.ndarray:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        filled = np.zeros_like(mask)
        filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        return filled

    model = Oracle(data, box_of)
    (scores,) = run(data, model).sets
    assert scores.box == pytest.approx(scores.filled_box, abs=1e-12)
    assert scores.clicks[1] == scores.clicks[9] == scores.text_click == scores.text_box == scores.box
    assert scores.calibration["box"] == pytest.approx(1 - scores.filled_box)
    assert scores.text is not None
    assert scores.text["ap50"] == pytest.approx(1.0)
    assert scores.text["ap"] < 0.7
    assert scores.text["instance_precision"] == scores.text["instance_recall"] == 1.0
    # every wrong click is a background click in a corner of the box, all nine are made
    assert {f"{count} clicks" for count in range(1, 10)} <= set(model.calls)


def test_an_empty_answer_scores_zero(data: Path) -> None:
    (scores,) = run(data, Oracle(data, np.zeros_like)).sets
    assert scores.box == scores.clicks[1] == scores.clicks[9] == 0.0
    assert scores.text is not None
    assert scores.text["miou_classes"] == 0.0
    assert scores.text["instance_recall"] == 0.0


def test_the_first_click_takes_the_mask_of_the_highest_predicted_iou(data: Path) -> None:
    (scores,) = run(data, Oracle(data, noisy_first_click=True), options=EvaluationOptions(("point",))).sets
    assert scores.clicks[1] == 0.0
    assert scores.one_click_oracle == scores.one_click_single == 1.0
    assert scores.clicks[3] == 1.0


@pytest.mark.parametrize(
    ("prompts", "calls"),
    [
        (("box",), {"box"}),
        (("text",), {"text"}),
        (("text+point",), {"1 clicks", "1 clicks + text"}),
        (("point",), {"1 clicks"}),
        (("text+box",), {"box", "box + text"}),
    ],
)
def test_only_what_is_asked_for_is_scored(prompts: tuple[str, ...], calls: set[str], data: Path) -> None:
    model = Oracle(data)
    (scores,) = run(data, model, options=EvaluationOptions(prompts)).sets
    assert set(model.calls) == calls
    assert (scores.box is None) == (not {"box", "text+box"} & set(prompts))
    assert (scores.text is None) == ("text" not in prompts)
    assert (scores.text_click is None) == ("text+point" not in prompts)


def test_unknown_names_are_listed_and_not_asked(data: Path) -> None:
    (scores,) = run(data, Oracle(data, unknown=("dog",))).sets
    assert scores.unknown_names == ["dog"]
    assert scores.names == 2
    assert scores.text is not None
    assert set(scores.text["per_class"]) == {"cat", "bus"}
    assert scores.text_click == scores.text_box == 1.0
    assert scores.absence is not None
    assert scores.absence["present"] == 3


def test_what_the_semantic_file_leaves_open_counts_for_no_prompt(data: Path) -> None:
    """It holds one cat less, all of which is void, and void over a part of the other."""
    void = ellipse(SCENES[1][0][1]) | ellipse(SCENES[1][1][1])
    void[:, :25] = False

    def edit(content: dict[str, Any]) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["id"] != 4]
        content["images"][1]["void_rle"] = text_rle(void)

    semantic = data.with_name("val_semantic.json")
    semantic.write_text(data.read_text())
    change(semantic, edit)
    (scores,) = run(data, Oracle(data), options=EvaluationOptions(("text", "box"))).sets
    assert scores.truth == "val_semantic.json"
    assert scores.text is not None
    # the second cat lies in the void as a whole: predicting it costs nothing, and it is no object to ask for
    assert scores.text["per_class"]["cat"] == (1.0, 2)
    assert scores.instances == 5

    def cut(mask: np.ndarray) -> np.ndarray:
        """Nothing of the void is found."""
        return mask & ~void if any((mask == ellipse(place)).all() for _, place in SCENES[1]) else mask

    (left_out,) = run(data, Oracle(data, cut), options=EvaluationOptions(("box", "point"))).sets
    assert left_out.box == left_out.clicks[1] == 1.0
    change(semantic, lambda content: content["images"][1].pop("void_rle"))
    (counted,) = run(data, Oracle(data, cut), options=EvaluationOptions(("box",))).sets
    assert counted.instances == 6
    assert counted.box is not None
    assert counted.box < 1.0


def test_crowds_are_neither_wrong_nor_right(data: Path) -> None:
    change(data, lambda content: content["annotations"][1].update(iscrowd=1))  # the dog of image 1
    (scores,) = run(data, Oracle(data)).sets
    assert scores.instances == 5
    assert scores.text is not None
    assert scores.text["per_class"]["dog"] == (1.0, 1)
    assert scores.absence is not None
    assert (scores.absence["present"], scores.absence["absent"]) == (4, 7)
    assert scores.absence["confusable"] == {"cat / dog": (1.0, 1.0, 2)}


def test_instances_of_an_image_are_capped_and_counted(data: Path) -> None:
    options = EvaluationOptions(("box",), max_instances=1)
    first, second = (run(data, Oracle(data), options=options).sets[0] for _ in range(2))
    assert (first.instances, first.instances_left_out) == (3, 3)
    assert first.filled_box == second.filled_box


def test_several_sets_are_added_up_by_instance(data: Path) -> None:
    other = data.with_name("test.json")
    other.write_text(data.read_text())
    change(other, lambda content: content.update(annotations=content["annotations"][:1]))
    options = EvaluationOptions(("box", "text"))
    console = Console(width=200, record=True, file=io.StringIO())
    report = run([data, other], Oracle(data), options=options, console=console)
    first, second = report.sets
    assert (first.instances, second.instances, report.overall.instances) == (6, 1, 7)
    assert report.overall.filled_box == pytest.approx((6 * first.filled_box + second.filled_box) / 7)
    assert report.mean_of_sets["filled_box"] == pytest.approx((first.filled_box + second.filled_box) / 2)
    printed = console.export_text()
    for word in ("shapes/val", "shapes/test", "filled box", "ellipse", "absence AUROC", "Mean of sets"):
        assert word in printed


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_figure_is_cut_off(data: Path, width: int) -> None:
    """A row as wide as a terminal seldom is goes below itself; brackets in a folder's name are no markup."""
    folder = data.parent.rename(data.parent.with_name("shapes [old]"))
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=False)
    report = run(folder / "val.json", Oracle(folder / "val.json", answer=lambda mask: mask & False), console=console)
    printed = console.export_text()
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    assert "[old]/val" in printed
    figures = [report.overall.filled_box, report.overall.ellipse, report.overall.calibration["box"]]
    assert all(f"{figure:.3f}" in printed for figure in figures[:2])
    for words in ("inst", "elli", "best", "single", "alone", "AUROC", "presence"):
        assert words in printed


def test_many_instances_of_a_large_picture_fit_into_memory(data: Path) -> None:
    side, count = 400, 300
    cells = [(20 * (i % 20), 20 * (i // 20)) for i in range(count)]
    squares = [[[x, y, x + 10, y, x + 10, y + 10, x, y + 10]] for x, y in cells]
    Image.new("RGB", (side, side)).save(data.parent / "images" / "1.png")
    entry = {"id": 1, "file_name": "1.png", "height": side, "width": side}
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "segmentation": square} for i, square in enumerate(squares)
    ]
    change(data, lambda content: content.update(images=[entry], annotations=annotations))
    dataset = load_coco(data)
    image = dataset.images[0]
    truth = semantic_truth(image, dataset)
    found = to_detections(image.instances[7].mask()[None], confidence=np.ones(1), class_id=np.zeros(1, int))
    scores = TextScores()
    tracemalloc.start()
    _count_instances(found, 0, [region.rle for region in image.instances], truth.ignore["cat"], scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (scores.answers, scores.matches, scores.wanted) == ([1], [1], [count])
    assert peak < count * side**2 / 4


def test_limit_takes_images_of_each_set(data: Path) -> None:
    (scores,) = run(data, Oracle(data), options=EvaluationOptions(("box",), limit=2)).sets
    assert scores.images == 2


def test_a_broken_picture_is_reported_and_skipped(data: Path) -> None:
    oracle = Oracle(data)
    (data.parent / "images" / "3.png").write_bytes(b"not a picture")
    Image.new("RGB", (5, 5)).save(data.parent / "images" / "4.png")
    report = run(data, oracle, options=EvaluationOptions(("box",), max_bad_share=0.5))
    assert (report.sets[0].images, report.sets[0].images_left_out, report.problem_count) == (2, 2, 2)
    assert report.problems[0].startswith("val.json: image 3: ")
    assert "5 x 5 px, the data set says 80 x 60" in report.problems[1]
    with pytest.raises(ValueError, match="1 of 4 images are bad"):
        run(data, oracle, options=EvaluationOptions(("box",)))


def test_farthest_from_boundary_is_the_middle() -> None:
    region = np.zeros((40, 50), bool)
    region[10:21, 20:31] = True
    assert farthest_from_boundary(region) == (25, 15, 6.0)
    # the image's border is a boundary, too
    corner = np.zeros((40, 50), bool)
    corner[:11, :11] = True
    assert farthest_from_boundary(corner)[:2] == (5, 5)
    assert farthest_from_boundary(np.zeros((3, 3), bool))[2] == 0


def test_next_click_goes_to_the_deepest_error_with_its_label() -> None:
    nothing = np.zeros((30, 30), bool)
    target, prediction = nothing.copy(), nothing.copy()
    target[5:15, 5:15] = True
    assert next_click(nothing, target, nothing) is not None
    assert next_click(target, target, nothing) is None
    # missed: 10 x 3; wrong: a square of 7
    prediction[5:15, 5:12] = True
    prediction[20:27, 20:27] = True
    assert next_click(prediction, target, nothing) == (23, 23, 0)
    # where the wrong pixels do not count, the missed ones are next
    click = next_click(prediction, target, np.pad(np.ones((15, 15), bool), ((15, 0), (15, 0))))
    assert click is not None
    assert (click[0], click[2]) == (13, 1)


def test_choose_is_repeatable_and_keeps_the_order() -> None:
    items: list[Any] = list(range(100))
    assert choose(items, 100, "a") == items
    picked = choose(items, 10, "a")
    assert picked == choose(items, 10, "a") == sorted(picked)
    assert picked != choose(items, 10, "b")


def test_a_sheet_of_a_former_run_does_not_stay(data: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(("box",))
    run(data, Oracle(data), options=options, out=tmp_path / "out")
    assert (tmp_path / "out" / "cases.png").exists()
    change(data, lambda content: content.update(annotations=[]))
    run(data, Oracle(data), options=options, out=tmp_path / "out")
    assert not (tmp_path / "out" / "cases.png").exists()


def test_case_book_is_exact_and_bounded(tmp_path: Path) -> None:
    book = CaseBook(columns=3, sample_size=64)
    ious = np.random.default_rng(0).permutation(3000) / 3000
    for group in ious.reshape(-1, 5):
        book.add_image([Case(float(iou), "", tmp_path, {}, {}) for iou in group])
    rows = book.rows()
    groups = ious.reshape(-1, 5)
    assert [case.iou for case in rows["best"]] == sorted(groups.max(1))[::-1][:3]
    assert [case.iou for case in rows["worst"]] == sorted(groups.min(1))[:3]
    assert rows["median"][1].iou == pytest.approx(0.5, abs=0.15)
    assert len(book.sample) <= 64
    assert len(book.best) == len(book.worst) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ("boxes",)}, "unknown prompts.*boxes.*choose from box, point"),
        ({"prompts": ()}, "unknown prompts"),
        ({"clicks": ()}, "clicks must be"),
        ({"clicks": (0,)}, "clicks must be"),
        ({"limit": 0}, "at least 1"),
        ({"max_instances": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**changes)


def test_no_data_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        run([], model=Oracle.__new__(Oracle))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such dataset file"):
        run(tmp_path / "none.json", model=Oracle.__new__(Oracle))


def random_sam() -> Any:
    """A whole random TextSAM with a text prompt, which knows two of the three names."""
    import torch
    from tiny_models import tiny_model

    from textsam.language.small_clip import SmallTextEncoder
    from textsam.language.vocabulary import Vocabulary
    from textsam.predictor import TextSam
    from textsam.prompting.text_options import TextPromptOptions

    torch.manual_seed(0)
    words = SmallTextEncoder(Vocabulary(["cat", "dog"]), num_buckets=64, width=16, mlp_dim=16, embed_dim=48)
    options = TextPromptOptions(
        presence_threshold=0.0, confidence_threshold=0.0, min_stability=0.0, grid_points_per_side=4
    )
    return TextSam(tiny_model(text_trained=True), words.eval(), text_options=options)


def test_a_real_model_end_to_end_and_again(data: Path, tmp_path: Path) -> None:
    first = run(data, random_sam(), out=tmp_path / "out")
    (scores,) = first.sets
    assert (scores.images, scores.instances, scores.unknown_names) == (4, 6, ["bus"])
    means = [scores.box, *scores.clicks.values(), scores.one_click_oracle, scores.text_click]
    assert list(scores.clicks) == [1, 3, 5, 9]
    assert all(value is not None and 0 <= value < 0.9 for value in means), means
    assert scores.one_click_oracle >= scores.clicks[1]
    assert scores.text is not None
    assert set(scores.text["per_class"]) == {"cat", "dog"}
    assert 0 <= scores.text["ap"] <= 1
    assert scores.absence is not None
    assert 0 <= scores.absence["auroc"] <= 1
    assert all(0 <= value <= 1 for value in scores.calibration.values() if value is not None)
    with Image.open(tmp_path / "out" / "cases.png") as sheet:
        assert sheet.size[1] > 1000

    second = run(data, random_sam())
    assert second.sets == first.sets


def test_scores_of_a_model_by_its_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textsam.checkpoints.loading.load", lambda name: {"folder": random_sam()}[name])
    out = tmp_path / "scores"
    run(data, "folder", out=out, options=EvaluationOptions(("box", "text"), 2))
    written = json.loads((out / "scores.json").read_text())
    assert (written["model"], written["sets"][0]["images"]) == ("folder", 2)
    assert written["sets"][0]["clicks"] == {}
