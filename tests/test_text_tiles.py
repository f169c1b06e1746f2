"""What reading is made of: tiles and their joined maps, boxes grown back, and scales.

`test_text_reading.py` reads whole pictures.
"""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from written import box

from textsam.text_regions.instances import BoxOptions, boxes_of_map, label_cores
from textsam.text_regions.levels import TextRegionConfig
from textsam.text_regions.maps import TileAnswer, passes_for, scales_for
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.quads import polygon_iou
from textsam.text_regions.reading import read_levels
from textsam.text_regions.scales import join_areas, join_boxes
from textsam.text_regions.tiles import JoinedMaps, TileGrid

# -- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(720, 1280), (448, 448), (30, 2000), (449, 100), (1, 1), (1081, 1923)])
def test_tiles_cover_the_picture_and_overlap(size_hw: tuple[int, int]) -> None:
    grid = TileGrid.over(size_hw, 448, 64)
    for starts, length in ((grid.tops, size_hw[0]), (grid.lefts, size_hw[1])):
        assert starts[0] == 0
        assert starts[-1] + 448 >= length
        assert all(start % 4 == 0 for start in starts)
        assert all(b - a <= 448 - 64 for a, b in pairwise(starts))
        assert len(starts) == 1 or starts[-1] + 448 - length < 4  # no tile hangs out of the picture for nothing
    assert len(list(grid)) == len(grid)


def test_the_cheapest_grid_of_a_frame() -> None:
    # 3 x 2 tiles of 480 px are 1.38 M px, 4 x 2 of 448 px are 1.61 M
    grid = TileGrid.cheapest((720, 1280), [448, 464, 480, 496], 64)
    assert (grid.side, len(grid)) == (480, 6)
    assert TileGrid.cheapest((300, 300), [448, 432, 464], 64).side == 432


@pytest.mark.parametrize(("side", "overlap"), [(450, 64), (0, 0), (448, 448), (448, -1)])
def test_bad_grids(side: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="Expected"):
        TileGrid.over((720, 1280), side, overlap)


@pytest.mark.parametrize("stride", [1, 4])
def test_joined_tiles_are_the_map(stride: int) -> None:
    """Tiles cut from one map give that map back, whatever the weights."""
    rng = np.random.default_rng(0)
    size_hw = (150, 219)
    whole = rng.normal(size=(2, -(-size_hw[0] // stride), -(-size_hw[1] // stride))).astype(np.float32)
    grid = TileGrid.over(size_hw, 64, 16)
    joined, cells = JoinedMaps(grid, 2, stride), 64 // stride
    padded = np.pad(whole, ((0, 0), (0, cells), (0, cells)))
    for left, top in grid:
        row, column = top // stride, left // stride
        joined.add(padded[:, row : row + cells, column : column + cells], left, top)
    np.testing.assert_allclose(joined.logits(), whole, atol=1e-5)


def test_a_tile_that_says_nothing_leaves_the_word_to_its_neighbour() -> None:
    grid = TileGrid.over((64, 112), 64, 16)
    assert list(grid) == [(0, 0), (48, 0)]
    joined = JoinedMaps(grid, 2, 4)
    joined.add(np.full((2, 16, 16), 3.0), 0, 0)
    joined.add(np.full((2, 16, 16), -50.0), 48, 0, np.array([False, True]))
    first, second = joined.logits()
    assert first[0].tolist() == [pytest.approx(3.0)] * 16 + [-10.0] * 12
    assert second[0, :12].tolist() == [pytest.approx(3.0)] * 12
    assert (np.diff(second[0, 11:17]) < 0).all()  # falls over the overlap
    assert second[0, 16:].tolist() == [-10.0] * 12  # clipped
    with pytest.raises(ValueError, match=r"\(2, 16, 16\).*\(1, 16, 16\)"):
        joined.add(np.zeros((1, 16, 16)), 0, 0)


# -- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_is_grown_back_by_what_it_was_shrunk() -> None:
    logits = np.full((30, 60), -8.0, np.float32)
    logits[10:16, 5:45] = 8.0  # core 40 x 6 cells, so a box of 46 x 12
    quads, scores = boxes_of_map(logits, 4, BoxOptions(growth=0.5, upscale=1))
    np.testing.assert_allclose(quads, [box(8, 28, 192, 76)], atol=1e-3)
    assert scores == pytest.approx([1.0], abs=1e-3)
    quads, _ = boxes_of_map(logits, 4, BoxOptions(upscale=1))
    np.testing.assert_allclose(quads, [box(20, 40, 180, 64)], atol=1e-3)
    quads, _ = boxes_of_map(logits, 4, BoxOptions(growth=0.5, upscale=2))
    assert polygon_iou(quads[0], box(8, 28, 192, 76)) > 0.95


def test_small_and_doubtful_boxes_are_dropped_and_the_best_kept() -> None:
    logits = np.full((40, 40), -8.0, np.float32)
    logits[2:8, 2:20], logits[12:18, 2:20], logits[30, 30] = 8.0, 1.0, 8.0
    found = [len(boxes_of_map(logits, 4, BoxOptions(upscale=1, min_side=side, min_score=score))[0]) for side, score in
             ((0, 0), (5, 0), (0, 0.8), (5, 0.8))]  # fmt: skip
    assert found == [3, 2, 2, 1]
    quads, scores = boxes_of_map(logits, 4, BoxOptions(upscale=1, max_boxes=1, min_side=5))
    assert scores[0] > 0.9
    assert len(quads) == 1
    quads, scores = boxes_of_map(np.full((8, 8), -5.0, np.float32), 4, BoxOptions())
    assert (quads.shape, scores.shape) == ((0, 4, 2), (0,))


def test_cores_that_touch_are_parted_by_their_seeds() -> None:
    logits = np.full((20, 60), -8.0, np.float32)
    logits[5:11, 5:50] = 0.5  # one core at one half,
    logits[5:11, 5:24] = logits[5:11, 31:50] = 6.0  # two at 0.9
    logits[14:18, 5:50] = 0.5  # and one that nowhere is more likely
    one = label_cores(logits, 0.5, 0.5)
    assert [int(one.max()), len(np.unique(one[5:11, 5:50]))] == [2, 1]
    two = label_cores(logits, 0.5, 0.9)
    assert int(two.max()) == 2
    assert not two[14:18].any()
    assert len(np.unique(two[5:11, 5:27])) == len(np.unique(two[5:11, 28:50])) == 1
    quads, _ = boxes_of_map(logits, 4, BoxOptions(seed=0.9, upscale=1))
    assert sorted(quads[:, :, 0].min(1).tolist()) == pytest.approx([20, 108], abs=4)
    assert not label_cores(logits, 0.5, 0.9999).any()


def test_bumps_do_not_make_a_box_higher() -> None:
    logits = np.full((30, 60), -8.0, np.float32)
    logits[10:16, 5:45] = 8.0
    logits[7:19, 20:22] = 8.0  # a bump of 3 cells above and below
    quads, _ = boxes_of_map(logits, 4, BoxOptions(upscale=1))
    # 40 x 6 cells and 12 more: as high as a rectangle of 252 cells
    np.testing.assert_allclose(np.ptp(quads[0], axis=0), [160, 4 * 252 / 40], atol=1e-3)


# -- scales ----------------------------------------------------------------------------------------------------------


def test_scales_of_a_picture() -> None:
    options = TextReadingOptions(zoom=1.0)
    assert scales_for((720, 1280), options) == [1.0, 0.5, 0.25, 0.125]
    assert scales_for((300, 300), options) == [1.0, 0.5, 0.25]
    assert scales_for((120, 300), options) == [1.0]
    assert scales_for((3000, 4000), options) == [1.0, 0.5, 0.25, 0.125]
    assert scales_for((3000, 4000), dataclasses.replace(options, min_scale=1.0)) == [1.0]
    enlarged = dataclasses.replace(options, zoom=1.5)
    assert scales_for((720, 1280), enlarged) == [1.5, 0.5, 0.25, 0.125]
    assert scales_for((80, 300), enlarged) == [1.5]
    assert scales_for((3000, 4000), enlarged) == [1.0, 0.5, 0.25, 0.125]  # too large to be enlarged


def test_ink_is_read_from_the_pictures_own_pixels() -> None:
    options = TextReadingOptions(largest_letters=240, min_scale=1 / 8, zoom=1.5)
    both, ink, words = ["word", "text stroke"], ["text stroke"], ["word"]
    assert passes_for((480, 854), both, options) == [(1.5, words), (1.0, ink), (0.5, both)]
    assert passes_for((480, 854), words, options) == [(1.5, words), (0.5, words)]
    assert passes_for((100, 300), ink, options) == [(1.0, ink)]
    plain = dataclasses.replace(options, zoom=1.0)
    assert passes_for((480, 854), both, plain) == [(1.0, both), (0.5, both)]


def test_small_pictures_are_read_enlarged() -> None:
    seen = []

    def read_tile(tile: np.ndarray) -> TileAnswer:
        seen.append(tile)
        return TileAnswer(np.where(tile[::4, ::4, 0] > 200, 8.0, -8.0).astype(np.float32)[None], np.ones(1, np.float32))

    picture = np.zeros((60, 60, 3), np.uint8)
    picture[20:40, 10:50] = 255
    options = TextReadingOptions(overlap=32, zoom=1.5, min_score=0.0)
    config = TextRegionConfig(("text line",))
    regions, _ = read_levels(picture, ["text line"], lambda levels: read_tile, config, options)
    assert len(seen) == 1
    assert np.count_nonzero(seen[0][..., 0] > 200) == pytest.approx(1.5**2 * 20 * 40, rel=0.1)
    np.testing.assert_allclose(regions["text line"].quads[0], box(10, 20, 50, 40), atol=3)


def test_a_large_word_takes_the_place_of_its_pieces() -> None:
    fine = np.stack([box(0, 0, 20, 20), box(40, 0, 60, 20), box(300, 0, 340, 20)])
    coarse = np.stack([box(0, 0, 200, 100), box(300, 0, 340, 20)])
    quads, scores = join_boxes((fine, np.float32([0.9, 0.8, 0.7])), (coarse, np.float32([0.6, 0.5])), 60, 0.5)
    assert sorted(scores.tolist()) == pytest.approx([0.6, 0.7])
    assert {tuple(quad[2]) for quad in quads} == {(200, 100), (340, 20)}


def test_small_words_are_not_joined_by_a_coarse_pass() -> None:
    fine = np.stack([box(0, 0, 95, 100), box(105, 0, 200, 100)])
    quads, _ = join_boxes((fine, np.float32([0.9, 0.8])), (box(0, 0, 200, 100)[None], np.float32([0.99])), 60, 0.5)
    np.testing.assert_array_equal(quads, fine)
    none = (np.zeros((0, 4, 2), np.float32), np.zeros(0, np.float32))
    assert len(join_boxes(none, (fine, np.float32([0.9, 0.8])), 60, 0.5)[0]) == 2
    assert len(join_boxes(none, none, 60, 0.5)[0]) == 0


def test_only_large_patches_of_a_coarse_area_count() -> None:
    fine, coarse = np.full((100, 200), -5.0), np.full((100, 200), -6.0)
    coarse[10:80, 10:80] = coarse[10:20, 150:190] = 4.0
    joined = join_areas(fine, coarse, 60, 0.0)
    assert (joined > 0).sum() == 70 * 70
    assert joined[90, 190] == -5.0
