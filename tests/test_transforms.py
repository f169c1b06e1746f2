"""Resizing, coordinates and upscaling against SAM's own steps, written out."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import resize, to_pil_image

from textsam.prompting.transforms import (
    ImageGeometry,
    mask_to_low_res_logits,
    masks_at_original_size,
    postprocess_masks,
    preprocess_image,
    resize_image,
    resized_size_hw,
)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((300, 451), 1024, (681, 1024)),
        ((451, 300), 1024, (1024, 681)),
        ((512, 512), 1024, (1024, 1024)),
        ((1, 1), 64, (64, 64)),
        ((20000, 9), 1024, (1024, 1)),  # the released code gives a width of 0 here and fails
        ((1365, 2048), 1024, (683, 1024)),  # 682.5 rounds up
    ],
)
def test_resized_size_rounds_as_sam(size, side, expected):
    assert resized_size_hw(size, side) == expected


@pytest.mark.parametrize("side", [64, 320, 640])
def test_resize_is_torchvisions_pil_resize(cat_photo, side):
    size = resized_size_hw(cat_photo.shape[:2], side)
    np.testing.assert_array_equal(resize_image(cat_photo, size), np.array(resize(to_pil_image(cat_photo), size)))


def test_preprocess_is_sams(cat_photo):
    pixel_values, geometry = preprocess_image(cat_photo, side=128, patch_size=16, pixel_mean=MEAN, pixel_std=STD)
    resized = np.array(resize(to_pil_image(cat_photo), (85, 128)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    expected = F.pad((torch.as_tensor(resized).permute(2, 0, 1)[None] - mean) / std, (0, 0, 0, 43))
    torch.testing.assert_close(pixel_values, expected, rtol=0, atol=0)
    assert geometry == ImageGeometry((300, 451), (85, 128), (128, 128))


def test_without_padding_only_the_patch_is_filled(cat_photo):
    padded, _ = preprocess_image(cat_photo, side=128, patch_size=16, pixel_mean=MEAN, pixel_std=STD)
    tight, geometry = preprocess_image(cat_photo, side=128, patch_size=16, pixel_mean=MEAN, pixel_std=STD, pad=False)
    assert tight.shape == (1, 3, 96, 128)
    assert geometry.padded_size_hw == (96, 128)
    assert geometry.low_res_size_hw == (24, 32)
    torch.testing.assert_close(tight, padded[:, :, :96], rtol=0, atol=0)


def test_coordinates_go_there_and_back():
    geometry = ImageGeometry.of((300, 451), 1024)
    points = np.array([[0.0, 0.0], [451.0, 300.0], [10.5, 20.25]])
    there = geometry.points_to_input(points)
    np.testing.assert_allclose(there[1], (1024, 681))
    np.testing.assert_allclose(geometry.points_to_original(there), points)
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
    there = geometry.boxes_to_input(boxes)
    torch.testing.assert_close(there[0, 2:], torch.tensor([30 * 1024 / 451, 40 * 681 / 300]))
    torch.testing.assert_close(geometry.boxes_to_original(there), boxes)
    assert boxes[0, 0] == 1.0  # a copy was scaled


def test_coordinates_keep_an_empty_axis():
    geometry = ImageGeometry.of((300, 451), 1024)
    assert geometry.boxes_to_input(np.zeros((0, 4))).shape == (0, 4)
    assert geometry.points_to_input(np.zeros((0, 3, 2))).shape == (0, 3, 2)


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (64, 64), (40, 30), (7, 100), (100, 3), (1, 1)])
def test_postprocess_is_sams_to_the_bit(size):
    geometry = ImageGeometry.of(size, 64)
    logits = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    height, width = geometry.resized_size_hw
    expected = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)[..., :height, :width]
    expected = F.interpolate(expected, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(postprocess_masks(logits, geometry), expected, rtol=0, atol=0)


def test_masks_are_the_same_however_many_are_upscaled_at_a_time(monkeypatch):
    geometry = ImageGeometry.of((50, 70), 64)
    logits = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(0))
    at_once = masks_at_original_size(logits, geometry)
    assert at_once.shape == (5, 50, 70)
    assert at_once.dtype == bool
    assert at_once.any()
    assert not at_once.all()
    monkeypatch.setattr("textsam.prompting.transforms._UPSCALE_BUDGET", 1)
    np.testing.assert_array_equal(masks_at_original_size(logits, geometry), at_once)


def test_no_masks_keep_their_axes():
    geometry = ImageGeometry.of((50, 70), 64)
    assert masks_at_original_size(torch.zeros(0, 16, 16), geometry).shape == (0, 50, 70)
    assert postprocess_masks(torch.zeros(0, 3, 16, 16), geometry).shape == (0, 3, 50, 70)
    assert mask_to_low_res_logits(np.zeros((0, 50, 70), dtype=bool), geometry).shape == (0, 1, 16, 16)


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (10, 12)])
def test_mask_to_logits_and_back_is_nearly_the_mask(size):
    geometry = ImageGeometry.of(size, 256)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = (rows - size[0] * 0.4) ** 2 + (columns - size[1] * 0.5) ** 2 < (min(size) * 0.3) ** 2
    logits = mask_to_low_res_logits(mask[None], geometry)
    back = masks_at_original_size(logits[:, 0], geometry)[0]
    assert (back & mask).sum() / (back | mask).sum() > 0.95
    assert logits.max() == 10
    assert (logits[0, 0, -1, -1] == -10) or geometry.resized_size_hw == geometry.padded_size_hw


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ImageGeometry.of((10, 10), 100), ValueError, "multiple of 16, got 100: use 96"),
        (lambda: ImageGeometry.of((10, 10), 0), ValueError, "use 16"),
        (lambda: ImageGeometry.of((0, 10), 64), ValueError, "at least one pixel"),
        (
            lambda: postprocess_masks(torch.zeros(1, 1, 8, 8), ImageGeometry.of((10, 10), 64)),
            ValueError,
            r"\(N, M, 16, 16\).*got shape \(1, 1, 8, 8\)",
        ),
        (
            lambda: preprocess_image(np.zeros((4, 4, 3)), side=64, patch_size=16, pixel_mean=MEAN, pixel_std=STD),
            TypeError,
            "uint8 RGB array, got float64",
        ),
        (
            lambda: preprocess_image(
                np.zeros((4, 4), np.uint8), side=64, patch_size=16, pixel_mean=MEAN, pixel_std=STD
            ),
            ValueError,
            r"got shape \(4, 4\)",
        ),
    ],
)
def test_wrong_sizes_say_what_to_do(make, error, words):
    with pytest.raises(error, match=words):
        make()
