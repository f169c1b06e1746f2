"""Boxes, stability, suppression and the result type."""

import numpy as np
import pytest
import supervision as sv
import torch

from textsam.prompting.detections import (
    best_of_group,
    boxes_of_masks,
    confidence_score,
    mask_nms,
    mask_overlaps,
    stability_scores,
    to_detections,
    to_numpy,
)


def rectangle(x1: int, y1: int, x2: int, y2: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_stability_is_the_iou_of_two_thresholds():
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[2.0, 2.0, 2.0, -2.0]], [[-2.0, -2.0, -2.0, -2.0]]])
    torch.testing.assert_close(stability_scores(logits), torch.tensor([1 / 3, 1.0, 0.0]))
    assert stability_scores(torch.zeros(0, 4, 4)).shape == (0,)
    assert stability_scores(torch.zeros(2, 3, 4, 4)).shape == (2, 3)


def test_boxes_are_supervisions():
    masks = np.stack([rectangle(3, 4, 10, 12), rectangle(0, 0, 20, 20), rectangle(7, 8, 8, 9)])
    np.testing.assert_array_equal(boxes_of_masks(masks), sv.mask_to_xyxy(masks))
    np.testing.assert_array_equal(boxes_of_masks(masks)[0], [3, 4, 9, 11])


def test_box_of_an_empty_mask_is_zeros():
    boxes = boxes_of_masks(np.stack([rectangle(0, 0, 0, 0), rectangle(3, 4, 10, 12)]))
    np.testing.assert_array_equal(boxes, [[0, 0, 0, 0], [3, 4, 9, 11]])
    assert boxes_of_masks(np.zeros((0, 5, 6), dtype=bool)).shape == (0, 4)


def test_overlaps_by_hand():
    masks = torch.from_numpy(np.stack([rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10), rectangle(0, 0, 0, 0)]))
    iou, containment = mask_overlaps(masks)
    torch.testing.assert_close(iou[0, 1], torch.tensor(50 / 150))
    torch.testing.assert_close(containment[0, 1], torch.tensor(0.5))
    assert iou[2].sum() == 0
    assert containment[2].sum() == 0


@pytest.mark.parametrize(
    ("iou", "containment", "classes", "expected"),
    [
        (0.5, 1.0, None, [1, 2, 3]),  # 0 repeats 1
        (0.99, 1.0, None, [1, 0, 2, 3]),  # nothing repeats
        (0.5, 0.8, None, [1, 3]),  # 2 lies inside 1 as well
        (0.5, 0.8, [0, 1, 1, 1], [1, 0, 3]),  # but 0 is of another class than 1
    ],
)
def test_mask_nms(iou, containment, classes, expected):
    masks = np.stack(
        [rectangle(0, 0, 10, 9), rectangle(0, 0, 10, 10), rectangle(1, 1, 4, 4), rectangle(12, 12, 18, 18)]
    )
    kept = mask_nms(
        torch.from_numpy(masks),
        torch.tensor([0.8, 0.9, 0.7, 0.1]),
        iou,
        containment,
        None if classes is None else torch.tensor(classes),
    )
    assert kept.tolist() == expected


def test_mask_nms_agrees_with_supervision():
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 12, (40, 2))
    masks = np.stack([rectangle(x, y, x + 8, y + 8) for x, y in corners])
    scores = generator.permutation(40) / 40
    predictions = np.concatenate([sv.mask_to_xyxy(masks), scores[:, None]], axis=1)
    expected = sv.mask_non_max_suppression(predictions, masks, iou_threshold=0.4, mask_dimension=20)
    kept = mask_nms(torch.from_numpy(masks), torch.from_numpy(scores), 0.4)
    assert sorted(kept.tolist()) == np.flatnonzero(expected).tolist()
    assert 1 < len(kept) < 40


def test_mask_nms_of_nothing():
    assert mask_nms(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0), 0.5).tolist() == []


def test_best_of_group():
    best = best_of_group(np.array([0.2, 0.9, 0.5], np.float32), np.array([3, 0, 3]))
    assert best.tolist() == pytest.approx([0.5, 0.9, 0.5])
    assert best_of_group(np.zeros(0, np.float32), np.zeros(0, np.int64)).shape == (0,)


def test_confidence_stays_between_zero_and_one():
    predicted = torch.tensor([-0.5, 0.5, 1.5])
    torch.testing.assert_close(confidence_score(predicted), torch.tensor([0.0, 0.5, 1.0]))
    both = confidence_score(predicted, torch.full((3,), 0.5), torch.full((3,), 0.5))
    torch.testing.assert_close(both, torch.tensor([0.0, 0.5, 0.25 ** (1 / 3)]))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_detections_keep_axes_and_keys(count):
    masks = np.stack([rectangle(i, 0, 10, 10) for i in range(3)])[:count]
    detections = to_detections(
        masks,
        confidence=np.linspace(0, 1, 3)[:count],
        class_names=["cat", "dog", "eel"][:count],
        data={"predicted_iou": np.ones(count)},
    )
    assert isinstance(detections, sv.Detections)
    assert (detections.xyxy.shape, detections.xyxy.dtype) == ((count, 4), np.float32)
    assert (detections.mask.shape, detections.mask.dtype) == ((count, 20, 20), bool)
    assert (detections.confidence.shape, detections.confidence.dtype) == ((count,), np.float32)
    assert (detections.class_id.shape, detections.class_id.dtype) == ((count,), np.int64)
    assert detections.data["class_name"].shape == (count,)
    assert detections.data["class_name"].dtype.kind == "U"
    assert detections.data["predicted_iou"].shape == (count,)


def test_detections_refuse_another_count():
    with pytest.raises(ValueError, match="Expected 1 values of predicted_iou, one for each mask, got 2"):
        to_detections(rectangle(0, 0, 4, 4)[None], confidence=np.ones(1), data={"predicted_iou": np.ones(2)})


def test_bfloat16_becomes_float32():
    assert to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert to_numpy(torch.ones(2, dtype=torch.int64)).dtype == np.int64
