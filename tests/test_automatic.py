"""Automatic masks equal those of the released code's order: upscale everything, then score, filter and suppress."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

import textsam.prompting.automatic
from textsam.files.rle import encode_mask
from textsam.prompting import mask_scoring
from textsam.prompting.automatic import AutomaticMasks, box_nms, generate, remove_small_regions
from textsam.prompting.automatic_options import AutomaticOptions, crop_boxes
from textsam.prompting.device_scoring import encode_masks
from textsam.prompting.mask_scoring import Place, _score_on_device, score_masks
from textsam.prompting.transforms import ImageGeometry, postprocess_masks

pytestmark = pytest.mark.usefixtures("way")
SIDE = 128
MODEL = tiny_model()


def blobs(coords: Tensor) -> tuple[Tensor, Tensor]:
    """What a decoder could say to points (P, 2) in input px: logits (P, 3, 32, 32) of ragged discs, IoUs (P, 3)."""
    axis = torch.arange(SIDE // 4) + 0.5
    logits, ious = [], []
    for x, y in coords.tolist():
        generator = torch.Generator().manual_seed(round(x * 100) * 7919 + round(y * 100))
        radius, slope, noise, iou = torch.rand(4, 3, 1, 1, generator=generator)
        centre_x, centre_y = torch.tensor([x, y]) / 4 + torch.randn(2, generator=generator)
        distance = ((axis[None, :] - centre_x) ** 2 + 1.5 * (axis[:, None] - centre_y) ** 2).sqrt()
        waves = F.interpolate(torch.randn(1, 3, 8, 8, generator=generator), scale_factor=4, mode="bilinear")[0]
        logits.append((radius * 12 + 0.5 - distance) * (3 * slope + 0.3) + 4 * noise * waves)
        ious.append(iou[:, 0, 0])
    return torch.stack(logits), torch.stack(ious)


@pytest.fixture
def blob_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(model, crop, points):
        logits, iou = blobs(torch.from_numpy(crop.geometry.points_to_input(points)))
        return logits.flatten(0, 1), iou.flatten()

    monkeypatch.setattr(textsam.prompting.automatic, "_decode_points", decode)


def reference_box(mask: Tensor) -> list[int]:
    where = mask.nonzero()
    if not len(where):
        return [0, 0, 0, 0]
    (y1, x1), (y2, x2) = where.amin(0).tolist(), where.amax(0).tolist()
    return [x1, y1, x2, y2]


def reference(size_hw: tuple[int, int], options: AutomaticOptions) -> list[tuple[Tensor, list[int], float, float]]:
    """(mask, box, predicted IoU, stability) by the released order of steps, on full-size logits, without crops."""
    geometry = ImageGeometry.of(size_hw, SIDE)
    logits, iou = blobs(torch.from_numpy(geometry.points_to_input(options.grid(0) * np.array(size_hw[::-1]))))
    logits, iou = postprocess_masks(logits, geometry).flatten(0, 1), iou.flatten()
    keep = iou > options.pred_iou_thresh
    logits, iou = logits[keep], iou[keep]
    inner = (logits > options.stability_score_offset).sum((1, 2))
    outer = (logits > -options.stability_score_offset).sum((1, 2))
    stability = inner / outer
    keep = stability >= options.stability_score_thresh
    masks, iou, stability = logits[keep] > 0, iou[keep], stability[keep]
    boxes = [reference_box(mask) for mask in masks]
    kept = nms(torch.tensor(boxes).float().reshape(-1, 4), iou, options.box_nms_thresh).tolist()
    return [(masks[i], boxes[i], iou[i].item(), stability[i].item()) for i in kept]


@pytest.mark.usefixtures("blob_decoder")
@pytest.mark.parametrize("size_hw", [(128, 90), (85, 128), (100, 75), (240, 320), (61, 20), (128, 128)])
@pytest.mark.parametrize(
    "options",
    [
        AutomaticOptions(points_per_side=5, points_per_batch=7, pred_iou_thresh=0.5, stability_score_thresh=0.7),
        AutomaticOptions(points_per_side=6, pred_iou_thresh=0.2, stability_score_thresh=0.3, box_nms_thresh=0.9),
        AutomaticOptions(
            points_per_side=4, pred_iou_thresh=0.1, stability_score_thresh=0.5, stability_score_offset=0.3
        ),
    ],
)
def test_masks_of_the_released_order(size_hw: tuple[int, int], options: AutomaticOptions) -> None:
    expected = reference(size_hw, options)
    found = generate(MODEL, np.zeros((*size_hw, 3), dtype=np.uint8), options)
    assert len(found) == len(expected) > 3
    for mask, box, iou, stability, (r_mask, r_box, r_iou, r_stability) in zip(
        found.masks(), found.boxes_xyxy, found.predicted_iou, found.stability_score, expected, strict=True
    ):
        assert np.array_equal(mask, r_mask.numpy())
        assert box.tolist() == r_box
        assert iou == pytest.approx(r_iou)
        assert stability == pytest.approx(r_stability, abs=1e-7)


@pytest.mark.parametrize("size_hw", [(128, 128), (70, 100), (300, 200)])
@pytest.mark.parametrize(("least", "threshold", "budget"), [(0.0, 0.0, 1), (0.6, 0.25, 10**9)])
def test_other_devices_give_the_same(
    size_hw: tuple[int, int], least: float, threshold: float, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way through whole photos, which other devices take, run on the CPU; one photo at a time, or all."""
    monkeypatch.setattr(mask_scoring, "_BATCH_BUDGET", budget)
    geometry = ImageGeometry.of(size_hw, SIDE)
    logits = blobs(torch.rand(6, 2, generator=torch.Generator().manual_seed(0)) * SIDE)[0].flatten(0, 1)
    logits = torch.cat([logits, torch.full((1, 32, 32), -5.0), torch.full((1, 32, 32), 5.0)])  # nothing, everything
    for place in (Place(size_hw), Place((size_hw[0] + 9, size_hw[1] + 5), left=2, top=3)):
        expected = score_masks(logits, geometry, least, 1.0, threshold, place)
        levels = (threshold - 1.0, threshold, threshold + 1.0)
        found = _score_on_device(logits, geometry, levels, least, place)
        assert len(found) == len(expected) > 3
        for mask, other in zip(found, expected, strict=True):
            assert (mask.index, mask.stability, mask.box_xyxy) == (other.index, other.stability, other.box_xyxy)
            assert mask.rle() == other.rle()


def test_codes_of_many_masks() -> None:
    """Equal to COCO's own, whatever the length and number of runs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(7, 23, 37, generator=generator)
    masks = noise < torch.tensor([0.0, 0.02, 0.3, 0.5, 0.9, 0.99, 1.1])[:, None, None]
    assert encode_masks(masks) == [encode_mask(mask)["counts"] for mask in masks.numpy()]
    assert encode_masks(masks[:0]) == []
    wide = torch.zeros(2, 1500, 1500, dtype=torch.bool)
    wide[0, 700:, 3] = wide[1, :, 1400:] = wide[1, 5, 5] = True  # runs of four and five digits, and their differences
    assert encode_masks(wide) == [encode_mask(mask)["counts"] for mask in wide.numpy()]


@pytest.mark.usefixtures("blob_decoder")
def test_crops() -> None:
    size_hw = (200, 300)
    options = AutomaticOptions(
        points_per_side=6,
        pred_iou_thresh=0.2,
        stability_score_thresh=0.4,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
    )
    found = generate(MODEL, np.zeros((*size_hw, 3), dtype=np.uint8), options)
    boxes, layers = crop_boxes(size_hw, 1, options.crop_overlap_ratio)
    assert layers == [0, 1, 1, 1, 1]
    assert {tuple(box) for box in found.crop_boxes_xyxy.tolist()} <= set(boxes)
    areas = np.prod(found.crop_boxes_xyxy[:, 2:] - found.crop_boxes_xyxy[:, :2], axis=1)
    assert np.all(np.diff(areas) >= 0)  # small crops first
    assert len(set(areas.tolist())) > 1
    x1, y1, x2, y2 = found.boxes_xyxy.T
    left, top, right, bottom = found.crop_boxes_xyxy.T
    assert np.all((x1 >= left) & (y1 >= top) & (x2 < right) & (y2 < bottom))
    # Nothing ends within 20 px of a crop's edge inside the photo.
    assert not np.any((right < size_hw[1]) & (x2 >= right - 20) & (x2 < size_hw[1] - 20))
    assert not np.any((left > 0) & (x1 <= left + 20) & (x1 > 20))
    masks = found.masks()
    assert masks.shape == (len(found), *size_hw)
    for mask, box in zip(masks, found.boxes_xyxy, strict=True):
        assert reference_box(torch.from_numpy(mask)) == box.tolist()


@pytest.mark.usefixtures("blob_decoder")
def test_cleaning() -> None:
    options = {"points_per_side": 5, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.2, "box_nms_thresh": 0.95}
    image = np.zeros((128, 100, 3), dtype=np.uint8)
    raw = generate(MODEL, image, AutomaticOptions(**options))
    clean = generate(MODEL, image, AutomaticOptions(**options, min_mask_region_area=60))
    assert 0 < len(clean) <= len(raw)
    changed = 0
    originals = {
        (point.tobytes(), iou): mask
        for point, iou, mask in zip(raw.points_xy, raw.predicted_iou, raw.masks(), strict=True)
    }
    for mask, box, point, iou in zip(
        clean.masks(), clean.boxes_xyxy, clean.points_xy, clean.predicted_iou, strict=True
    ):
        before = originals[point.tobytes(), iou]
        after = remove_small_regions(remove_small_regions(before, 60, holes=True)[0], 60, holes=False)[0]
        assert np.array_equal(mask, after)
        assert reference_box(torch.from_numpy(mask)) == box.tolist()
        changed += not np.array_equal(before, mask)
    assert changed > 0


def test_small_regions() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:12, 2:12] = True
    mask[5, 5] = False  # a hole of one pixel
    mask[12, 12] = True  # touches the square at a corner: one region
    mask[17:19, 17:19] = True  # an island of four
    filled, changed = remove_small_regions(mask, 5, holes=True)
    assert changed
    assert filled[5, 5]
    assert filled.sum() == mask.sum() + 1
    cleared, changed = remove_small_regions(filled, 5, holes=False)
    assert changed
    assert not cleared[17:19, 17:19].any()
    assert cleared.sum() == 101
    assert remove_small_regions(cleared, 5, holes=False)[1] is False
    largest, _ = remove_small_regions(filled, 1000, holes=False)  # all are small: the largest stays
    assert np.array_equal(largest, cleared)


def test_a_real_model_and_its_cached_embedding() -> None:
    """The decoder itself takes part; an embedding that is given is not computed again, and changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (100, 128, 3), dtype=np.uint8)
    options = AutomaticOptions(points_per_side=3, points_per_batch=4, pred_iou_thresh=-9, stability_score_thresh=0.0)
    found = generate(MODEL, image, options)
    assert len(found) > 0
    from textsam.prompting.transforms import preprocess_image

    config = MODEL.config
    pixels, _ = preprocess_image(
        image, side=SIDE, patch_size=16, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
    )
    with torch.no_grad():
        again = generate(MODEL, image, options, embeddings=MODEL.encode_image(pixels))
    assert again.rles == found.rles
    assert np.array_equal(again.predicted_iou, found.predicted_iou)


@pytest.mark.usefixtures("blob_decoder")
@pytest.mark.parametrize("thresholds", [{"pred_iou_thresh": 2.0}, {"stability_score_thresh": 1.5}])
def test_nothing_found_keeps_all_axes(thresholds: dict[str, float]) -> None:
    options = AutomaticOptions(points_per_side=3, crop_n_layers=1, min_mask_region_area=5, **thresholds)
    found = generate(MODEL, np.zeros((40, 50, 3), dtype=np.uint8), options)
    assert isinstance(found, AutomaticMasks)
    assert found.masks().shape == (0, 40, 50)
    assert found.masks().dtype == bool
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.points_xy.shape == (0, 2)
    assert found.predicted_iou.shape == found.stability_score.shape == (0,)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (2, 2)])
def test_photos_of_a_few_pixels(size_hw: tuple[int, int]) -> None:
    options = AutomaticOptions(points_per_side=2, pred_iou_thresh=-9, stability_score_thresh=0.0, crop_n_layers=2)
    found = generate(MODEL, np.zeros((*size_hw, 3), dtype=np.uint8), options)
    assert found.masks().shape[1:] == size_hw


def test_grids() -> None:
    assert AutomaticOptions(points_per_side=2).grid(0).tolist() == [
        [0.25, 0.25],
        [0.75, 0.25],
        [0.25, 0.75],
        [0.75, 0.75],
    ]
    assert len(AutomaticOptions(points_per_side=8, crop_n_points_downscale_factor=2).grid(2)) == 4
    own = np.array([[0.1, 0.9]])
    for given in (own, own.tolist()):
        assert AutomaticOptions(points_per_side=None, point_grids=[given]).grid(0).tolist() == own.tolist()


def test_crop_boxes_overlap_and_cover() -> None:
    boxes, layers = crop_boxes((683, 1024), 2, 512 / 1500)
    assert [layers.count(layer) for layer in range(3)] == [1, 4, 16]
    assert boxes[1] == (0, 0, math.ceil((233 + 1024) / 2), math.ceil((233 + 683) / 2))
    for layer in (1, 2):
        covered = np.zeros((683, 1024), dtype=bool)
        for (x1, y1, x2, y2), of in zip(boxes, layers, strict=True):
            if of == layer:
                covered[y1:y2, x1:x2] = True
        assert covered.all()


def test_box_nms_prefers_the_best() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    assert box_nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.7).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": None}, "one of points_per_side and point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "one of points_per_side and point_grids"),
        ({"points_per_side": 0}, "points_per_side of at least 1, got 0"),
        ({"points_per_batch": 0}, "points_per_batch of at least 1"),
        ({"crop_n_layers": -1}, "crop_n_layers of at least 0"),
        ({"stability_score_offset": float("nan")}, "stability_score_offset of at least 0, got nan"),
        ({"pred_iou_thresh": float("inf")}, "finite pred_iou_thresh"),
        ({"pred_iou_thresh": 88}, r"pred_iou_thresh as a share, got 88, as if in percent: write 0.88"),
        ({"crop_overlap_ratio": 1.0}, r"crop_overlap_ratio in \[0, 1\), got 1.0"),
        ({"points_per_side": None, "point_grids": []}, "1 point_grids, one per layer, got 0"),
        ({"points_per_side": None, "point_grids": [np.zeros((3, 3))]}, r"shape \(P, 2\)"),
        ({"points_per_side": None, "point_grids": [np.full((3, 2), 1.5)]}, r"values in \[0, 1\]"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutomaticOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": "4"}, "points_per_side as a whole number, got '4'"),
        ({"points_per_side": 4.5}, "points_per_side as a whole number, got 4.5"),
        ({"box_nms_thresh": "0.7"}, "box_nms_thresh as a number, got '0.7'"),
        ({"crop_overlap_ratio": None}, "crop_overlap_ratio as a number, got None"),
    ],
)
def test_options_that_are_no_numbers(options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AutomaticOptions(**options)
