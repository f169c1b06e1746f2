"""Results on disk: the same masks come back from every format, and nothing is ever half-written."""

import json
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.ndimage import gaussian_filter, label

from textsam.files.atomic import folder_written_atomically, write_atomically
from textsam.files.dataset_export import write_dataset
from textsam.files.export import (
    category_list,
    coco_document,
    draw_overlay,
    image_record,
    record_to_detections,
    write_masks,
)

HEIGHT, WIDTH = 90, 120


def masks() -> np.ndarray:
    """(3, H, W): a filled square, a frame with a hole, and one pixel in the corner."""
    shapes = np.zeros((3, HEIGHT, WIDTH), bool)
    shapes[0, 10:40, 10:50] = True
    shapes[1, 45:80, 60:110] = True
    shapes[1, 55:70, 75:95] = False
    shapes[2, HEIGHT - 1, WIDTH - 1] = True
    return shapes


def detections(count: int = 3) -> sv.Detections:
    shapes = masks()[:count]
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(shapes).astype(np.float32),
        mask=shapes,
        confidence=np.array([0.9, 0.75, 0.5], np.float32)[:count],
        class_id=np.array([1, 0, 1])[:count],
        data={
            "class_name": np.array(["hot dog", "cat", "hot dog"])[:count],
            "predicted_iou": np.array([0.8, 1.1, 0.2], np.float32)[:count],
            "stability_score": np.array([1.0, 0.5, 0.25], np.float32)[:count],
        },
    )


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def test_record_has_exact_masks_boxes_and_scores(picture: np.ndarray) -> None:
    record = image_record("photo.jpg", picture, detections())
    assert (record.file_name, record.width, record.height) == ("photo.jpg", WIDTH, HEIGHT)
    first, frame, dot = record.annotations
    assert first["category_name"] == "hot dog"
    assert first["bbox"] == [10, 10, 40, 30]
    assert first["area"] == 30 * 40
    assert dot["bbox"] == [WIDTH - 1, HEIGHT - 1, 1, 1]
    assert (frame["score"], frame["predicted_iou"], frame["stability_score"]) == (0.75, pytest.approx(1.1), 0.5)
    assert "presence" not in frame
    decoded = np.stack([coco_mask.decode(a["segmentation"]) for a in record.annotations]).astype(bool)
    np.testing.assert_array_equal(decoded, masks())
    json.dumps(record.annotations)  # plain JSON types only


def test_coco_document_loads_in_pycocotools(picture: np.ndarray, tmp_path: Path) -> None:
    records = [image_record("a.jpg", picture, detections()), image_record("b.jpg", picture, detections(0))]
    names = category_list(records, asked=["zebra", "cat"])
    assert names == ["zebra", "cat", "hot dog"]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco_document(records, names)))
    coco = COCO(str(path))
    assert coco.getImgIds() == [1, 2]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == names
    assert len(coco.getAnnIds(imgIds=[1])) == 3
    assert coco.getAnnIds(imgIds=[2]) == []
    np.testing.assert_array_equal(coco.annToMask(coco.loadAnns([2])[0]).astype(bool), masks()[1])
    results = coco.loadRes(json.loads(path.read_text())["annotations"])  # also a COCO results file
    assert len(results.getAnnIds()) == 3


def test_coco_document_without_masks_without_pixels(picture: np.ndarray) -> None:
    found = detections()
    found.mask[1] = False
    records = [image_record(name, picture, found) for name in ("a.jpg", "b.jpg")]
    annotations = coco_document(records, ["cat", "hot dog"])["annotations"]
    ids = [(annotation["id"], annotation["image_id"], annotation["category_id"]) for annotation in annotations]
    assert ids == [(1, 1, 2), (2, 1, 2), (3, 2, 2), (4, 2, 2)]
    assert all(annotation["area"] > 0 for annotation in annotations)


def test_empty_and_unnamed(picture: np.ndarray) -> None:
    assert image_record("a.png", picture, sv.Detections.empty()).annotations == []
    bare = sv.Detections(xyxy=np.array([[10, 10, 49, 39]], np.float32), mask=masks()[:1])
    (annotation,) = image_record("a.png", picture, bare).annotations
    assert annotation["category_name"] == "object"
    assert "score" not in annotation


def test_boxes_without_masks_are_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no masks"):
        image_record("a.png", picture, sv.Detections(xyxy=np.array([[0, 0, 5, 5]], np.float32)))


def test_round_trip_through_detections(picture: np.ndarray) -> None:
    record = image_record("a.png", picture, detections())
    back = record_to_detections(record, ["cat", "hot dog"])
    np.testing.assert_array_equal(back.mask, masks())
    np.testing.assert_array_equal(back.class_id, [1, 0, 1])
    empty = record_to_detections(image_record("a.png", picture, detections(0)), [])
    assert empty.mask.shape == (0, HEIGHT, WIDTH)
    assert empty.xyxy.shape == (0, 4)


def test_mask_files(tmp_path: Path) -> None:
    folder = tmp_path / "masks" / "photo"
    paths = write_masks(folder, detections())
    assert [path.name for path in paths] == ["000-hot-dog.png", "001-cat.png", "002-hot-dog.png"]
    for path, mask in zip(paths, masks(), strict=True):
        with Image.open(path) as stored:
            np.testing.assert_array_equal(np.asarray(stored), mask * 255)
    assert write_masks(folder, detections(0)) == []
    assert list(folder.iterdir()) == []  # nothing of the earlier result stays


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "...", "ünï çode", "x" * 300])
def test_class_names_are_safe_in_file_names(name: str, tmp_path: Path) -> None:
    found = detections(1)
    found.data["class_name"] = np.array([name])
    (path,) = write_masks(tmp_path / "masks", found)
    assert path.parent == tmp_path / "masks"
    assert path.is_file()


def test_overlay_tints_the_objects_and_leaves_the_rest(picture: np.ndarray) -> None:
    before = picture.copy()
    overlay = draw_overlay(picture, detections(1))
    np.testing.assert_array_equal(picture, before)
    assert overlay.shape == picture.shape
    assert overlay.dtype == np.uint8
    assert (overlay[20:35, 20:45] != picture[20:35, 20:45]).any(axis=2).mean() > 0.95
    np.testing.assert_array_equal(overlay[60:, 60:], picture[60:, 60:])  # far from mask and label
    np.testing.assert_array_equal(draw_overlay(picture, detections(0)), picture)


def test_overlay_colours_are_rgb_not_bgr() -> None:
    gray = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    found = detections(1)
    tint = draw_overlay(gray, found)[35, 30].astype(int) - 128
    colour = np.array(sv.ColorPalette.DEFAULT.by_idx(0).as_rgb())
    assert np.sign(tint).tolist() == np.sign(colour - 128).tolist()


@pytest.mark.parametrize("size_hw", [(1, 1), (10, 2000), (3, 3), (70, 64)])
def test_overlay_of_odd_sizes(size_hw: tuple[int, int]) -> None:
    image = np.zeros((*size_hw, 3), np.uint8)
    whole = np.ones((1, *size_hw), bool)
    found = sv.Detections(xyxy=sv.mask_to_xyxy(whole).astype(np.float32), mask=whole, confidence=np.array([0.5]))
    assert draw_overlay(image, found).shape == image.shape


def write_pictures(folder: Path, picture: np.ndarray) -> list:
    """A plain photo, a gray one without objects, and one whose file is stored lying on its side."""
    plain, empty, turned = folder / "plain.png", folder / "empty.jpg", folder / "turned.jpg"
    Image.fromarray(picture).save(plain)
    Image.fromarray(picture[:, :, 0]).save(empty)
    exif = Image.Exif()
    exif[0x0112] = 8  # shown turned by 90 degrees counter-clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(picture, -1))).save(turned, exif=exif, quality=100, subsampling=0)
    counts = {plain: 3, empty: 0, turned: 2}
    return [(path, path.stem, image_record(path.name, picture, detections(n))) for path, n in counts.items()]


def test_coco_dataset(picture: np.ndarray, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", "coco", write_pictures(tmp_path, picture), ["cat", "hot dog"])
    loaded = sv.DetectionDataset.from_coco(str(folder / "images"), str(folder / "annotations.json"))
    assert loaded.classes == ["cat", "hot dog"]
    found = {Path(path).name: (image, annotation) for path, image, annotation in loaded}
    assert set(found) == {"plain.png", "empty.jpg", "turned.png"}
    np.testing.assert_array_equal(found["plain.png"][1].mask, masks())
    assert len(found["empty.jpg"][1]) == 0
    turned, annotation = found["turned.png"]
    assert turned.shape == picture.shape  # upright, as it was segmented
    np.testing.assert_array_equal(annotation.mask, masks()[:2])


def ragged_masks() -> np.ndarray:
    """(3, HEIGHT, WIDTH): a blob with ragged edges, a plate with two holes, and a thing in two parts."""
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((HEIGHT, WIDTH)), 5)
    labels, _ = label(noise > np.quantile(noise, 0.7), structure=np.ones((3, 3)))
    blob = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    holes = np.zeros((HEIGHT, WIDTH), dtype=bool)
    holes[10:50, 5:60] = True
    holes[15:25, 12:20] = holes[20:45, 30:50] = False
    parts = np.zeros((HEIGHT, WIDTH), dtype=bool)
    parts[2:12, 3:9] = parts[40:60, 20:50] = True
    return np.stack([blob, holes, parts])


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_polygon_datasets_are_read_back_equal(kind: str, picture: np.ndarray, tmp_path: Path) -> None:
    wanted, names = ragged_masks(), ["blob", "plate", "two parts"]
    found = sv.Detections(sv.mask_to_xyxy(wanted).astype(np.float32), wanted, class_id=np.arange(3))
    found.data["class_name"] = np.array(names)
    turned = write_pictures(tmp_path, picture)[-1][0]
    pictures = [(turned, "turned", image_record("turned.jpg", picture, found))]
    pictures += write_pictures(tmp_path, picture)[1:2]
    folder = write_dataset(tmp_path / "set", kind, pictures, names)
    images = str(folder / "images")
    if kind == "yolo":
        loaded = sv.DetectionDataset.from_yolo(images, str(folder / "labels"), str(folder / "data.yaml"), True)
    else:
        loaded = sv.DetectionDataset.from_pascal_voc(images, str(folder / "annotations"), force_masks=True)
    read = {Path(path).name: annotation for path, _, annotation in loaded}
    assert set(read) == {"empty.jpg", "turned.png"}
    assert len(read["empty.jpg"]) == 0
    annotation = read["turned.png"]
    counts = []
    for name, mask in zip(names, wanted, strict=True):
        chosen = annotation[[loaded.classes[i] == name for i in annotation.class_id]]
        np.testing.assert_array_equal(chosen.mask.any(axis=0), mask)
        counts.append(len(chosen))
    assert counts == [1, 1, 2]  # these formats have no object in several parts


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'pdf'; choose one of coco, yolo, voc"):
        write_dataset(tmp_path / "set", "pdf", [], [])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomically(path, b"old")

    def fail(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with folder_written_atomically(folder) as new:
        (new / "good").write_text("1")

    def fail() -> None:
        with folder_written_atomically(folder) as new:
            (new / "half").write_text("1")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [p.name for p in folder.iterdir()] == ["good"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_failed_last_step_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "set", Path.rename
    folder.mkdir()
    (folder / "good").write_text("1")

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="gone"), folder_written_atomically(folder):
        pass
    assert [p.name for p in folder.iterdir()] == ["good"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
