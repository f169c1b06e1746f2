"""Reading COCO instances files: every form of a mask, and bad entries one by one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from textsam.files.coco import load_coco
from textsam.files.rle import decode_mask, encode_mask, run_lengths, segmentation_to_rle

HEIGHT, WIDTH = 20, 30


def box_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = encode_mask(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


POLYGON = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "segmentation": POLYGON, "iscrowd": 0} | changes


def write(folder: Path, **changes: Any) -> Path:
    """A file with one picture and one good annotation, changed as told."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [annotation(1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    } | changes
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("form", [compressed, uncompressed])
@pytest.mark.parametrize("box", [(2, 3, 12, 9), (0, 0, 30, 20), (0, 0, 1, 1), (29, 19, 30, 20), (7, 0, 8, 20)])
def test_both_kinds_of_rle_give_the_mask(form: Callable[..., dict], box: tuple[int, int, int, int]) -> None:
    mask = box_mask(*box)
    rle = segmentation_to_rle(form(mask), HEIGHT, WIDTH)
    assert (decode_mask(rle) == mask).all()


def testrun_lengths_agree_with_pycocotools_on_ragged_masks() -> None:
    generator = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        mask = generator.random((67, 301)) < share
        runs = run_lengths(encode_mask(mask)["counts"])
        assert runs.tolist() == uncompressed(mask)["counts"]


def test_polygon_is_filled() -> None:
    rle = segmentation_to_rle(POLYGON, HEIGHT, WIDTH)
    assert (decode_mask(rle) == box_mask(2, 3, 12, 9)).all()


def test_reads_instances_crowds_and_void(tmp_path: Path) -> None:
    image = {
        "id": 1,
        "file_name": "a.png",
        "height": HEIGHT,
        "width": WIDTH,
        "void_rle": compressed(box_mask(0, 0, 2, 2)),
        "crowd": [{"category_id": 2, "segmentation": compressed(box_mask(20, 0, 30, 5))}],
    }
    path = write(
        tmp_path,
        images=[image],
        annotations=[
            annotation(1),
            annotation(2, category_id=2, segmentation=compressed(box_mask(15, 5, 20, 10))),
            annotation(3, segmentation=uncompressed(box_mask(20, 10, 25, 15)), iscrowd=1),
        ],
    )
    dataset = load_coco(path)
    assert dataset.problems == []
    assert dataset.categories == {1: "cat", 2: "dog"}
    (item,) = dataset
    assert [region.id for region in item.instances] == [1, 2]
    assert item.instances[1].area == 25
    assert (item.instances[1].mask() == box_mask(15, 5, 20, 10)).all()
    void = box_mask(0, 0, 2, 2)
    assert (item.ignore_mask() == void).all()
    assert (item.ignore_mask(1) == void | box_mask(20, 10, 25, 15)).all()
    assert (item.ignore_mask(2) == void | box_mask(20, 0, 30, 5)).all()


BAD_ANNOTATIONS = {
    "other size": (annotation(9, segmentation={"size": [20, 31], "counts": [620]}), r"\[20, 31\].*\[20, 30\]"),
    "runs too short": (annotation(9, segmentation={"size": [20, 30], "counts": [10, 5]}), "sum to 15, expected 600"),
    "compressed runs too short": (annotation(9, segmentation={"size": [20, 30], "counts": "53"}), "expected 600"),
    "damaged string": (annotation(9, segmentation={"size": [20, 30], "counts": "\u00ff\u00ff"}), "damaged"),
    "unfinished string": (annotation(9, segmentation={"size": [20, 30], "counts": "zz"}), "damaged"),
    "negative run": (annotation(9, segmentation={"size": [20, 30], "counts": [-1, 601]}), "non-negative"),
    "no counts": (annotation(9, segmentation={"size": [20, 30]}), "list or a string"),
    "empty mask": (annotation(9, segmentation={"size": [20, 30], "counts": [600]}), "mask is empty"),
    "no polygon": (annotation(9, segmentation=[]), "polygon is empty"),
    "polygon of two points": (annotation(9, segmentation=[[1, 1, 5, 5]]), "at least 6 numbers, got 4"),
    "polygon of odd length": (annotation(9, segmentation=[[1, 1, 5, 5, 2, 2, 3]]), "even count"),
    "polygon of text": (annotation(9, segmentation=[["a"] * 6]), "not finite"),
    "polygon of NaN": (annotation(9, segmentation=[[float("nan")] * 6]), "not finite"),
    "polygon outside": (annotation(9, segmentation=[[50, 50, 60, 50, 60, 60]]), "mask is empty"),
    "no mask": (annotation(9, segmentation=None), "NoneType"),
    "unknown image": (annotation(9, image_id=77), "no image has the id 77"),
    "unknown category": (annotation(9, category_id=77), "no category with a name has the id 77"),
    "not an object": (9, "must be an object"),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_a_bad_annotation_is_reported_and_skipped(case: str, tmp_path: Path) -> None:
    bad, message = BAD_ANNOTATIONS[case]
    path = write(tmp_path, annotations=[annotation(1), bad, annotation(2)])
    dataset = load_coco(path, max_bad_share=0.5)
    assert [region.id for region in dataset.images[0].instances] == [1, 2]
    assert len(dataset.problems) == 1
    problem = dataset.problems[0]
    assert (problem.file, problem.where) == ("data.json", "annotation")
    assert problem.id == ("9" if isinstance(bad, dict) else "(entry 1, without a usable id)")
    assert re.search(message, problem.message), problem.message


GOOD_IMAGE = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
BAD_IMAGES = {
    "missing file": (GOOD_IMAGE | {"id": 5, "file_name": "b.png"}, "no such picture"),
    "no file name": ({"id": 5, "height": HEIGHT, "width": WIDTH}, "no file_name"),
    "same id": (GOOD_IMAGE, "used twice"),
    "no id": ({"file_name": "a.png", "height": HEIGHT, "width": WIDTH}, "missing"),
    "no size": ({"id": 5, "file_name": "a.png"}, "positive integers, got None, None"),
    "not an object": (None, "missing"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_reported_and_skipped(case: str, tmp_path: Path) -> None:
    bad, message = BAD_IMAGES[case]
    path = write(tmp_path, images=[GOOD_IMAGE, bad], annotations=[annotation(1), annotation(2, image_id=1)])
    dataset = load_coco(path, max_bad_share=0.5)
    assert [image.id for image in dataset] == [1]
    assert len(dataset.images[0].instances) == 2
    assert [problem.where for problem in dataset.problems] == ["image"]
    assert message in dataset.problems[0].message


def test_annotations_of_a_missing_image_are_reported_once(tmp_path: Path) -> None:
    missing = GOOD_IMAGE | {"id": 5, "file_name": "b.png"}
    annotations = [annotation(1), annotation(2, image_id=5), annotation(3, image_id=5)]
    dataset = load_coco(write(tmp_path, images=[GOOD_IMAGE, missing], annotations=annotations), max_bad_share=0.5)
    assert [str(problem) for problem in dataset.problems] == [
        f"data.json: image 5: no such picture: {tmp_path / 'images' / 'b.png'}"
    ]


def test_a_category_without_a_name_is_reported(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": " "}]
    path = write(tmp_path, categories=categories, annotations=[annotation(1), annotation(2, category_id=2)])
    dataset = load_coco(path, max_bad_share=0.5)
    assert [(problem.where, problem.id) for problem in dataset.problems] == [("category", "2"), ("annotation", "2")]
    assert [region.id for region in dataset.images[0].instances] == [1]


def test_a_bad_region_to_ignore_is_reported(tmp_path: Path) -> None:
    image = GOOD_IMAGE | {"void_rle": {"size": [1, 1], "counts": [1]}, "crowd": [7]}
    dataset = load_coco(write(tmp_path, images=[image]))
    assert [problem.where for problem in dataset.problems] == ["ignore region", "ignore region"]
    assert not dataset.images[0].ignore_mask().any()


def test_too_many_bad_annotations_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, annotations=[annotation(i) for i in range(8)] + [annotation(8, segmentation=[])] * 2)
    assert len(load_coco(path, max_bad_share=0.2).problems) == 2
    with pytest.raises(ValueError, match=r"2 of 10 annotations are bad \(20%, at most 10% allowed") as error:
        load_coco(path)
    assert "data.json: annotation 8: its polygon is empty" in str(error.value)


@pytest.mark.parametrize(
    ("file", "picture", "file_name"),
    [
        ("data.json", "a.png", "a.png"),
        ("data.json", "images/x/a.png", "x/a.png"),
        ("result.json", "images/a.png", "images/a.png"),
        ("result.json", "images/a.png", "images\\a.png"),
        ("annotations/instances_default.json", "images/a.png", "a.png"),
        ("annotations/instances_default.json", "images/default/a.png", "a.png"),
        ("annotations/instances_train2017.json", "train2017/a.png", "a.png"),
    ],
)
def test_pictures_are_found_where_tools_put_them(file: str, picture: str, file_name: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    data = json.loads(write(tmp_path / "made").read_text())
    data["images"][0]["file_name"] = file_name
    for name in (file, picture):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "made" / "images" / "a.png").rename(tmp_path / picture)
    (tmp_path / file).write_text(json.dumps(data), encoding="utf-8-sig")  # with the mark that Windows writes
    (image,) = load_coco(tmp_path / file)
    assert image.path == tmp_path / picture


def test_a_name_that_no_file_can_have_is_a_missing_picture(tmp_path: Path) -> None:
    images = [
        {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(["a.png", "x" * 300])
    ]
    data = load_coco(write(tmp_path, images=images, annotations=[]), max_bad_share=0.5)
    assert [image.id for image in data] == [0]
    assert "no such picture" in str(data.problems[0])


def test_a_wrong_picture_folder_says_so(tmp_path: Path) -> None:
    path = write(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(ValueError, match=r"none of its 1 images can be used; looked in .*elsewhere.*--images"):
        load_coco(path, elsewhere)
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        load_coco(path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        ("[]", "no list named images, annotations, categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list named annotations"),
        ("\u00ff", "not a JSON file"),
    ],
)
def test_a_file_that_is_no_data_set_is_an_error(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_coco(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such dataset file"):
        load_coco(tmp_path / "x.json")


def test_select_spreads_over_the_file(tmp_path: Path) -> None:
    images = [GOOD_IMAGE | {"id": i} for i in range(10)]
    dataset = load_coco(write(tmp_path, images=images))
    assert [image.id for image in dataset.select(4)] == [0, 2, 5, 7]
    assert len(dataset.select(None)) == len(dataset.select(99)) == 10
    with pytest.raises(ValueError, match="at least 1"):
        dataset.select(0)
