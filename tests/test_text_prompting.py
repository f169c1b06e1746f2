"""Text alone on a scene whose truth is known: a model that finds coloured squares stands in for a trained one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniatures import HashedWords, mobile_miniature
from torch.nn import functional as F

from textsam.modeling.structures import ImageEmbeddings, MaskPredictions
from textsam.prompting.text_guesses import find_peaks, grid_points, guess_prompts
from textsam.prompting.text_instances import TextReading, clear_padding, mask_agreement
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.text_prompting import find_instances
from textsam.prompting.text_reading import read_texts
from textsam.prompting.text_regions import find_regions
from textsam.prompting.transforms import ImageGeometry

SIDE = 64
GEOMETRY = ImageGeometry.of((48, 64), SIDE)  # the lowest quarter of the input is padding
RED, BLUE, GREEN = torch.eye(3)
# Squares on the 16 x 16 low-resolution grid: (x1, y1, x2, y2, colour). The first two touch.
SQUARES = [(1, 1, 5, 5, 0), (5, 1, 9, 5, 0), (10, 6, 15, 11, 0), (1, 7, 5, 11, 1)]


class SquaresModel:
    """Answers a point with the square below it, and with that square's left half as a second mask; a box with all
    squares that lie in it, of low predicted IoU when that is more than one square. Text is the colour: anything of
    another colour gets a low predicted IoU, too."""

    config = SimpleNamespace(num_multimask_outputs=3, dense_text=False)

    def __init__(self, similarity_head: bool = True) -> None:
        self.similarity_head = similarity_head
        self.decoded = 0
        self.masks = torch.zeros(len(SQUARES), 16, 16, dtype=torch.bool)
        for mask, (x1, y1, x2, y2, _) in zip(self.masks, SQUARES, strict=True):
            mask[y1:y2, x1:x2] = True
        self.colours = torch.tensor([square[4] for square in SQUARES])

    def encode_image(self) -> ImageEmbeddings:
        return ImageEmbeddings(torch.zeros(1, 4, 4, 4), (SIDE, SIDE))

    def text_similarity(self, image, text_embeddings):
        if not self.similarity_head:
            return None
        maps = torch.full((1, len(text_embeddings), 16, 16), -4.0)
        for query, text in enumerate(text_embeddings):
            for mask, colour in zip(self.masks, self.colours, strict=True):
                maps[0, query][mask] = torch.maximum(maps[0, query][mask], (12 * text[colour] - 6))
        return F.interpolate(maps, (8, 8), mode="area")

    def encode_prompts(self, image, *, text_embeddings, point_coords=None, point_labels=None, boxes=None):
        return SimpleNamespace(text=text_embeddings, points=point_coords, boxes=boxes)

    def decode_masks(self, image, prompts, *, multimask_output):
        rows = []
        for index, text in enumerate(prompts.text):
            self.decoded += 1
            whole = torch.zeros(16, 16, dtype=torch.bool)
            if prompts.points is not None:
                x, y = (prompts.points[index, 0] / 4).long().clamp(max=15)
                whole = next((mask for mask in self.masks if mask[y, x]), whole)
            elif prompts.boxes is not None:
                x1, y1, x2, y2 = (prompts.boxes[index] / 4).round().long()
                covered = self.masks[:, y1:y2, x1:x2].flatten(1).sum(1) >= 0.5 * self.masks.flatten(1).sum(1)
                whole = self.masks[covered].any(0)
            else:
                whole = (self.masks * text[self.colours][:, None, None]).sum(0) > 0.5
            half = whole & (torch.arange(16) < torch.nonzero(whole)[:, 1].float().mean().nan_to_num())
            good = (whole * (self.masks * text[self.colours][:, None, None]).sum(0)).sum() / whole.sum().clamp(min=1)
            good = good / max(int((self.masks & whole).flatten(1).any(1).sum()), 1)
            rows.append((whole, half, good))
        masks = torch.stack([torch.stack([whole, half, torch.zeros_like(whole)]) for whole, half, _ in rows])
        iou = torch.stack([torch.stack([0.1 + 0.8 * good, 0.7 * good, good * 0]) for _, _, good in rows])
        presence = torch.stack([6 * (text[self.colours].max() > 0.5) - 3.0 for text in prompts.text])
        kept = slice(0, 3 if multimask_output else 1)
        return MaskPredictions(masks[:, kept] * 20.0 - 10.0, iou[:, kept], presence)


def find(model, texts, negatives=None, **kwargs):
    options = kwargs.pop("options", TextPromptOptions())
    return find_instances(model, model.encode_image(), GEOMETRY, torch.stack(texts), negatives, options, **kwargs)


def found_squares(model, instances) -> list[int]:
    """The number of the square that each instance is, exactly."""
    masks = instances.low_res_logits > 0
    return [next(i for i, square in enumerate(model.masks) if (square == mask).all()) for mask in masks]


@pytest.mark.parametrize("similarity_head", [True, False])
@pytest.mark.parametrize("use_boxes", [True, False])
def test_every_instance_of_each_text_once(similarity_head, use_boxes):
    """Touching squares come apart, each square comes once and whole, and a colour that is absent gives nothing."""
    model = SquaresModel(similarity_head)
    options = TextPromptOptions(use_boxes=use_boxes, grid_points_per_side=16, share_of_best=0.5)
    instances = find(model, [RED, GREEN, BLUE], options=options)
    assert instances.query_index.tolist() == [0, 0, 0, 2]
    assert sorted(found_squares(model, instances)[:3]) == [0, 1, 2]
    assert found_squares(model, instances)[3] == 3
    assert (instances.confidence > 0.4).all()
    assert (instances.confidence <= 1).all()


def test_an_absent_text_costs_no_guess():
    model = SquaresModel()
    assert len(find(model, [GREEN])) == 0
    assert model.decoded == 1  # its presence alone


def test_a_negative_text_takes_what_fits_it_better():
    model = SquaresModel()
    both = F.normalize(RED + 0.9 * BLUE, dim=0)
    assert set(found_squares(model, find(model, [both], threshold=0.1))) == {0, 1, 2, 3}
    negative = F.normalize(0.2 * RED + BLUE, dim=0)[None]
    assert set(found_squares(model, find(model, [both], negative, threshold=0.1))) == {0, 1, 2}


def test_one_mask_has_one_name():
    """Two texts that both fit the red squares: the one that fits better has them, unless all are asked for."""
    model, nearly = SquaresModel(), F.normalize(RED + 0.3 * GREEN, dim=0)
    best = find(model, [nearly, RED], threshold=0.3)
    assert set(best.query_index.tolist()) == {1}
    every = find(model, [nearly, RED], threshold=0.3, options=TextPromptOptions(same_mask_iou=1.0))
    assert len(every) == 2 * len(best)
    twice = find(model, [RED, RED + 1e-6 * GREEN], threshold=0.3)  # two spellings
    assert set(twice.query_index.tolist()) == {0}
    assert len(twice) == len(best)


def test_max_instances_and_threshold():
    model = SquaresModel()
    every = find(model, [RED, BLUE])
    few = find(model, [RED, BLUE], max_instances=2)
    assert few.query_index.tolist() == [0, 0, 1]
    torch.testing.assert_close(few.confidence[:2], every.confidence[:2])
    none = find(model, [RED, BLUE], threshold=1.0)
    assert len(none) == 0
    assert none.low_res_logits.shape == (0, 16, 16)


def test_what_is_faint_beside_the_best_of_its_text_is_asked_for_by_a_threshold():
    model = SquaresModel()
    every = find(model, [RED, BLUE], threshold=TextPromptOptions().confidence_threshold)
    best = every.confidence[every.query_index == 0].max()
    weakest = every.confidence[every.query_index == 0].min() / best
    assert weakest < 1
    for share in (weakest - 0.01, weakest + 0.01):
        found = find(model, [RED, BLUE], options=TextPromptOptions(share_of_best=float(share)))
        expected = (every.query_index == 1) | (every.confidence >= share * best)
        torch.testing.assert_close(found.confidence, every.confidence[expected])
    assert len(found) < len(every)


def test_presence_orders_texts():
    texts = torch.stack([GREEN, RED])
    for head in (True, False):
        model = SquaresModel(similarity_head=head)
        absent, present = read_texts(model, model.encode_image(), GEOMETRY, texts).presence.tolist()
        assert 0 <= absent < 0.3 < 0.9 < present <= 1
        assert read_texts(model, model.encode_image(), GEOMETRY, texts[:0]).presence.shape == (0,)


@torch.no_grad()
def test_many_texts_are_read_a_few_at_a_time(monkeypatch):
    """With the same result: the number in one call bounds the memory."""
    model = mobile_miniature(seed=2)
    side = model.config.image_size
    image = model.encode_image(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))
    texts, geometry = HashedWords().encode(["cat", "dog", "cup", "zebra", "person"]), ImageGeometry.of((90, 120), side)
    expected = read_texts(model, image, geometry, texts)
    counts = []

    def decode_masks(image, prompts, **options):
        counts.append(len(prompts.sparse_prompt_embeddings))
        return type(model).decode_masks(model, image, prompts, **options)

    monkeypatch.setattr("textsam.prompting.text_reading.PROMPTS_PER_BATCH", 2)
    monkeypatch.setattr(model, "decode_masks", decode_masks)
    found = read_texts(model, image, geometry, texts)
    assert counts == [2, 2, 1]
    for name, value in vars(expected).items():
        torch.testing.assert_close(vars(found)[name], value, rtol=1e-4, atol=1e-4)


def test_guesses_are_peaks_and_boxes_of_regions():
    probability = np.zeros((8, 8), dtype=np.float32)
    probability[1:3, 1:3] = 0.8
    probability[1, 2] = 0.9
    probability[5, 5:8] = 0.7  # a plateau: its middle counts
    options = TextPromptOptions(points_per_side=2, min_region=1, peak_radius=1, use_boxes=True)
    points, boxes = guess_prompts(probability, GEOMETRY, options)
    assert points[:2].tolist() == [[20.0, 12.0], [52.0, 44.0]]  # centres of the cells (1, 2) and (5, 6), 8 px each
    assert boxes.tolist() == [[8.0, 8.0, 24.0, 24.0], [40.0, 40.0, 64.0, 48.0]]
    dense, _ = guess_prompts(probability, GEOMETRY, TextPromptOptions(points_per_side=8, peak_radius=1))
    assert [12.0, 12.0] in dense.tolist()
    few, _ = guess_prompts(probability, GEOMETRY, TextPromptOptions(points_per_side=8, peak_radius=1, max_points=1))
    assert few.tolist() == [[20.0, 12.0]]


def test_a_plateau_is_one_peak_and_the_highest_counts_always():
    probability = np.zeros((6, 9), dtype=np.float32)
    probability[1, 1:6] = 0.4
    probability[4, 8] = 0.3
    rows, columns = find_peaks(probability, threshold=0.2, radius=1)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(1, 3), (4, 8)]
    rows, columns = find_peaks(probability, threshold=0.9, radius=1)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(1, 3)]


def test_a_region_that_fills_the_photo_is_covered():
    points, boxes = guess_prompts(
        np.ones((8, 8), np.float32), GEOMETRY, TextPromptOptions(points_per_side=4, use_boxes=True)
    )
    assert boxes.tolist() == [[0.0, 0.0, 64.0, 48.0]]
    assert {tuple(point) for point in grid_points(GEOMETRY, 4)} <= {tuple(point) for point in points}


def test_grid_is_regular_and_inside():
    points = grid_points(GEOMETRY, 4)
    assert points.shape == (12, 2)
    assert points[0].tolist() == [8.0, 8.0]
    assert points[-1].tolist() == [56.0, 40.0]
    assert grid_points(ImageGeometry.of((1, 1000), 64), 8).shape == (8, 2)


def test_agreement_prefers_the_whole():
    probability = torch.zeros(8, 8)
    probability[2:6, 2:6] = 1.0
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[0, 4:12, 4:12] = True  # the whole
    masks[1, 4:12, 4:8] = True  # half of it
    masks[2, 0:16, 0:16] = True  # everything
    whole, half, everything, empty = mask_agreement(masks, probability, 0.5).tolist()
    assert whole > 0.8
    assert half < whole
    assert everything == pytest.approx(0.25, abs=0.01)
    assert empty == 0.0


def test_padding_is_cleared():
    maps = clear_padding(torch.ones(2, 16, 16), GEOMETRY, fill=-1.0)
    assert maps[:, :12].min() == 1.0
    assert maps[:, 12:].max() == -1.0


@pytest.mark.parametrize(("iou", "least"), [(1.0, 0.5), (0.5, 1 / 3), (0.01, 0.1 / 1.1)])
def test_a_region_is_cut_where_its_expected_overlap_is_largest(iou, least):
    """At a probability of I / (1 + I): half the F1 that is expected, one half for a sure mask."""
    probability = torch.linspace(0.02, 0.98, 256).view(16, 16).T  # its lowest quarter lies in the padding
    reading = TextReading(torch.tensor([0.9]), probability.logit()[None], torch.tensor([iou]), None)
    found = find_regions(reading, 0, GEOMETRY, TextPromptOptions(min_region=1))
    assert len(found) == 1
    torch.testing.assert_close(found.low_res_logits[0, :12] > 0, probability[:12] > least)
