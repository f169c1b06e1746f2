"""From a picture to regions of text: tiles, joined maps, grown boxes, scales, and the way through `TextSam`."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import HashedWords, mobile_miniature
from written import CONFIG, box, paint, reader

from textsam.language.queries import QueryList
from textsam.model import TextSamConfig, TextSamModel
from textsam.predictor import TextSam
from textsam.prompting.encoded_image import encode_images
from textsam.queries import find_queries
from textsam.text_regions.instances import BoxOptions, boxes_of_map, label_cores
from textsam.text_regions.levels import TextRegionConfig
from textsam.text_regions.maps import TileAnswer, model_reader, passes_for, scales_for
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.quads import polygon_iou
from textsam.text_regions.reading import read_levels
from textsam.text_regions.regions import TextRegions
from textsam.text_regions.scales import join_areas, join_boxes
from textsam.text_regions.tiles import JoinedMaps, TileGrid

ONE_SCALE = TextReadingOptions(overlap=32, zoom=1.0, min_scale=1.0)


def read(picture: np.ndarray, levels: Sequence[str], options: TextReadingOptions = ONE_SCALE, **answer: Any) -> Any:
    return read_levels(picture, levels, lambda asked: reader(asked, **answer), CONFIG, options, fill=(0, 0, 0))


def assert_found(regions: TextRegions, quads: Sequence[np.ndarray], iou: float = 0.8) -> None:
    """Exactly these quads, in this order."""
    assert len(regions) == len(quads)
    for found, true in zip(regions.quads, quads, strict=True):
        assert polygon_iou(found, true) > iou


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
    assert scales_for((720, 1280), options) == [1.0, 0.5]
    assert scales_for((300, 300), options) == [1.0]
    assert scales_for((3000, 4000), options) == [1.0, 0.5, 0.25, 0.125]
    assert scales_for((3000, 4000), dataclasses.replace(options, min_scale=1.0)) == [1.0]
    enlarged = dataclasses.replace(options, zoom=1.5)
    assert scales_for((720, 1280), enlarged) == [1.5, 0.5]
    assert scales_for((200, 300), enlarged) == [1.5]
    assert scales_for((3000, 4000), enlarged) == [1.0, 0.5, 0.25, 0.125]  # too large to be enlarged


def test_ink_is_read_from_the_pictures_own_pixels() -> None:
    options = TextReadingOptions(largest_letters=120, min_scale=1 / 8, zoom=1.5)
    both, ink, words = ["word", "text stroke"], ["text stroke"], ["word"]
    assert passes_for((720, 1280), both, options) == [(1.5, words), (1.0, ink), (0.5, both)]
    assert passes_for((720, 1280), words, options) == [(1.5, words), (0.5, words)]
    assert passes_for((200, 300), ink, options) == [(1.0, ink)]
    plain = dataclasses.replace(options, zoom=1.0)
    assert passes_for((720, 1280), both, plain) == [(1.0, both), (0.5, both)]


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


# -- reading ---------------------------------------------------------------------------------------------------------

WORDS = [box(20, 20, 100, 44), box(112, 20, 230, 44), box(20, 56, 90, 80), box(300, 150, 390, 180)]
LINES = [box(20, 20, 230, 44), box(20, 56, 90, 80), box(300, 150, 390, 180)]


def test_words_and_lines_over_the_borders_of_tiles() -> None:
    picture = paint((220, 420), WORDS, LINES)
    found, areas = read(picture, ["word", "text line"])
    assert areas == {}
    assert_found(found["word"], WORDS)
    assert found["word"].line.tolist() == [0, 0, 1, 2]
    assert found["word"].block.tolist() == [0, 0, 0, 1]
    assert_found(found["text line"], LINES)
    assert found["word"].scores.min() > 0.9


def test_a_slanted_word_and_a_picture_smaller_than_a_tile() -> None:
    slanted = np.float32([[10, 40], [70, 10], [79, 28], [19, 58]])
    found, _ = read(paint((64, 90), [slanted]), ["word"])
    assert_found(found["word"], [slanted], 0.7)


def test_a_word_larger_than_what_is_read_at_full_size() -> None:
    large, small = box(40, 30, 700, 330), box(40, 400, 120, 424)
    picture = paint((480, 760), [large, small])

    def forgetful(levels: Sequence[str]) -> Any:
        """Like the model, it loses cores that are more than 40 px high at the scale that it sees."""
        answer = reader(levels)

        def read_tile(tile: np.ndarray) -> TileAnswer:
            found = answer(tile)
            too_high = (tile[..., 0] > 127).sum(0).max() > 100
            return dataclasses.replace(found, logits=np.full_like(found.logits, -8.0)) if too_high else found

        return read_tile

    options = TextReadingOptions(overlap=32, zoom=1.0, largest_letters=50)
    found, _ = read_levels(picture, ["word"], forgetful, CONFIG, options, fill=(0, 0, 0))
    assert_found(found["word"], [large, small])
    found, _ = read_levels(picture, ["word"], forgetful, CONFIG, ONE_SCALE, fill=(0, 0, 0))
    assert all(polygon_iou(quad, large) < 0.5 for quad in found["word"].quads)


@pytest.mark.parametrize("fine", [False, True])
def test_ink_is_handed_out_by_line(fine: bool) -> None:
    picture = paint((220, 420), WORDS, LINES)
    true = picture[..., 2] > 0
    found, areas = read(picture, ["text stroke"], fine_strokes=fine)
    strokes = found["text stroke"]
    assert len(strokes) == 3
    union = strokes.union_mask()
    assert (union & true).sum() / (union | true).sum() > (0.999 if fine else 0.75)
    assert strokes.mask(0)[20:44].any()
    assert not strokes.mask(0)[56:].any()
    assert areas["text stroke"].shape == (220, 420)
    assert ((areas["text stroke"] > 0) == true).mean() > 0.97


def test_ink_is_read_again_on_another_raster() -> None:
    """What a model gets wrong because of how the letters lie on its raster of 2 px is evened out by a moved tile."""
    picture = paint((120, 120), [box(30, 40, 90, 70)])
    told: list[int] = []

    def on_a_raster(levels: Sequence[str]) -> Any:
        read_tile = reader(levels, fine_strokes=True)

        def read(tile: np.ndarray) -> TileAnswer:
            answer = read_tile(tile)
            error = np.where(np.arange(tile.shape[1]) % 2, 10.0, -10.0).astype(np.float32)
            told.append(tile.shape[1])
            return dataclasses.replace(answer, strokes=answer.strokes + error)

        return read

    def ink(shifts: tuple[tuple[int, int], ...], size: int = 120) -> np.ndarray:
        options = dataclasses.replace(ONE_SCALE, stroke_shifts=shifts)
        part = picture[:size, :size]
        _, areas = read_levels(part, ["text stroke"], on_a_raster, CONFIG, options, fill=(0, 0, 0))
        return areas["text stroke"] > 0

    true = picture[..., 2] > 0
    assert ((ink(()) != true)[40:70, 40:80]).mean() > 0.3
    told.clear()
    np.testing.assert_array_equal(ink(((1, 0),))[35:75, 35:85], true[35:75, 35:85])
    assert len(told) == 2
    assert ink(((5, 3),), size=3).shape == (3, 3)  # moved out of the picture: read once


def test_nothing_present_nothing_found() -> None:
    found, areas = read(paint((220, 420), WORDS, LINES), ["word", "text stroke"], presence=0.1)
    assert [len(found[level]) for level in found] == [0, 0]
    assert (areas["text stroke"] == -10).all()
    assert found["word"].presence == pytest.approx(0.1)
    detections = found["word"].to_detections()
    assert detections.mask.shape == (0, 220, 420)
    assert detections.data["quad"].shape == (0, 4, 2)


def test_ink_has_a_presence_of_its_own() -> None:
    """Where the model is not sure enough to draw a word it may be of its ink, whose mistakes are few pixels."""
    picture = paint((220, 420), WORDS, LINES)
    options = dataclasses.replace(ONE_SCALE, presence_threshold=0.9)
    assert [options.least_presence(level) for level in ("word", "text stroke")] == [0.9, 0.5]
    found, _ = read(picture, ["word", "text stroke"], options, presence=0.7)
    assert len(found["word"]) == 0
    assert len(found["text stroke"]) > 0
    found, _ = read(picture, ["text stroke"], dataclasses.replace(options, stroke_presence=0.95), presence=0.7)
    assert len(found["text stroke"]) == 0


def test_the_tiles_are_told() -> None:
    told: list[tuple[int, int]] = []
    read_levels(
        paint((220, 420), WORDS),
        ["word"],
        reader,
        CONFIG,
        ONE_SCALE,
        on_tile=lambda done, all: told.append((done, all)),
    )
    assert told == [(i, len(told)) for i in range(1, len(told) + 1)]
    assert len(told) > 1


def test_detections_of_regions() -> None:
    found, _ = read(paint((220, 420), WORDS, LINES), ["word"])
    regions = found["word"].with_texts(["a", "b", "c", "d"])
    detections = regions.to_detections(class_id=3)
    assert detections.mask.shape == (4, 220, 420)
    np.testing.assert_array_equal(detections.data["quad"], regions.quads)
    assert detections.data["order"].tolist() == [0, 1, 2, 3]
    assert set(detections.data["level"]) == set(detections.data["class_name"]) == {"word"}
    assert detections.data["text"].tolist() == ["a", "b", "c", "d"]
    assert detections.class_id.tolist() == [3] * 4
    chosen = regions.select(np.array([1, 3]))
    assert (chosen.texts, chosen.line.tolist()) == (("b", "d"), [0, 2])
    with pytest.raises(ValueError, match="Expected 4 transcripts"):
        regions.with_texts(["a"])


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["words"], "Expected levels of text among .*, got 'words'"),
        (["text block"], "reads word, text line, text stroke, not 'text block'"),
    ],
)
def test_bad_levels(levels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(paint((64, 64), []), levels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"levels": []}, "Expected text_regions with levels"),
        ({"levels": ["word"], "tiles": 3}, "Expected text_regions with levels"),
        ({"levels": ["sentence"]}, "got 'sentence'"),
        ({"levels": ["word"], "shrink": {"word": 0.5}}, r"shrink values in \[0, 0.5\)"),
        ({"levels": ["word"], "growth": {"word": -0.5}}, r"growth values in \(-0.5, 10\)"),
        ("word", "Expected text_regions with levels"),
    ],
)
def test_bad_configurations(content: Any, message: str) -> None:
    config = mobile_miniature().config
    assert TextRegionConfig.of(config) is None
    config.text_regions = content
    with pytest.raises(ValueError, match=message):
        TextRegionConfig.of(config)


def test_growth_undoes_the_shrinking_unless_it_is_given() -> None:
    config = TextRegionConfig(("word", "text line"), shrink={"word": 0.25}, growth={"text line": 0.3})
    assert [config.growth_of(level) for level in ("word", "text line", "text")] == [0.5, 0.3, 0.0]


# -- through TextSam -------------------------------------------------------------------------------------------------


@pytest.fixture
def sam() -> TextSam:
    """A random model that says it reads text, and answers with masks of some parts."""
    model = mobile_miniature(seed=3, mask_refinement=False)
    model.config.text_regions = {"levels": ["word", "text line", "text"], "tile": 64, "shrink": {"word": 0.25}}
    options = TextReadingOptions(
        overlap=16, zoom=1.0, min_scale=1.0, presence_threshold=0.0, min_score=0.0, word_score=0.0, word_seed=0.65
    )
    return TextSam(model, HashedWords(), reading_options=options)


def test_predict_reads_levels_by_tiles(sam: TextSam, cat_photo: np.ndarray) -> None:
    photo = cat_photo[:100, :150]
    found = sam.predict(photo, text=["word", "Text"])
    expected, _ = sam.text_reader.read(photo, ["word", "text"])
    assert len(found) == len(expected["word"]) + len(expected["text"]) > 1
    np.testing.assert_array_equal(found.data["quad"][: len(expected["word"])], expected["word"].quads)
    assert set(found.data["class_name"]) == {"word", "text"}
    assert found.mask.shape == (len(found), 100, 150)
    sam.set_image(photo)
    again = sam.predict(text=["word", "text"])
    np.testing.assert_array_equal(again.mask, found.mask)
    batch = sam.predict_batch([photo, photo], text=[["word", "text"], "cat"], threshold=0.0)
    np.testing.assert_array_equal(
        batch[0].data["quad"], sam.predict(photo, ["word", "text"], threshold=0.0).data["quad"]
    )
    assert "quad" not in batch[1].data


def test_ink_is_redrawn_at_full_resolution(cat_photo: np.ndarray) -> None:
    torch.manual_seed(0)
    sizes = {"prompt_dim": 32, "decoder_heads": 2, "decoder_mlp_dim": 32, "clip_dim": 48, "image_size": 64}
    model = TextSamModel(TextSamConfig.tiny(**sizes, fine_masks=True, text_trained=True)).eval()
    texts = HashedWords().encode(["word", "text stroke"])
    tile = cat_photo[:64, :64]
    levels = ["word", "text stroke"]
    answer = model_reader(model, lambda pixels: encode_images(model, [pixels], 64)[0], levels, texts)(tile)
    assert answer.logits.shape == (2, 16, 16)
    assert answer.strokes is not None
    with torch.inference_mode():
        encoded = encode_images(model, [tile], 64)[0]
        expected = model.refine_masks(encoded.embeddings, torch.from_numpy(answer.logits)[1:, None])[0, 0]
    np.testing.assert_array_equal(answer.strokes, expected.numpy())
    without = model_reader(model, lambda pixels: encode_images(model, [pixels], 64)[0], ["word"], texts[:1])(tile)
    assert without.strokes is None
    surer = model_reader(model, lambda pixels: encode_images(model, [pixels], 64)[0], levels, texts, 1.1)(tile)
    assert surer.strokes is None  # there is no ink in this tile, so nothing to redraw


def test_predict_keeps_the_best_and_the_order(sam: TextSam, cat_photo: np.ndarray) -> None:
    photo = cat_photo[:100, :150]
    every, one = sam.predict(photo, text="word"), sam.predict(photo, text="word", max_instances=1)
    assert len(every) > 1
    np.testing.assert_array_equal(one.data["quad"], every.data["quad"][[every.confidence.argmax()]])
    sure = sam.predict(photo, text="word", threshold=float(every.confidence.max()) - 1e-6)  # rounded to float32
    assert 1 <= len(sure) < len(every)


def test_levels_as_classes(sam: TextSam, cat_photo: np.ndarray) -> None:
    photo = cat_photo[:100, :150]
    expected = sam.predict(photo, text=["word", "text"])
    found = find_queries(sam, photo, QueryList.parse(["writing = word", "area = text"]))
    np.testing.assert_array_equal(found.data["quad"], expected.data["quad"])
    assert found.data["class_name"].tolist() == ["writing" if n == "word" else "area" for n in expected.data["level"]]
    one = find_queries(sam, photo, QueryList.parse(["writing = word", "area = text @ 1"]), max_instances=1)
    assert one.data["class_name"].tolist() == ["writing"]
    assert one.confidence[0] == expected.confidence[expected.class_id == 0].max()


def test_clicks_with_a_level_are_clicks(sam: TextSam, cat_photo: np.ndarray) -> None:
    found = sam.predict(cat_photo[:100, :150], text="word", points=[[30, 30]])
    assert len(found) == 1
    assert "quad" not in found.data


def test_tiles_are_cached(sam: TextSam, cat_photo: np.ndarray, tmp_path: Path) -> None:
    photo = cat_photo[:100, :150]
    fresh = sam.predict(photo, text="word")
    cache = sam.use_cache(tmp_path / "cache")
    first = sam.predict(photo, text="word")
    misses = cache.misses
    assert misses > 1
    second = sam.predict(photo, text="word")
    assert cache.misses == misses
    np.testing.assert_array_equal(first.data["quad"], fresh.data["quad"])
    np.testing.assert_array_equal(second.data["quad"], fresh.data["quad"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"text": ["word", "cat"]}, "got 'word' and 'cat': ask for them one after the other"),
        ({"text": "text block"}, "not 'text block'"),
        ({"text": "word", "negative_text": "cat"}, "no negative_text with levels"),
        ({"text": "word", "return_logits": True}, "return_logits=False with levels"),
    ],
)
def test_bad_questions(sam: TextSam, cat_photo: np.ndarray, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sam.predict(cat_photo[:64, :64], **asked)


def test_other_models_take_levels_for_words(cat_photo: np.ndarray) -> None:
    plain = TextSam(mobile_miniature(), HashedWords())
    assert plain.text_reader is None
    with torch.inference_mode():
        assert "quad" not in plain.predict(cat_photo[:64, :64], text=["word", "cat"]).data
