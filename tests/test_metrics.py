"""Every measure against values worked out by hand, or against another implementation."""

import numpy as np
import pytest

from textsam.evaluation.metrics import (
    auroc,
    coco_average_precision,
    count_matches,
    ellipses_in_boxes,
    expected_calibration_error,
    filled_boxes,
    intersection_and_union,
    mask_iou,
    mean,
    semantic_scores,
    tight_boxes,
)
from textsam.files.rle import encode_mask


def rectangle(x0: int, y0: int, x1: int, y1: int, size: int = 10) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_mask_iou_by_hand() -> None:
    targets = np.stack([rectangle(0, 0, 4, 4), rectangle(0, 0, 4, 4), rectangle(0, 0, 2, 2), rectangle(0, 0, 0, 0)])
    masks = np.stack([rectangle(0, 0, 4, 4), rectangle(2, 0, 6, 4), rectangle(5, 5, 8, 8), rectangle(0, 0, 0, 0)])
    np.testing.assert_allclose(mask_iou(masks, targets), [1.0, 8 / 24, 0.0, 1.0])


def test_mask_iou_leaves_ignored_pixels_out() -> None:
    target, mask = rectangle(0, 0, 4, 4)[None], rectangle(0, 0, 6, 4)[None]
    np.testing.assert_allclose(mask_iou(mask, target), [16 / 24])
    np.testing.assert_allclose(mask_iou(mask, target, rectangle(5, 0, 10, 10)), [16 / 20])
    intersection, union = intersection_and_union(mask, target, rectangle(0, 0, 1, 10))
    assert (intersection.tolist(), union.tolist()) == ([12], [20])


def test_mask_iou_keeps_its_axis() -> None:
    assert mask_iou(np.zeros((0, 3, 3), bool), np.zeros((0, 3, 3), bool)).shape == (0,)
    assert mask_iou(np.ones((1, 3, 3), bool), np.ones((1, 3, 3), bool)).shape == (1,)


@pytest.mark.parametrize(
    ("masks", "targets", "ignore", "message"),
    [
        (np.zeros((1, 3, 3), bool), np.zeros((2, 3, 3), bool), None, r"\(1, 3, 3\) and \(2, 3, 3\)"),
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool), None, r"\(N, H, W\)"),
        (np.zeros((1, 3, 3), np.uint8), np.zeros((1, 3, 3), bool), None, "uint8"),
        (np.zeros((1, 3, 3), bool), np.zeros((1, 3, 3), bool), np.zeros((4, 3), bool), r"\(4, 3\)"),
    ],
)
def test_mask_iou_names_what_is_wrong(
    masks: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mask_iou(masks, targets, ignore)


def test_tight_boxes_and_filled_boxes_are_inverse_for_rectangles() -> None:
    masks = np.stack([rectangle(2, 3, 7, 9), rectangle(0, 0, 1, 1), rectangle(0, 0, 10, 10)])
    boxes = tight_boxes(masks)
    assert boxes.tolist() == [[2, 3, 7, 9], [0, 0, 1, 1], [0, 0, 10, 10]]
    assert (filled_boxes(boxes, 10, 10) == masks).all()
    assert tight_boxes(np.zeros((1, 4, 4), bool)).tolist() == [[0, 0, 0, 0]]


def test_ellipse_in_box_has_the_area_of_an_ellipse() -> None:
    ellipse = ellipses_in_boxes(np.array([[10.0, 20.0, 190.0, 120.0]]), 150, 200)[0]
    assert ellipse.sum() == pytest.approx(np.pi * 90 * 50, rel=5e-3)
    assert tight_boxes(ellipse[None]).tolist() == [[10, 20, 190, 120]]
    assert (ellipse[:, 10:190] == ellipse[:, 10:190][:, ::-1]).all()


def test_auroc_by_hand() -> None:
    assert auroc([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert auroc([0.1], [0.9]) == 0.0
    assert auroc([0.5, 0.5], [0.5]) == 0.5
    # 0.8 beats both; 0.4 beats 0.3, ties with nothing, loses to 0.6: 3 of 4 pairs
    assert auroc([0.8, 0.4], [0.3, 0.6]) == 0.75
    assert auroc([], [0.1]) is None
    assert auroc([0.1], []) is None


def test_auroc_equals_the_count_of_ordered_pairs() -> None:
    generator = np.random.default_rng(0)
    positives = generator.integers(0, 20, 57) / 20  # with many ties
    negatives = generator.integers(0, 20, 83) / 25
    pairs = np.sign(positives[:, None] - negatives[None]) / 2 + 0.5
    assert auroc(positives, negatives) == pytest.approx(pairs.mean(), abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # bin 0.9-1.0: mean confidence 0.95, half right -> 0.45, 2 of 4; bin 0.2-0.3: 0.25, none right -> 0.25, 2 of 4
    assert expected_calibration_error([0.95, 0.95, 0.25, 0.25], [1, 0, 0, 0]) == pytest.approx(0.35)
    assert expected_calibration_error([1.0, 0.0], [1, 0]) == 0.0
    assert expected_calibration_error([], []) is None
    with pytest.raises(ValueError, match="must match"):
        expected_calibration_error([0.5], [])


def test_calibrated_confidences_have_a_small_error() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.random(20000)
    right = generator.random(20000) < confidences
    calibrated = expected_calibration_error(confidences, right)
    overconfident = expected_calibration_error(np.sqrt(confidences), right)
    assert calibrated is not None
    assert calibrated < 0.02
    assert overconfident == pytest.approx(2 / 3 - 1 / 2, abs=0.02)


def test_semantic_scores_by_hand() -> None:
    scores = semantic_scores(["cat", "cat", "dog"], [10, 0, 5], [10, 10, 20])
    assert scores["miou_pairs"] == pytest.approx((1 + 0 + 0.25) / 3)
    assert scores["miou_classes"] == pytest.approx((0.5 + 0.25) / 2)
    assert scores["iou_dataset"] == pytest.approx((10 / 20 + 5 / 20) / 2)
    assert scores["per_class"] == {"cat": (0.5, 2), "dog": (0.25, 1)}
    assert semantic_scores([], [], [])["miou_pairs"] is None


def test_mean_of_nothing_is_none() -> None:
    assert mean([]) is None
    assert mean([1, 2]) == 1.5


def ground_truth(masks: list[np.ndarray], crowd: tuple[int, ...] = ()) -> dict:
    annotations = [
        {
            "id": i + 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": int(i in crowd),
            "area": int(mask.sum()),
            "segmentation": encode_mask(mask),
        }
        for i, mask in enumerate(masks)
    ]
    return {"images": [{"id": 1}], "annotations": annotations, "categories": [{"id": 1}]}


def detection(mask: np.ndarray, score: float) -> dict:
    return {"image_id": 1, "category_id": 1, "segmentation": encode_mask(mask), "score": score}


def test_average_precision_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = rectangle(0, 0, 4, 4), rectangle(6, 6, 10, 10)
    perfect = coco_average_precision(ground_truth([first, second]), [detection(first, 0.9), detection(second, 0.8)])
    assert (perfect.ap, perfect.ap50, perfect.ar100) == pytest.approx((1.0, 1.0, 1.0))

    # IoU 12/16 = 0.75 counts at 0.50 ... 0.75, that is at 6 of the 10 thresholds
    partial = coco_average_precision(ground_truth([first]), [detection(rectangle(0, 0, 3, 4), 0.9)])
    assert partial.ap == pytest.approx(0.6)
    assert (partial.ap50, partial.ap75) == pytest.approx((1.0, 1.0))

    # a wrong detection that scores higher: precision 1/2 at every recall level
    wrong = rectangle(5, 0, 9, 4)
    behind = coco_average_precision(ground_truth([first]), [detection(wrong, 0.9), detection(first, 0.8)])
    assert behind.ap50 == pytest.approx(0.5)
    assert sorted(zip(behind.confidences, behind.correct, strict=True)) == [(0.8, True), (0.9, False)]
    assert capsys.readouterr().out == ""


def test_average_precision_ignores_crowds() -> None:
    single, crowd = rectangle(0, 0, 4, 4), rectangle(5, 5, 10, 10)
    truth = ground_truth([single, crowd], crowd=(1,))
    scores = coco_average_precision(truth, [detection(single, 0.5), detection(rectangle(5, 5, 7, 7), 0.9)])
    assert scores.ap == pytest.approx(1.0)
    assert scores.confidences == [0.5]


def test_average_precision_of_nothing() -> None:
    assert coco_average_precision(ground_truth([]), []).ap is None
    assert coco_average_precision(ground_truth([rectangle(0, 0, 4, 4)]), []).ap == 0.0


def test_matches_by_hand() -> None:
    targets = np.zeros((2, 4, 8), bool)
    targets[0, :, :4], targets[1, :, 4:] = True, True

    def count(masks: np.ndarray, wanted: np.ndarray = targets) -> int:
        return count_matches([encode_mask(mask) for mask in masks], [encode_mask(mask) for mask in wanted])

    assert count(targets) == 2
    twice = np.stack([targets[0], targets[0], targets[1]])
    assert count(twice) == 2  # a repetition is none
    half, less = targets[0].copy(), targets[0].copy()
    half[:2], less[:, 1:] = False, False
    assert count(half[None]) == 1
    assert count(less[None]) == 0
    assert count(targets.any(0)[None]) == 1  # both in one: IoU 0.5 with each
    assert count(np.zeros((0, 4, 8), bool)) == count(targets, targets[:0]) == 0
    assert count(np.zeros((1, 4, 8), bool)) == 0
