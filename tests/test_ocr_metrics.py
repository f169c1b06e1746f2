"""Scores of found text against figures worked out by hand."""

import numpy as np
import pytest

from textsam.evaluation.ocr_metrics import (
    PixelCounts,
    RegionCounts,
    count_by_script,
    count_matches,
    marked_shares,
    match_polygons,
    script_of,
)


def box(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)


def test_matches_by_hand() -> None:
    truths = [box(0, 0, 10, 10), box(20, 0, 30, 10), box(40, 0, 50, 10)]
    # IoU 0.8, 0.5 (not above), nothing; and a second one on the first truth
    found = [box(0, 0, 8, 10), box(20, 0, 25, 10), box(80, 0, 90, 10), box(0, 0, 9, 10)]
    matching = match_polygons(truths, [], found)
    assert [(t, d) for t, d, _ in matching.pairs] == [(0, 0)]
    assert matching.pairs[0][2] == pytest.approx(0.8)
    assert matching.counted.all()
    assert matching.nearest.tolist() == [0, 1, -1, 0]
    scores = count_matches(matching, 3).scores()
    assert scores["precision"] == pytest.approx(1 / 4)
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["f"] == pytest.approx(2 / 7)
    assert scores["pq"] == pytest.approx(0.8 / (1 + 3 / 2 + 2 / 2))
    assert scores["mean_iou_of_matched"] == pytest.approx(0.8)


def test_what_lies_in_a_region_that_does_not_count_is_neither_right_nor_wrong() -> None:
    ignored = [box(100, 0, 200, 10)]
    found = [
        box(100, 0, 150, 10),  # inside: not counted
        box(94, 0, 106, 10),  # exactly half inside: counted, since more than half is asked for
        box(94, 0, 107, 10),  # 7 of 13: not counted
        box(0, 0, 10, 10),  # a truth
    ]
    matching = match_polygons([box(0, 0, 10, 10)], ignored, found)
    assert matching.counted.tolist() == [False, True, False, True]
    scores = count_matches(matching, 1).scores()
    assert (scores["precision"], scores["recall"]) == (0.5, 1.0)
    # by the protocol a detection that is not counted cannot match a truth either
    overlapping = match_polygons([box(0, 0, 10, 10)], [box(0, 0, 10, 10)], [box(0, 0, 10, 10)])
    assert overlapping.pairs == []


def test_counts_add_up() -> None:
    total = RegionCounts()
    total.add(RegionCounts(truths=4, detections=5, matched=3, iou_sum=2.4))
    total.add(RegionCounts(truths=2, detections=1, matched=1, iou_sum=0.6))
    scores = total.scores()
    assert (scores["precision"], scores["recall"]) == (4 / 6, 4 / 6)
    assert scores["pq"] == pytest.approx(3.0 / (4 + 1 + 1))


def test_nothing_to_find_and_nothing_found() -> None:
    empty = count_matches(match_polygons([], [], []), 0).scores()
    assert (empty["precision"], empty["recall"], empty["f"], empty["pq"]) == (None, None, None, None)
    missed = count_matches(match_polygons([box(0, 0, 5, 5)], [], []), 1).scores()
    assert (missed["precision"], missed["recall"], missed["f"], missed["pq"]) == (None, 0.0, 0.0, 0.0)


def test_scripts_by_hand() -> None:
    truths = [box(0, 0, 10, 10), box(20, 0, 30, 10), box(40, 0, 50, 10)]
    found = [box(0, 0, 10, 10), box(40, 0, 45, 10), box(90, 0, 99, 10), box(0, 0, 4, 10)]
    by_script = count_by_script(match_polygons(truths, [], found), ["latin", "latin", "hangul"])
    latin, hangul = by_script["latin"].scores(), by_script["hangul"].scores()
    assert (latin["truths"], latin["detections"], latin["matched"]) == (2, 2, 1)
    assert (hangul["truths"], hangul["detections"], hangul["matched"]) == (1, 1, 0)
    assert latin["f"] == 0.5


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Exit", "latin"),
        ("Café", "latin"),
        ("출구", "hangul"),
        ("출구 2", "hangul"),
        ("24-7", "digits"),
        ("...", "other"),
        ("", "other"),
        ("K팝", "mixed"),
        ("東京", "han"),
        ("ラーメン", "kana"),
        ("食べる", "kana"),
    ],
)
def test_script_of(text: str, script: str) -> None:
    assert script_of(text) == script


def test_pixels_by_hand() -> None:
    true, found, ignore = (np.zeros((10, 10), bool) for _ in range(3))
    true[:, :4] = True  # 40
    found[:, 2:6] = True  # 40, of which 20 are right
    scores = PixelCounts.of(found, true).scores()
    assert scores["fgiou"] == pytest.approx(20 / 60)
    assert (scores["precision"], scores["recall"], scores["f"]) == (0.5, 0.5, 0.5)
    ignore[:, 5] = True  # 10 wrong pixels less
    assert PixelCounts.of(found, true, ignore).scores()["fgiou"] == pytest.approx(20 / 50)

    total = PixelCounts.of(found, true)
    total.add(PixelCounts.of(true, true))
    total.add(PixelCounts.of(found, np.zeros_like(true)))  # no ink here: no share in the mean of the images
    scores = total.scores()
    assert scores["fgiou"] == pytest.approx((20 + 40) / (60 + 40 + 40))
    assert scores["mean_image_iou"] == pytest.approx((1 / 3 + 1) / 2)
    assert PixelCounts().scores()["fgiou"] is None
    with pytest.raises(ValueError, match=r"\(10, 10\) and \(9, 10\)"):
        PixelCounts.of(found, true[1:])


def test_marked_shares_by_hand() -> None:
    scores = marked_shares([0.0] * 18 + [0.02, 0.5])
    assert scores["within"] == 19 / 20
    assert scores["mean"] == pytest.approx(0.026)
    # linear between the 19th (0.02) and the 20th (0.5) of 20 values: position 0.95 * 19 = 18.05
    assert scores["percentile_95"] == pytest.approx(0.02 + 0.05 * 0.48)
    assert marked_shares([])["within"] is None
