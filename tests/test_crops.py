"""Square crops: geometry against a picture that encodes its own coordinates, padding, and what counts as inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textsam.language.crops import (
    grid_coverage,
    inside_cells,
    mask_window,
    masked_mean,
    square_crop,
    validate_image_and_masks,
)


def box_mask(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_window_is_the_expanded_square_around_the_box() -> None:
    mask = box_mask(100, 200, 50, 20, 90, 40)  # 40 x 20, centre (70, 30)
    assert mask_window(mask, 1.0) == (50, 10, 40)
    assert mask_window(mask, 2.0) == (30, -10, 80)


@pytest.mark.parametrize("expand", [0.5, 2.5, float("nan")])
def test_window_refuses_other_expansions(expand: float) -> None:
    with pytest.raises(ValueError, match="between 1 and 2"):
        mask_window(box_mask(10, 10, 2, 2, 5, 5), expand)


def test_crop_keeps_coordinates() -> None:
    rows, columns = np.mgrid[0:120, 0:160]
    image = np.stack([columns, rows, np.full_like(rows, 99)], axis=-1).astype(np.uint8)
    crop, coverage = square_crop(image, box_mask(120, 160, 40, 30, 100, 90), 60)
    assert crop.shape == (60, 60, 3)
    assert crop.dtype == np.uint8
    assert coverage.dtype == np.float32
    np.testing.assert_array_equal(crop, image[30:90, 40:100])
    np.testing.assert_array_equal(coverage, 1)


def test_crop_pads_where_the_square_leaves_the_picture() -> None:
    image = np.full((50, 50, 3), 200, np.uint8)
    crop, coverage = square_crop(image, box_mask(50, 50, 0, 0, 20, 10), 80, expand=2.0, fill=(10, 20, 30))
    # The window is (-10, -15, 40): a quarter of its columns and 3/8 of its rows lie outside, left and above.
    np.testing.assert_array_equal(crop[:30], np.broadcast_to([10, 20, 30], (30, 80, 3)))
    np.testing.assert_array_equal(crop[:, :20], np.broadcast_to([10, 20, 30], (80, 20, 3)))
    assert (crop[30:, 20:] == 200).all()
    expected = np.zeros((80, 80), np.float32)
    expected[30:50, 20:60] = 1
    np.testing.assert_array_equal(coverage, expected)


def test_zero_outside_fills_all_but_the_mask() -> None:
    image = np.full((40, 40, 3), 255, np.uint8)
    mask = np.eye(40, dtype=bool)
    mask[:20] = True
    crop, _ = square_crop(image, mask, 40, zero_outside=True, fill=(0, 0, 0))
    assert (crop[:20] == 255).all()
    assert crop[20:].mean() < 20
    assert (image == 255).all()  # the caller's picture is left alone


def test_crop_of_one_pixel_in_the_corner_and_of_a_long_thin_mask() -> None:
    image = np.random.default_rng(0).integers(0, 255, (7, 3000, 3), dtype=np.uint8)
    for mask in (box_mask(7, 3000, 2999, 6, 3000, 7), box_mask(7, 3000, 0, 3, 3000, 4)):
        crop, coverage = square_crop(image, mask, 32, expand=2.0)
        assert crop.shape == (32, 32, 3)
        assert coverage.sum() > 0
        assert inside_cells(torch.from_numpy(coverage)[None], (4, 4)).any()


def test_inside_cells_and_masked_mean() -> None:
    coverage = torch.zeros(2, 8, 8)
    coverage[0, :4, :4] = 1  # one of four cells
    coverage[0, 0, 4] = 1  # 1/16 of another: not inside
    coverage[1, 3, :] = 1  # a thin line fills a quarter of two cells, and no cell by half
    torch.testing.assert_close(grid_coverage(coverage, (2, 2))[0], torch.tensor([[1.0, 1 / 16], [0, 0]]))
    assert inside_cells(coverage, (2, 2)).tolist() == [[[True, False], [False, False]], [[True, True], [False, False]]]
    features = torch.arange(8.0).reshape(1, 2, 2, 2).repeat(2, 1, 1, 1)
    torch.testing.assert_close(masked_mean(features, coverage)[1], torch.tensor([0.5, 4.5]))


@pytest.mark.parametrize(
    ("image", "masks", "error", "message"),
    [
        (np.zeros((4, 4, 3)), np.ones((1, 4, 4), bool), TypeError, "uint8"),
        ("cat.jpg", np.ones((1, 4, 4), bool), TypeError, "str"),
        (np.zeros((4, 4), np.uint8), np.ones((1, 4, 4), bool), ValueError, r"\(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((1, 4, 4)), TypeError, "boolean"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool), ValueError, r"\(N, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((1, 4, 5), bool), ValueError, r"\(N, 4, 4\)"),
        (
            np.zeros((4, 4, 3), np.uint8),
            np.stack([np.ones((4, 4), bool), np.zeros((4, 4), bool)]),
            ValueError,
            r"masks\[1\]",
        ),
    ],
)
def test_wrong_pictures_and_masks(image: object, masks: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        validate_image_and_masks(image, masks)  # type: ignore[arg-type]
