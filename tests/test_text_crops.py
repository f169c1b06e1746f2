"""Crops, letters, plates and files of written text: values by hand, files read back, the command and the example."""

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from miniatures import HashedWords, mobile_miniature
from PIL import Image
from typer.testing import CliRunner, Result
from written import box

import textsam
from textsam.commands.cli import app
from textsam.evaluation.ocr_truth import load_text_dataset
from textsam.files import text_runs
from textsam.files.text_export import coco_of_regions, icdar_lines, read_icdar, write_icdar
from textsam.files.text_runs import region_rows, run_crops
from textsam.labelling.step import Labeller, LabelSettings
from textsam.predictor import TextSam
from textsam.text_regions.cutouts import clean_plate, glyph_cutouts, plate_mask, soft_alpha
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.order import reading_order
from textsam.text_regions.read import read_text_regions
from textsam.text_regions.rectify import Rectification, recognise_regions, rectified_crops
from textsam.text_regions.regions import TextRegions


def regions_of(quads: list[np.ndarray], size_hw: tuple[int, int], level: str = "word") -> TextRegions:
    stacked = np.array(quads, np.float32).reshape(-1, 4, 2)
    order = reading_order(stacked)
    rows = order.order
    scores = np.linspace(0.9, 0.6, len(rows)).astype(np.float32)
    return TextRegions(level, size_hw, stacked[rows], scores, order.line[rows], order.block[rows], 0.9)


# -- upright crops ---------------------------------------------------------------------------------------------------


def test_an_upright_quad_is_cut_out_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    crop = Rectification.of(box(10, 20, 50, 40), margin=0).apply(picture)
    np.testing.assert_array_equal(crop, picture[20:40, 10:50])
    crop = Rectification.of(box(10, 20, 50, 40), margin=0.1).apply(picture)
    np.testing.assert_array_equal(crop, picture[18:42, 8:52])


@pytest.mark.parametrize("degrees", [-30, 10, 45])
def test_a_turned_sign_comes_out_straight(degrees: float) -> None:
    """A gradient along the reading direction, drawn turned, is a gradient along the crop's rows again."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = np.mgrid[:200, :200] + 0.5
    along = (x - 100) * c + (y - 100) * s
    picture = (128 + along).clip(0, 255).round().astype(np.uint8)
    corners = np.array([[-60, -10], [60, -10], [60, 10], [-60, 10]]) @ np.array([[c, s], [-s, c]]) + 100
    crop = Rectification.of(corners, margin=0).apply(picture).astype(float)
    assert crop.shape == (20, 120)
    np.testing.assert_allclose(crop, np.broadcast_to(128 - 60 + 0.5 + np.arange(120), (20, 120)), atol=1)


def test_perspective_and_back() -> None:
    quad = np.float32([[10, 10], [110, 30], [104, 70], [14, 44]])
    view = Rectification.of(quad, margin=0.2, height=32)
    height, width = view.size_hw
    assert height == round(32 * 1.4)
    pad = 0.2 * 32
    inner = np.array([[pad, pad], [width - pad, pad], [width - pad, height - pad], [pad, height - pad]])
    np.testing.assert_allclose(view.to_picture(inner), quad, atol=0.6)


def test_crops_of_strange_quads_have_pixels_and_an_end() -> None:
    picture = np.zeros((50, 50, 3), np.uint8)
    for quad in (np.full((4, 2), 10.0), box(-20, -20, -5, -5), box(0, 0, 1e5, 10), box(5, 5, 45, 5.01)):
        crop = Rectification.of(quad, height=None).apply(picture)
        assert min(crop.shape) >= 1
        assert max(crop.shape) <= 4097


def test_a_recogniser_gets_the_crops_in_reading_order() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    quads = [box(100, 10, 140, 30), box(10, 10, 60, 30), box(10, 60, 80, 90)]
    for value, quad in zip((20, 10, 30), quads, strict=True):
        (x1, y1), (x2, y2) = quad[0].astype(int), quad[2].astype(int)
        picture[y1:y2, x1:x2] = value
    regions = regions_of(quads, (100, 200))
    read = recognise_regions(picture, regions, lambda crop: str(crop[crop.shape[0] // 2, crop.shape[1] // 2, 0]))
    assert read.texts == ("10", "20", "30")
    with pytest.raises(TypeError, match="Expected recognise to return a str, got int"):
        recognise_regions(picture, regions, lambda crop: 3)  # type: ignore[arg-type, return-value]
    assert rectified_crops(picture, regions.select(np.zeros(0, int))) == []


# -- letters and plates ----------------------------------------------------------------------------------------------


@pytest.fixture
def caption() -> tuple[np.ndarray, TextRegions, np.ndarray, np.ndarray]:
    """Orange letters with soft edges on a blue ramp: picture, its region, ink logits, and the ground alone."""
    ground = np.zeros((80, 200, 3), np.float32)
    ground[..., 2] = np.linspace(90, 130, 200)[None]
    sharp = np.zeros((80, 200), np.uint8)
    cv2.putText(sharp, "Sale!", (20, 55), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 255, 5, cv2.LINE_AA)
    alpha = cv2.GaussianBlur(sharp, (0, 0), 1).astype(np.float32) / 255
    picture = alpha[..., None] * np.float32([250, 140, 20]) + (1 - alpha[..., None]) * ground
    logits = np.log((alpha + 1e-4) / (1 - alpha + 1e-4))
    regions = regions_of([box(15, 18, 145, 60)], (80, 200))
    return picture.round().astype(np.uint8), regions, logits, ground.round().astype(np.uint8)


def test_letters_and_plate_are_the_picture_again(caption: Any) -> None:
    picture, regions, logits, ground = caption
    mask = plate_mask(regions, logits)
    assert (mask | (soft_alpha(logits) < 0.05)).all()
    assert mask.mean() < 0.5
    plate = clean_plate(picture, mask)
    assert np.abs(plate.astype(int) - ground)[mask].mean() < 3
    np.testing.assert_array_equal(plate[~mask], picture[~mask])
    (cutout,) = glyph_cutouts(picture, regions, logits, plate)
    again = Image.fromarray(plate).convert("RGBA")
    again.alpha_composite(Image.fromarray(cutout.rgba), (cutout.left, cutout.top))
    assert np.abs(np.asarray(again)[..., :3].astype(int) - picture).mean() < 1
    half = (cutout.rgba[..., 3] > 100) & (cutout.rgba[..., 3] < 160)  # the ink's own colour at its soft edges, too
    assert half.any()
    np.testing.assert_allclose(cutout.rgba[half][:, :3].mean(0), [250, 140, 20], atol=8)


def test_without_ink_the_whole_quads_go(caption: Any) -> None:
    _, regions, _, _ = caption
    mask = plate_mask(regions, None)
    assert mask[12:66, 9:151].all()  # 42 px high: a halo of 6 px
    assert mask.sum() == 54 * 142


def test_alpha_by_hand() -> None:
    alpha = soft_alpha(np.array([[0.0, -10.0, math.log(3), -3.0]]))
    np.testing.assert_allclose(alpha, [[0.5, 0.0, 0.75, 0.0]], atol=1e-6)


# -- files -----------------------------------------------------------------------------------------------------------


def test_icdar_is_read_back(tmp_path: Path) -> None:
    quads = np.stack([box(10.4, 20.6, 50, 40), box(-3, 0, 5, 9)])
    assert icdar_lines(quads, ["Hello, world", "두\n줄"]) == (
        "10,21,50,21,50,40,10,40,Hello, world\n-3,0,5,0,5,9,-3,9,두 줄\n"
    )
    write_icdar(tmp_path / "a.txt", quads, ["Hello, world", "두\n줄"])
    found, texts = read_icdar(tmp_path / "a.txt")
    np.testing.assert_array_equal(found, np.round(quads))
    assert texts == ["Hello, world", "두 줄"]
    write_icdar(tmp_path / "b.txt", quads)
    assert read_icdar(tmp_path / "b.txt")[1] == [None, None]
    write_icdar(tmp_path / "none.txt", np.zeros((0, 4, 2)))
    assert read_icdar(tmp_path / "none.txt")[0].shape == (0, 4, 2)


@pytest.mark.parametrize("line", ["1,2,3,4", "a,b,c,d,e,f,g,h,text", "1 2 3 4 5 6 7 8"])
def test_icdar_names_a_bad_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("\ufeff1,2,3,4,5,6,7,8,fine\n\n" + line)
    with pytest.raises(ValueError, match=r"bad\.txt, line 3: expected x1,y1"):
        read_icdar(path)


def test_coco_is_read_back_as_a_data_set(tmp_path: Path) -> None:
    regions = regions_of([box(10, 20, 50, 40), box(60, 20, 90, 40)], (60, 100)).with_texts(["red", "###"])
    Image.new("RGB", (100, 60)).save(tmp_path / "a.png")
    pictures = [{"file_name": "a.png", "width": 100, "height": 60, "regions": region_rows(regions)}]
    (tmp_path / "regions.json").write_text(json.dumps(coco_of_regions(pictures)))
    dataset = load_text_dataset(tmp_path / "regions.json")
    assert dataset.coco.problems == []
    truth = dataset.truth(dataset.coco.images[0])
    assert truth.word_texts == ["red"]
    np.testing.assert_array_equal(truth.words[0], box(10, 20, 50, 40))
    (red, unread) = json.loads((tmp_path / "regions.json").read_text())["annotations"]
    assert (red["bbox"], red["area"], red["order"], red["score"]) == ([10, 20, 40, 20], 800, 0, 0.9)
    assert unread["text"] == "###"


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_writes_everything_and_goes_on_where_it_stopped(tmp_path: Path, caption: Any) -> None:
    picture, regions, logits, _ = caption
    paths = [tmp_path / "one.png", tmp_path / "broken.png"]
    Image.fromarray(picture).save(paths[0])
    paths[1].write_bytes(b"no picture")
    out, calls, told = tmp_path / "out", [], []

    def read(image: np.ndarray) -> tuple[TextRegions, np.ndarray]:
        calls.append(image.shape)
        return regions, logits

    options: dict[str, Any] = {"settings": {"level": "word"}, "recognise": lambda crop: f"{crop.shape[1]} wide"}
    summary = run_crops(paths, out, read, plate=True, on_picture=lambda p, o: told.append((p.name, o)), **options)
    assert told == [("one.png", "done"), ("broken.png", "failed")]
    assert list(summary.failures) == [paths[1]]
    row = summary.records[0]["regions"][0]
    assert row["text"] == "138 wide"  # 130 px and a tenth of 42 px on both sides
    with Image.open(out / row["crop"]) as crop:
        assert crop.size == (138, 50)
    with Image.open(out / row["glyphs"]) as glyphs:
        assert glyphs.mode == "RGBA"
        assert glyphs.size == (142, 54)
    assert row["glyphs_left_top"] == [9, 12]
    mask = np.asarray(Image.open(out / "plate_masks" / "one.png")) > 0
    np.testing.assert_array_equal(mask, plate_mask(regions, logits))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "plates" / "one.png")), clean_plate(picture, mask))
    assert read_icdar(out / "icdar" / "one.txt")[1] == ["138 wide"]
    assert json.loads((out / "annotations.json").read_text())["annotations"][0]["text"] == "138 wide"

    again = run_crops(paths, out, read, plate=True, **options)
    assert (again.skipped, len(calls), again.records) == (1, 1, summary.records)
    run_crops(paths[:1], out, read, plate=True, **{**options, "settings": {"level": "text line"}})
    assert len(calls) == 2


def test_where_nothing_can_be_done_what_was_done_stays(tmp_path: Path, caption: Any) -> None:
    picture, regions, logits, _ = caption
    Image.fromarray(picture).save(tmp_path / "one.png")
    out = tmp_path / "out"

    def fail(image: np.ndarray) -> Any:
        raise RuntimeError("out of memory")

    run_crops([tmp_path / "one.png"], out, lambda image: (regions, logits), settings={})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run_crops([tmp_path / "one.png"], out, fail, settings={"level": "word"}).failures
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_files_of_other_options_do_not_stay_beside_those_of_a_run(tmp_path: Path, caption: Any) -> None:
    picture, regions, logits, _ = caption
    Image.fromarray(picture).save(tmp_path / "one.png")
    out, mine = tmp_path / "out", tmp_path / "out" / "plates" / "one.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("of no run")
    run_crops([tmp_path / "one.png"], out, lambda image: (regions, None), settings={})
    assert mine.read_text() == "of no run"
    run_crops([tmp_path / "one.png"], out, lambda image: (regions, logits), settings={}, plate=True, overwrite=True)
    assert (out / "glyphs" / "one").is_dir()
    run_crops([tmp_path / "one.png"], out, lambda image: (regions, None), settings={})
    assert not mine.exists()
    assert not (out / "glyphs" / "one").exists()


def test_a_picture_whose_files_are_gone_is_done_again(tmp_path: Path, caption: Any) -> None:
    picture, regions, logits, _ = caption
    Image.fromarray(picture).save(tmp_path / "one.png")
    out = tmp_path / "out"

    def run() -> int:
        return run_crops([tmp_path / "one.png"], out, lambda image: (regions, logits), settings={}, plate=True).skipped

    assert (run(), run()) == (0, 1)
    for name in ("crops/one/000.png", "glyphs/one/000.png", "plate_masks/one.png", "plates/one.png", "icdar/one.txt"):
        (out / name).unlink()
        assert (run(), run()) == (0, 1), name


@pytest.mark.parametrize("name", ["annotations.json", "crops/one/mine", "glyphs/one/mine", "icdar/one.txt"])
def test_what_is_of_no_run_is_not_replaced(tmp_path: Path, caption: Any, name: str) -> None:
    picture, regions, logits, _ = caption
    Image.fromarray(picture).save(tmp_path / "one.png")
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    arguments = [[tmp_path / "one.png"], tmp_path / "out", lambda image: (regions, logits)]
    with pytest.raises(FileExistsError, match="exists, and no record says that a run wrote it"):
        run_crops(*arguments, settings={})
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mine]
    assert len(run_crops(*arguments, settings={}, overwrite=True).records) == 1


def test_what_is_of_no_run_is_not_replaced_by_a_later_run(tmp_path: Path, caption: Any) -> None:
    picture, regions, logits, _ = caption
    for name in ("one.png", "two.png"):
        Image.fromarray(picture).save(tmp_path / name)
    out = tmp_path / "out"

    def run(*names: str, **options: Any) -> Any:
        return run_crops([tmp_path / name for name in names], out, lambda image: (regions, logits), **options)

    run("one.png", settings={})
    mine = [out / "plates" / "one.png", out / "crops" / "two" / "mine"]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("painted by hand")
    run("one.png", settings={"level": "word"})  # no plate asked for: that of somebody else stays
    for names, options in ((["one.png"], {"plate": True}), (["one.png", "two.png"], {})):
        with pytest.raises(FileExistsError, match="exists, and no record says that a run wrote it"):
            run(*names, settings={}, **options)
    assert [path.read_text() for path in mine] == ["painted by hand"] * 2
    assert len(run("one.png", "two.png", settings={}, plate=True, overwrite=True).records) == 2


@pytest.mark.parametrize("place", ["crops", "plate_masks", "plates", "glyphs", "icdar", "records"])
def test_an_interrupted_picture_is_done_by_the_next_run(
    tmp_path: Path, caption: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    picture, regions, logits, _ = caption
    Image.fromarray(picture).save(tmp_path / "one.png")
    out = tmp_path / "out"
    names = {"crops": "_write_pictures", "glyphs": "_write_pictures", "icdar": "write_icdar", "records": "write_json"}
    name = names.get(place, "write_png")
    write = getattr(text_runs, name)

    def interrupted(path: Path, *rest: Any) -> None:
        if place in path.parts and (place != "records" or "record" in rest[0]):
            raise KeyboardInterrupt
        write(path, *rest)

    def run() -> Any:
        return run_crops([tmp_path / "one.png"], out, lambda image: (regions, logits), settings={}, plate=True)

    with monkeypatch.context() as patched:
        patched.setattr(text_runs, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (run().skipped, run().skipped) == (0, 1)


def test_names_of_crops_sort_in_reading_order(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    regions = regions_of([box(x, y, x + 1, y + 1) for y in range(0, 64, 2) for x in range(0, 64, 2)], (64, 64))
    (record,) = run_crops([tmp_path / "one.png"], tmp_path / "out", lambda _: (regions, None), settings={}).records
    files = [row["crop"] for row in record["regions"]]
    assert files == sorted(files)
    assert (files[0], files[-1]) == ("crops/one/0000.png", "crops/one/1023.png")


def test_a_model_without_ink_writes_no_glyphs(tmp_path: Path, caption: Any) -> None:
    picture, regions, _, _ = caption
    Image.fromarray(picture).save(tmp_path / "one.png")
    summary = run_crops([tmp_path / "one.png"], tmp_path / "out", lambda image: (regions, None), settings={})
    assert "glyphs" not in summary.records[0]["regions"][0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "annotations.json", "crops", "icdar", "plate_masks", "records",
    ]  # fmt: skip


# -- through the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def text_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A saved random model that says it reads text; every word is known to it."""
    import shutil

    from textsam.language.small_clip import SmallTextEncoder
    from textsam.language.vocabulary import Vocabulary

    folder = tmp_path / "reader"
    shutil.copytree(tiny_folder, folder)
    model = mobile_miniature(seed=3)
    levels = ["word", "text line", "text stroke"]
    model.config.text_regions = {"levels": levels, "tile": 128, "shrink": {"word": 0.25}, "presence_threshold": 0.0}
    model.save_pretrained(folder)
    words = SmallTextEncoder(Vocabulary([*levels, "cat"]), num_buckets=64, width=16, mlp_dim=16, embed_dim=48)
    words.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture
def run(text_folder: Path) -> Callable[..., Result]:
    def invoke(command: str, *arguments: object) -> Result:
        words = [command, *map(str, arguments), "--model", str(text_folder), "--device", "cpu"]
        return CliRunner().invoke(app, words)

    return invoke


@pytest.fixture
def photo(in_tmp: Path, cat_photo: np.ndarray) -> Path:
    path = in_tmp / "cat.png"
    Image.fromarray(cat_photo[:160, :220]).save(path)
    return path


def test_crops_command(run: Callable, photo: Path, text_folder: Path) -> None:
    result = run("crops", photo, "--level", "word", "--threshold", 0, "--plate", "--out", "result")
    assert result.exit_code == 0, result.output
    record = json.loads(Path("result/records/cat.json").read_text())["record"]
    expected = read_text_regions(textsam.load(text_folder, device="cpu"), photo, "word", threshold=0.0)
    assert len(record["regions"]) == len(expected) > 0
    np.testing.assert_allclose([row["quad"] for row in record["regions"]], expected.data["quad"], atol=0.006)
    assert (
        len(list(Path("result/crops/cat").iterdir())) == len(list(Path("result/glyphs/cat").iterdir())) == len(expected)
    )
    assert f"{len(expected)} word" in result.output
    assert (
        "1 done before" in run("crops", photo, "--level", "word", "--threshold", 0, "--plate", "--out", "result").output
    )


@pytest.mark.parametrize("text", ["text stroke", "Text stroke", "a text-stroke"])
def test_segment_command_asks_for_a_level(run: Callable, photo: Path, text_folder: Path, text: str) -> None:
    result = run("segment", photo, "--text", text, "--threshold", 0)
    assert result.exit_code == 0, result.output
    document = json.loads(Path("out/annotations.json").read_text())
    expected = textsam.load(text_folder, device="cpu").predict(photo, text="text stroke", threshold=0.0)
    assert len(document["annotations"]) == len(expected) > 0
    assert document["categories"] == [{"id": 1, "name": text}]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("word\ncat\n", "ask for them one after the other"),
        ("word\n!cat\n", "Expected no negative_text with levels of written text, got 'cat'"),
        ("words = text block\n", "not 'text block'"),
    ],
)
def test_classes_that_a_reader_cannot_be_asked_for(text_folder: Path, in_tmp: Path, classes: str, message: str) -> None:
    """Found before the first picture, not once for each."""
    with pytest.raises(ValueError, match=message):
        Labeller(LabelSettings(tuple(classes.splitlines()), model=str(text_folder), device="cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["crops", "nowhere.png"], "no file or folder"),
        (["crops", "cat.png", "--level", "letter"], "--level"),
        (["crops", "cat.png", "--level", "text block"], "not 'text block'"),
        (["segment", "cat.png", "--text", "word,cat"], "ask for them one after the other"),
    ],
)
def test_bad_commands(run: Callable, photo: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.replace("│", " ").split())


def test_crops_read_with_the_model_for_written_text(photo: Path) -> None:
    result = CliRunner().invoke(app, ["crops", str(photo), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "textsam-tiny-ocr" in Path("crops/records/cat.json").read_text()
    assert "[default: textsam-tiny-ocr]" in " ".join(CliRunner().invoke(app, ["crops", "-h"]).output.split())


def test_two_pictures_of_one_name_do_not_replace_each_other(run: Callable, photo: Path) -> None:
    assert run("crops", photo, "--level", "word").exit_code == 0
    before = Path("crops/records/cat.json").read_bytes()
    Image.open(photo).convert("RGB").save("cat.jpg")
    result = run("crops", "cat.jpg", "--level", "word")
    assert result.exit_code == 1
    assert "cat.png, another picture: give another --out, or --overwrite." in result.stderr
    assert Path("crops/records/cat.json").read_bytes() == before
    assert run("crops", "cat.jpg", "--level", "word", "--overwrite").exit_code == 0


def test_crops_with_a_model_that_does_not_read(photo: Path, tiny_folder: Path) -> None:
    result = CliRunner().invoke(app, ["crops", str(photo), "--model", str(tiny_folder)])
    assert result.exit_code == 1
    assert "was not trained to find written text" in " ".join(result.output.split())
    plain = TextSam(mobile_miniature(), HashedWords())
    with pytest.raises(ValueError, match="trained to find written text"):
        read_text_regions(plain, photo)


def test_read_text_regions_with_a_recogniser(text_folder: Path, photo: Path) -> None:
    sam = textsam.load(text_folder, device="cpu")
    sam.text_reader.options = TextReadingOptions(zoom=1.0, presence_threshold=0.0, word_score=0.0, stroke_score=0.0)
    told: list[tuple[int, int]] = []
    found = read_text_regions(
        sam,
        photo,
        "word",
        recognise=lambda crop: "x" * crop.ndim,
        on_tile=lambda done, total: told.append((done, total)),
    )
    assert found.data["text"].tolist() == ["xxx"] * len(found)
    assert told[-1][0] == told[-1][1]


def test_the_example_hands_crops_to_a_recogniser(text_folder: Path, photo: Path, capsys: Any) -> None:
    example = Path(__file__).parent.parent / "app" / "examples" / "recognise_text.py"
    script = runpy.run_path(str(example))
    assert script["main"]([str(photo), "--model", str(text_folder), "--level", "word", "--out", "read"]) == 0
    rows = json.loads(Path("read/records/cat.json").read_text())["record"]["regions"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    assert all(isinstance(row["text"], str) and row["text"] for row in rows)
