"""Text by ranking, with a CLIP that knows three colours: coloured discs are found by their name."""

import warnings

import numpy as np
import pytest
import torch
from miniatures import ColourWords
from scipy.ndimage import binary_dilation
from tiny_models import tiny_model

from textsam.predictor import TextSam
from textsam.prompting.detections import to_detections
from textsam.prompting.guided_proposals import guiding_points, word_maps
from textsam.prompting.ranking import (
    BACKGROUND_TEXTS,
    RankingOptions,
    pool_features,
    rank_proposals,
    shrink_masks,
    softmax_agreement,
)

# x, y, radius, colour
DISCS = [(30, 30, 20, "red"), (90, 30, 15, "red"), (40, 80, 18, "blue")]
COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 230)}


@pytest.fixture
def scene():
    """A grey (120, 160, 3) picture with discs, and their masks."""
    rows, columns = np.mgrid[:120, :160]
    image = np.full((120, 160, 3), 128, dtype=np.uint8)
    masks = np.stack([(columns - x) ** 2 + (rows - y) ** 2 < radius**2 for x, y, radius, _ in DISCS])
    for mask, disc in zip(masks, DISCS, strict=True):
        image[mask] = COLOURS[disc[3]]
    return image, masks


@pytest.fixture
def proposals(scene):
    """The discs, a repetition of the first, a part of the second, and the ground."""
    _, discs = scene
    half = discs[1] & (np.arange(160) < 90)
    shifted = np.roll(discs[0], 1, axis=1)
    masks = np.concatenate([discs, shifted[None], half[None], ~discs.any(0)[None]])
    data = {
        "predicted_iou": np.array([0.95, 0.9, 0.92, 0.8, 0.85, 0.99], np.float32),
        "stability_score": np.full(6, 0.97, np.float32),
    }
    return to_detections(masks, confidence=data["predicted_iou"], data=data)


def rank(scene, proposals, texts, others=("background",), **kwargs):
    words = ColourWords()
    options = kwargs.pop("options", RankingOptions(logit_scale=20.0))
    return rank_proposals(scene[0], proposals, words, words.encode(texts), words.encode(others), options, **kwargs)


def test_each_colour_finds_its_discs_once(scene, proposals):
    ranked = rank(scene, proposals, ["blue", "red", "green"])
    assert ranked.query_index.tolist() == [0, 1, 1]
    assert ranked.proposal_index.tolist() == [2, 0, 1]
    assert (ranked.confidence > 0.5).all()
    assert (np.diff(ranked.confidence[1:]) <= 0).all()
    assert (ranked.presence >= ranked.agreement).all()


def test_short_list_limits_what_is_embedded(scene, proposals):
    class Counting(ColourWords):
        embedded = 0

        def encode(self, texts_or_image, masks=None, **kwargs):
            self.embedded += 0 if masks is None else len(masks)
            return super().encode(texts_or_image, masks, **kwargs)

    words = Counting()
    options = RankingOptions(logit_scale=20.0, short_list=2)
    ranked = rank_proposals(scene[0], proposals, words, words.encode(["blue"]), words.encode(["background"]), options)
    assert ranked.proposal_index.tolist() == [2]
    assert words.embedded == 2


def test_negative_text_wins_what_fits_it_better(scene, proposals):
    assert len(rank(scene, proposals, ["red"], others=["red"], threshold=0.0).query_index) == 0


def test_threshold_and_max_instances(scene, proposals):
    assert rank(scene, proposals, ["red"], max_instances=1).proposal_index.tolist() == [0]
    assert len(rank(scene, proposals, ["red"], threshold=1.0).query_index) == 0


def test_no_proposals(scene):
    empty = {"predicted_iou": np.zeros(0), "stability_score": np.zeros(0)}
    none = to_detections(np.zeros((0, 120, 160), bool), confidence=np.zeros(0), data=empty)
    ranked = rank(scene, none, ["red"])
    assert ranked.query_index.shape == ranked.confidence.shape == (0,)


def test_pooling_is_the_mean_inside(scene):
    _, masks = scene
    dense = torch.nn.functional.normalize(torch.rand(5, 120, 160), dim=0)
    expected = torch.stack([dense[:, torch.from_numpy(mask)].mean(1) for mask in masks])
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(pool_features(dense, masks), expected, rtol=1e-4, atol=1e-5)


def test_softmax_by_hand():
    embeddings, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    expected = torch.softmax(torch.tensor([[1.0, 0.6], [0.0, 0.8]]) * 5, dim=1)[:, 0]
    torch.testing.assert_close(softmax_agreement(embeddings, texts, 1, 5.0), expected[None])
    loses = softmax_agreement(embeddings, texts, 1, 5.0, lose=True)
    torch.testing.assert_close(loses, torch.stack([expected[0], torch.tensor(0.0)])[None])


def test_small_masks_survive_shrinking():
    masks = np.zeros((2, 1000, 500), dtype=bool)
    masks[0, 7, 9] = True
    masks[1, 100:300, 100:300] = True
    small = shrink_masks(masks, 250)
    assert small.shape == (2, 250, 125)
    assert small[0].sum() == 1
    assert small[1].sum() == 50 * 50


def test_predictor_ranks_and_says_so_once(scene, proposals):
    """Without a trained text prompt: proposals of the set image are made once, the notice comes once."""
    image, masks = scene
    options = RankingOptions(logit_scale=20.0, guided=False)
    model = TextSam(tiny_model(clip_dim=4), ColourWords(), ColourWords(), ranking_options=options)
    model.set_image(image)
    made = []

    def generate(encoded, options):
        assert options is None
        made.append(encoded)
        return proposals

    model._ranker.generate = generate
    with pytest.warns(UserWarning, match="text prompt is not trained") as notices:
        found = model.predict(text=["red", "blue"], return_logits=True)
    assert notices[0].filename == __file__
    np.testing.assert_array_equal(found.mask, masks[[0, 1, 2]])
    assert found.data["class_name"].tolist() == ["red", "red", "blue"]
    assert found.class_id.tolist() == [0, 0, 1]
    assert found.data["low_res_logits"].shape == (3, 32, 32)
    assert {"predicted_iou", "stability_score", "presence", "agreement", "prompt_index"} <= set(found.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(model.predict(text="blue", negative_text="red")) == 1
        red, blue, green = model.presence(None, ["red", "blue", "green"])
    assert green < 0.2 < 0.8 < min(red, blue)
    assert len(made) == 1


def test_text_beside_geometry_only_names_without_training(scene):
    """A random text token would spoil SAM's masks: it is left out, and the encoder is never made."""
    model = TextSam(tiny_model(), lambda: pytest.fail("the encoder of words was made"))
    plain = model.predict(scene[0], points=[[30, 30]])
    with pytest.warns(UserWarning, match="only names the results") as notices:
        named = model.predict(scene[0], points=[[30, 30]], text="red")
    assert notices[0].filename == __file__
    np.testing.assert_array_equal(named.mask, plain.mask)
    assert named.data["class_name"].tolist() == ["red"]


def test_generic_names_are_not_asked_for_twice(scene, proposals):
    """A text that is itself a generic name is not its own rival."""
    words = ColourWords()
    model = TextSam(tiny_model(clip_dim=4), words, words)
    assert len(model._ranker.rivals(["Grass"], [])) == len(BACKGROUND_TEXTS) - 1
    assert len(model._ranker.rivals(["cat"], ["dog"])) == len(BACKGROUND_TEXTS) + 1


# -- guided proposals ------------------------------------------------------------------------------------------------


def test_points_lie_on_what_the_words_name(scene):
    image, masks = scene
    words = ColourWords()
    maps = word_maps(words.dense(image), words.encode(["red", "blue"]), words.encode(["grey"]), logit_scale=20.0)
    assert maps.shape == (2, 30, 40)
    for query, discs in ((0, masks[:2]), (1, masks[2:])):
        points = guiding_points(maps[[query]], least=0.5, most=8) * (160, 120)
        x, y = points.astype(int).T
        assert binary_dilation(discs.any(0), iterations=4)[y, x].all()  # a cell of 4 px may reach over the edge
        assert all(disc[y, x].any() for disc in discs)
        assert len(points) <= 16
        assert len(np.unique(points, axis=0)) == len(points)
    assert len(guiding_points(maps[:0], 0.5, 8)) == 0


def test_a_text_that_is_nowhere_is_asked_for_at_its_best_place(scene):
    """Whoever asks for instances of low confidence gets one to judge."""
    words = ColourWords()
    maps = word_maps(words.dense(scene[0]), words.encode(["green"]), words.encode(["red", "grey"]), logit_scale=20.0)
    assert maps.max() < 0.5
    assert len(guiding_points(maps, least=0.5, most=8)) == 1


def test_guided_words_ask_few_points(scene):
    """The decoder is asked where the words are, and the ranking that follows is the same."""
    image, masks = scene
    model = TextSam(
        tiny_model(clip_dim=4), ColourWords(), ColourWords(), ranking_options=RankingOptions(logit_scale=20.0)
    )
    model.set_image(image)
    asked = []

    def generate(encoded, options):
        (points,) = options.point_grids
        x, y = (points * (160, 120)).astype(int).T
        asked.append(points)
        hit = [mask for mask in masks if mask[y, x].any()]
        scores = np.full(len(hit), 0.9, np.float32)
        data = {"predicted_iou": scores, "stability_score": scores}
        return to_detections(np.array(hit).reshape(-1, 120, 160), confidence=scores, data=data)

    model._ranker.generate = generate
    with pytest.warns(UserWarning, match="text prompt is not trained"):
        found = model.predict(text="red")
    np.testing.assert_array_equal(found.mask, masks[:2])
    np.testing.assert_array_equal(model.predict(text="blue").mask, masks[2:])
    assert [len(points) < 40 for points in asked] == [True, True]


def test_guided_words_end_to_end(scene):
    """With a real decoder of random weights: whatever comes is in the shape that it should be."""
    options = RankingOptions(logit_scale=20.0, guided_iou=-10.0, guided_stability=0.0)
    model = TextSam(tiny_model(clip_dim=4), ColourWords(), ColourWords(), ranking_options=options)
    with pytest.warns(UserWarning, match="text prompt is not trained"):
        found = model.predict(scene[0], text=["red", "blue"], threshold=0.0)
    assert found.mask.shape[1:] == (120, 160)
    assert set(found.class_id.tolist()) <= {0, 1}


def test_presence_where_nothing_was_proposed(scene):
    options = RankingOptions(logit_scale=20.0, guided_iou=1e9)
    model = TextSam(tiny_model(clip_dim=4), ColourWords(), ColourWords(), ranking_options=options)
    with pytest.warns(UserWarning, match="text prompt is not trained"):
        assert model.presence(scene[0], ["red", "blue"]).tolist() == [0.0, 0.0]
    assert len(model.predict(scene[0], text="red")) == 0
