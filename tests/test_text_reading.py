"""From a picture to regions of text, and the way through `TextSam`; its parts are in `test_text_tiles.py`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import HashedWords, mobile_miniature
from PIL import Image, ImageDraw, ImageFont
from written import CONFIG, box, paint, reader

import textsam
from textsam.checkpoints.encoders import EXTRA_NAMES, packaged_folder, read_extra_names
from textsam.language.queries import QueryList
from textsam.model import TextSamConfig, TextSamModel
from textsam.predictor import TextSam
from textsam.prompting.encoded_image import encode_images
from textsam.queries import find_queries
from textsam.text_regions.levels import ALIASES, LEVELS, TextRegionConfig, level_of
from textsam.text_regions.maps import TileAnswer, model_reader, scales_for
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.quads import polygon_iou
from textsam.text_regions.read import read_text_regions
from textsam.text_regions.reading import area_regions, read_levels
from textsam.text_regions.regions import TextRegions
from textsam.text_regions.tiles import TileGrid
from textsam.tracking import ByteTracking, MaskTracking

ONE_SCALE = TextReadingOptions(overlap=32, zoom=1.0, min_scale=1.0)


def read(picture: np.ndarray, levels: Sequence[str], options: TextReadingOptions = ONE_SCALE, **answer: Any) -> Any:
    return read_levels(picture, levels, lambda asked: reader(asked, **answer), CONFIG, options, fill=(0, 0, 0))


def assert_found(regions: TextRegions, quads: Sequence[np.ndarray], iou: float = 0.8) -> None:
    """Exactly these quads, in this order."""
    assert len(regions) == len(quads)
    for found, true in zip(regions.quads, quads, strict=True):
        assert polygon_iou(found, true) > iou


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


def test_letters_that_fill_the_picture_are_found() -> None:
    picture = Image.new("RGB", (960, 540), (90, 110, 140))
    ImageDraw.Draw(picture).text((480, 270), "TEA", (250, 240, 230), ImageFont.load_default(size=430), anchor="mm")
    true = np.asarray(picture)[..., 0] > 170
    rows, columns = np.flatnonzero(true.any(1)), np.flatnonzero(true.any(0))
    found = read_text_regions(textsam.load("textsam-tiny-ocr"), picture, "word")
    outline = box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert max(polygon_iou(quad, outline) for quad in found.data["quad"]) > 0.7


def test_the_best_areas_are_kept() -> None:
    logits = np.full((40, 200), -5.0, np.float32)
    for number in range(10):
        logits[10:20, 20 * number : 20 * number + 10] = 3 + number % 2
    options = dataclasses.replace(ONE_SCALE, max_boxes=5)
    found = area_regions("text stroke", logits, (), 1.0, 0.5, options)
    assert found.quads[:, 0, 0].tolist() == [20, 60, 100, 140, 180]
    assert [area[0] for area in found.areas or ()] == [20, 60, 100, 140, 180]


def test_every_tile_of_ink_is_read_again_whatever_passes_follow() -> None:
    read_again: list[list[str]] = []

    def told(levels: Sequence[str]) -> Any:
        read_tile = reader(levels, fine_strokes=True)

        def read(tile: np.ndarray) -> TileAnswer:
            read_again.append(list(levels))
            return read_tile(tile)

        return read

    options = dataclasses.replace(ONE_SCALE, min_scale=0.25, largest_letters=40.0, stroke_shifts=((7, 11),))
    totals: list[int] = []
    picture = paint((440, 840), [box(20, 20, 90, 50), box(700, 380, 800, 420)])
    read_levels(
        picture, ["text stroke", "word"], told, CONFIG, options, on_tile=lambda done, total: totals.append(total)
    )
    assert len(scales_for((440, 840), options)) > 1
    sides = [int(CONFIG.tile * factor) // 16 * 16 for factor in options.tile_range]
    finest = TileGrid.cheapest((440, 840), range(sides[0], sides[1] + 1, 16), options.overlap)
    assert read_again.count(["text stroke"]) == len(finest)
    assert len(read_again) == totals[0] + len(finest)


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
    assert set(found.data["class_name"]) == {"word", "Text"}  # as it was asked
    assert set(found.data["level"]) == {"word", "text"}
    assert found.mask.shape == (len(found), 100, 150)
    sam.set_image(photo)
    again = sam.predict(text=["word", "text"])
    np.testing.assert_array_equal(again.mask, found.mask)
    batch = sam.predict_batch([photo, photo], text=[["word", "text"], "cat"], threshold=0.0)
    np.testing.assert_array_equal(
        batch[0].data["quad"], sam.predict(photo, ["word", "text"], threshold=0.0).data["quad"]
    )
    assert "quad" not in batch[1].data


def test_levels_without_text_keep_axes_and_keys(sam: TextSam, cat_photo: np.ndarray) -> None:
    photo = cat_photo[:100, :150]
    one, two = (sam.predict(photo, text=levels, threshold=1.0) for levels in ("word", ["word", "text"]))
    assert one.mask.shape == two.mask.shape == (0, 100, 150)
    assert sorted(one.data) == sorted(two.data)
    assert len(find_queries(sam, photo, QueryList.parse(["writing = word @ 1", "area = text @ 1"]))) == 0


def test_read_text_regions_takes_a_level_in_any_case(sam: TextSam, cat_photo: np.ndarray) -> None:
    photo = cat_photo[:100, :150]
    found, expected = (read_text_regions(sam, photo, level) for level in ("Text Line", "text line"))
    np.testing.assert_array_equal(found.data["quad"], expected.data["quad"])
    assert len(found) > 0


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("words", "word"), ("a word", "word"), ("text lines", "text line"), ("text-line", "text line"),
        ("Text_Line", "text line"), ("texts", "text"), ("text blocks", "text block"), ("the text.", "text"),
        ("paragraphs", "text block"), ("lettering", "text"), ("line", None), ("caption", None), ("sword", None),
        ("word, text", None), ("", None),
    ],
)  # fmt: skip
def test_levels_by_the_rules_of_the_vocabulary(text: str, level: str | None) -> None:
    assert level_of(text) == level


def test_what_the_text_encoder_takes_for_a_level_is_read() -> None:
    names, _, aliases = read_extra_names(packaged_folder("textsam-tiny-ocr") / EXTRA_NAMES)
    assert (tuple(names), aliases) == (LEVELS, ALIASES)


def test_plurals_and_articles_are_read_by_tiles(sam: TextSam, cat_photo: np.ndarray) -> None:
    photo = cat_photo[:100, :150]
    expected = sam.predict(photo, text=["word", "text line"])
    found = sam.predict(photo, text=["words", "a text-line"])
    np.testing.assert_array_equal(found.data["quad"], expected.data["quad"])
    assert set(found.data["class_name"]) == {"words", "a text-line"}  # as it was asked
    assert set(found.data["level"]) == {"word", "text line"}
    again = read_text_regions(sam, photo, "words")
    np.testing.assert_array_equal(again.data["quad"], expected.data["quad"][expected.class_id == 0])


def test_a_video_is_read_as_its_frames(sam: TextSam, cat_photo: np.ndarray) -> None:
    """By the thresholds of the levels, not that of other words; each level has its own."""
    photo, levels = cat_photo[:100, :150], ["Word", "Text line"]
    every = sam.predict(photo, text=levels, threshold=0.0)
    word, line = (float(np.median(every.confidence[every.class_id == i])) - 1e-6 for i in (0, 1))  # beside rounding
    reader = sam.text_reader
    reader.options = dataclasses.replace(reader.options, word_score=word, min_score=line)
    found, expected = ByteTracking(sam, levels)(photo), sam.predict(photo, text=levels)
    assert 0 < len(expected) < len(every)
    assert sorted(found.confidence) == sorted(expected.confidence)
    assert sorted(found.data["class_name"]) == sorted(expected.data["class_name"])
    assert set(found.data["class_name"]) == set(levels)


def test_masks_do_not_follow_levels(sam: TextSam) -> None:
    with pytest.raises(ValueError, match=r"got 'word', a level of written text, .* use ByteTracking"):
        MaskTracking(sam, ["Word"])


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
    # In another spelling, with the level's own least score.
    spelled = find_queries(sam, photo, QueryList.parse(["writing = the words", "area = Texts"]))
    np.testing.assert_array_equal(spelled.confidence, found.confidence)
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
