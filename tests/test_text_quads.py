"""Quads of text and their reading order, against figures worked out by hand."""

import math
import time

import numpy as np
import pytest

from textsam.text_regions.order import reading_order
from textsam.text_regions.quads import (
    direction_of_quad,
    draw_polygon,
    grow_quad,
    in_reading_order,
    intersection_area,
    is_convex,
    polygon_iou,
    quad_around,
    signed_area,
    size_of_quad,
)


def box(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)


def turned(quad: np.ndarray, degrees: float) -> np.ndarray:
    """Around its centre; positive degrees go down to the right on the screen."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre = quad.mean(0)
    return ((quad - centre) @ np.array([[c, s], [-s, c]]) + centre).astype(np.float32)


L_SHAPE = np.array([[0, 0], [10, 0], [10, 4], [4, 4], [4, 10], [0, 10]], float)


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("clockwise", [True, False])
def test_corners_start_at_the_top_left_whatever_came(start: int, clockwise: bool) -> None:
    given = np.roll(box(2, 3, 9, 6), start, axis=0)
    found = in_reading_order(given if clockwise else given[::-1])
    assert found.tolist() == [[2, 3], [9, 3], [9, 6], [2, 6]]


@pytest.mark.parametrize(
    ("degrees", "direction"),
    [(0, 0), (30, 30), (-30, -30), (55, 55), (150, -30), (180, 0), (179, -1), (80, -10), (-80, 10), (90, 0)],
)
def test_reading_goes_along_the_long_side_unless_it_is_steep(degrees: float, direction: float) -> None:
    quad = in_reading_order(turned(box(0, 0, 40, 6), degrees))
    found = direction_of_quad(quad)
    assert math.degrees(math.atan2(found[1], found[0])) == pytest.approx(direction, abs=1e-3)
    assert size_of_quad(quad) == pytest.approx((40, 6) if abs(direction) == abs(degrees) or (direction in (-30, -1, 0)
                                               and degrees != 90) else (6, 40), abs=1e-3)  # fmt: skip
    assert signed_area(quad) == pytest.approx(240, abs=1e-2)


def test_a_box_that_is_hardly_longer_than_high_is_read_across() -> None:
    letter = in_reading_order(turned(box(0, 0, 10, 12), 5))
    assert size_of_quad(letter) == pytest.approx((10, 12), abs=1e-3)


def test_quad_around_points() -> None:
    rng = np.random.default_rng(0)
    outline = turned(box(10, 20, 60, 40), 20)
    weights = rng.dirichlet(np.ones(4), 200)
    np.testing.assert_allclose(quad_around(np.concatenate([outline, weights @ outline])), outline, atol=1e-3)
    assert quad_around(np.array([[3.0, 4.0]])).tolist() == [[3, 4]] * 4


def test_grow_and_shrink_are_inverse() -> None:
    assert grow_quad(box(2, 2, 8, 6), 1, 2).tolist() == [[1, 0], [9, 0], [9, 8], [1, 8]]
    quad = turned(box(2, 2, 80, 20), 33)
    np.testing.assert_allclose(grow_quad(grow_quad(quad, 5, 3), -5, -3), quad, atol=1e-4)
    assert grow_quad(np.full((4, 2), 5.0), 0.5, 0.5).tolist() == [[4.5, 4.5], [5.5, 4.5], [5.5, 5.5], [4.5, 5.5]]


def test_areas_by_hand() -> None:
    assert signed_area(L_SHAPE) == 64
    assert signed_area(L_SHAPE[::-1]) == -64
    assert is_convex(box(0, 0, 4, 4))
    assert not is_convex(L_SHAPE)
    assert not is_convex(np.array([[0, 0], [4, 4], [4, 0], [0, 4]], float))  # a bow tie
    # [2, 10] x [2, 4] and [2, 4] x [4, 10]
    assert intersection_area(L_SHAPE, box(2, 2, 12, 12)) == pytest.approx(28, rel=0.01)
    assert intersection_area(box(0, 0, 4, 4), box(3, 3, 9, 9)) == 1
    assert intersection_area(box(0, 0, 4, 4), box(4, 0, 8, 4)) == 0
    assert intersection_area(box(0, 0, 4, 4), box(9, 9, 12, 12)) == 0


def test_iou_by_hand() -> None:
    assert polygon_iou(box(0, 0, 6, 4), box(3, 0, 9, 4)) == pytest.approx(12 / 36)
    assert polygon_iou(box(0, 0, 6, 4), box(0, 0, 6, 4)[::-1]) == pytest.approx(1)
    diamond = np.array([[5, 0], [10, 5], [5, 10], [0, 5]], float)  # half of its box
    assert polygon_iou(diamond, box(0, 0, 10, 10)) == pytest.approx(0.5)
    assert polygon_iou(L_SHAPE, box(0, 0, 10, 10)) == pytest.approx(0.64, abs=0.01)
    assert polygon_iou(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 0
    far = np.array([1e4, 1e4], np.float32)  # float32 would lose an eighth of a pixel here
    assert polygon_iou(box(0, 0, 6, 4) + far, box(3, 0, 9, 4) + far) == pytest.approx(12 / 36, abs=1e-4)


def test_draw_polygon_fills_the_pixels_inside() -> None:
    mask = draw_polygon(box(2, 3, 8, 6), (10, 12))
    assert mask[3:6, 2:8].all()
    assert mask.sum() == 18
    assert draw_polygon(box(-4, -4, 3, 2), (10, 12)).sum() == 6
    assert draw_polygon(box(20, 20, 30, 30), (10, 12)).sum() == 0


def test_words_of_two_lines_are_read_line_by_line() -> None:
    words = np.stack([box(60, 42, 100, 60), box(10, 10, 50, 30), box(10, 40, 50, 60), box(60, 8, 100, 28)])
    found = reading_order(words)
    assert found.order.tolist() == [1, 3, 2, 0]
    assert found.line.tolist() == [1, 0, 1, 0]
    assert found.block.tolist() == [0, 0, 0, 0]


def test_a_slanted_line_is_one_line() -> None:
    words = [turned(box(x, 100, x + 40, 120), 0) for x in (0, 50, 100, 150)]
    angle = math.radians(25)
    slanted = np.stack([turned(w, 25) + np.float32([0, (w[0, 0]) * math.tan(angle)]) for w in words])
    found = reading_order(slanted[[2, 0, 3, 1]])
    assert found.order.tolist() == [1, 3, 0, 2]
    assert set(found.line.tolist()) == {0}


def test_columns_are_read_one_after_the_other() -> None:
    left = [box(10, y, 90, y + 20) for y in (50, 75, 100)]
    right = [box(150, y, 230, y + 20) for y in (52, 77, 102)]
    heading = box(10, 12, 230, 35)
    quads = np.stack([right[1], left[2], heading, left[0], right[0], left[1], right[2]])
    found = reading_order(quads, boxes_are_lines=True)
    assert found.order.tolist() == [2, 3, 5, 1, 4, 0, 6]
    assert found.block.tolist() == [2, 1, 0, 1, 2, 1, 2]


def test_signs_on_steps_are_read_from_above() -> None:
    quads = np.stack([box(0, 200, 50, 220), box(300, 10, 350, 30)])
    assert reading_order(quads).order.tolist() == [1, 0]


def test_a_dense_page_is_put_in_order_in_seconds() -> None:
    quads = np.stack([box(x, y, x + 160, y + 16) for y in range(10, 1900, 25) for x in range(10, 3700, 185)])
    started = time.process_time()
    found = reading_order(quads, boxes_are_lines=True)
    assert time.process_time() - started < 6
    rows = len(quads) // 20
    assert found.order[: rows + 1].tolist() == [*range(0, len(quads), 20), 1]
    assert found.block.max() == 19


def test_order_of_none_and_of_one() -> None:
    none = reading_order(np.zeros((0, 4, 2)))
    assert (none.order.shape, none.line.shape, none.block.shape) == ((0,), (0,), (0,))
    one = reading_order(box(0, 0, 5, 5)[None])
    assert (one.order.tolist(), one.line.tolist(), one.block.tolist()) == ([0], [0], [0])
