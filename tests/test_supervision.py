"""supervision's slicer, compact masks and data sets with what TextSam finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from miniatures import HashedWords, mobile_miniature
from PIL import Image

from textsam.files.dataset_export import write_dataset
from textsam.files.export import draw_overlay, image_record
from textsam.predictor import TextSam


@pytest.fixture(scope="module")
def sam() -> TextSam:
    return TextSam(mobile_miniature(), HashedWords())


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (120, 200, 3), dtype=np.uint8)


def slice_up(sam: TextSam, picture: np.ndarray, **options) -> sv.Detections:
    def callback(tile: np.ndarray) -> sv.Detections:
        return sam.predict(tile, text=["cat", "dog"], threshold=0.0)

    return sv.InferenceSlicer(callback, slice_wh=80, overlap_wh=20, overlap_filter="none", **options)(picture)


def test_slices_are_predictions_moved_to_their_place(sam: TextSam, picture: np.ndarray) -> None:
    found = slice_up(sam, picture)
    first = sam.predict(picture[:80, :80], text=["cat", "dog"], threshold=0.0)
    assert len(found) > len(first) > 0
    assert set(first.data["class_name"]) <= set(found.data["class_name"]) <= {"cat", "dog"}
    np.testing.assert_array_equal(found.mask[: len(first), :80, :80], first.mask)
    assert not found.mask[: len(first), 80:].any()
    assert found.mask.shape[1:] == picture.shape[:2]
    for name in ("predicted_iou", "stability_score", "presence"):
        assert len(found.data[name]) == len(found)


def test_threads_and_compact_masks_change_nothing(sam: TextSam, picture: np.ndarray, tmp_path: Path) -> None:
    dense = slice_up(sam, picture)
    compact = slice_up(sam, picture, compact_masks=True, thread_workers=2)
    assert isinstance(compact.mask, sv.CompactMask)
    np.testing.assert_array_equal(compact.mask.to_dense(), dense.mask)
    np.testing.assert_array_equal(compact.confidence, dense.confidence)
    np.testing.assert_array_equal(draw_overlay(picture, compact), draw_overlay(picture, dense))
    record = image_record("picture.png", picture, compact)
    assert record == image_record("picture.png", picture, dense)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    folder = write_dataset(tmp_path / "set", "coco", [(tmp_path / "picture.png", "picture", record)], ["cat", "dog"])
    read = sv.DetectionDataset.from_coco(str(folder / "images"), str(folder / "annotations.json"))
    ((_, _, annotation),) = list(read)
    np.testing.assert_array_equal(annotation.mask, dense.mask)
    assert [read.classes[i] for i in annotation.class_id] == list(dense.data["class_name"])


def test_slices_without_a_find(sam: TextSam, picture: np.ndarray) -> None:
    found = sv.InferenceSlicer(lambda tile: sam.predict(tile, text="cat", threshold=1.0), slice_wh=100, overlap_wh=0)(
        picture
    )
    assert len(found) == 0


def test_boxes_of_a_detector_keep_order_names_and_numbers(sam: TextSam, picture: np.ndarray) -> None:
    boxes = np.array([[5, 5, 60, 70], [90, 20, 190, 110]], np.float32)
    names = {"class_name": np.array(["bus", "car"])}
    detector = sv.Detections(xyxy=boxes, class_id=np.array([5, 2]), confidence=np.array([0.8, 0.9]), data=names)
    found = sam.predict(picture, boxes=detector)
    assert list(found.data["class_name"]) == ["bus", "car"]
    assert found.class_id.tolist() == [5, 2]
    np.testing.assert_array_equal(found.mask, sam.predict(picture, boxes=boxes).mask)


def test_what_words_clicks_and_boxes_find_is_merged(sam: TextSam, picture: np.ndarray) -> None:
    """One picture, asked in three ways; what was not compared with a word is written without its scores."""
    sam.set_image(picture)
    asked = [
        sam.predict(text="cat", threshold=0.0),
        sam.predict(points=[[50, 60]]),
        sam.predict(text="dog", boxes=[[10, 10, 90, 80]]),
        sam.predict(text="dog", threshold=1.0),  # nothing
    ]
    merged = sv.Detections.merge(asked)
    assert len(merged) == sum(map(len, asked)) > 2
    known = merged.data["class_name"] != "object"
    assert np.isfinite(merged.data["presence"]).tolist() == known.tolist()
    record = image_record("picture.png", picture, merged)
    assert ["presence" in annotation for annotation in record.annotations] == known.tolist()
