"""The eleven rounds of Segment Anything's training, and its losses, against values by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_model

from textsam.modeling.image_encoder import Block
from textsam.modeling.layers import drop_path
from textsam.modeling.structures import ImageEmbeddings, MaskPredictions
from train.interactive import click_rounds, uniform_error_clicks
from train.losses import iou_loss, lowest_loss, sam_mask_loss
from train.sam_step import SamStep, StepOptions
from train.samples import empty_sample

SIZE = 64


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)]]])  # probabilities 0.5 and 0.75
    targets, weights = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, 2)
    focal = (0.25 * 0.25 * math.log(2) + 0.75 * 0.5625 * math.log(4)) / 2
    dice = 1 - 2.0 / 3.25
    assert sam_mask_loss(logits, targets, weights).item() == pytest.approx(20 * focal + dice)
    error = iou_loss(torch.tensor([[0.5, 1.0, 0.0]]), torch.tensor([[0.75, 0.5, 0.0]]))
    assert error.item() == pytest.approx((0.0625 + 0.25) / 3)


def test_only_the_lowest_loss_gets_a_gradient() -> None:
    losses = torch.tensor([[3.0, 1.0, 2.0], [0.5, 4.0, 0.7]], requires_grad=True)
    lowest = lowest_loss(losses)
    assert lowest.tolist() == [1.0, 0.5]
    lowest.sum().backward()
    assert losses.grad.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_eleven_rounds() -> None:
    generator, places = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        rounds = click_rounds(8, generator)
        assert len(rounds) == 10
        assert sum(rounds) == 8
        assert rounds[-1] is False
        assert rounds[-2] is True  # the other round without a click is among the clicks
        places.add(rounds.index(False))
    assert places == set(range(8))


def test_error_clicks_are_uniform_in_the_error() -> None:
    targets = torch.zeros(1, 8, 8)
    targets[0, 2:4, 2:4] = 1
    logits = torch.where(targets > 0, 1.0, -1.0)
    logits[0, 3, 2:4] = -1.0  # two cells missed
    logits[0, 7, 7] = 1.0  # one too many
    count = 3000
    draws = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
    many = (value.expand(count, -1, -1) for value in (logits, targets, torch.ones(1, 8, 8)))
    coords, labels = uniform_error_clicks(*many, 4, draws)
    cells = ((coords[:, 0] + 0.5) // 4).long()
    found = {tuple(cell.tolist()): int(((cells == cell).all(1)).sum()) for cell in cells.unique(dim=0)}
    assert set(found) == {(2, 3), (3, 3), (7, 7)}
    assert all(number == pytest.approx(1000, rel=0.15) for number in found.values())
    assert labels[:, 0].tolist() == [int(cell[1] == 3) for cell in cells.tolist()]


def test_clicks_where_there_is_no_error_fall_on_the_mask_and_never_where_nothing_is_known() -> None:
    targets = torch.zeros(2, 4, 4)
    targets[:, 1, 1] = 1
    logits = torch.where(targets > 0, 1.0, -1.0)
    weights = torch.ones(2, 4, 4)
    logits[1, 3, 3], weights[1, 3, 3] = 1.0, 0.0
    coords, labels = uniform_error_clicks(logits, targets, weights, 4, torch.full((2, 3), 0.999))
    assert ((coords >= 3.5) & (coords <= 8)).all()
    assert labels.tolist() == [[1], [1]]


class Recorder:
    """Stands in for a model: notes what it is asked, and answers with masks whose values say which they are."""

    device = torch.device("cpu")
    config = SimpleNamespace(clip_dim=4, dense_text=False, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)

    def __init__(self) -> None:
        self.asked: list[dict] = []

    def encode_image(self, pixels):
        return ImageEmbeddings(torch.zeros(len(pixels), 4, 4, 4), (SIZE, SIZE))

    def encode_prompts(self, image, **prompts):
        self.asked.append(prompts)
        return prompts

    def decode_masks(self, image, prompts, *, multimask_output, image_index):
        count, number = len(image_index), len(self.asked)
        logits = (torch.arange(4.0) + 10 * number)[None, :, None, None].expand(count, 4, 16, 16).clone()
        iou = torch.tensor([0.9, 0.1, 0.8, 0.3]).expand(count, 4).clone()
        presence = torch.zeros(count) if prompts["text_embeddings"] is not None else None
        return MaskPredictions(logits.requires_grad_(), iou.requires_grad_(), presence)


def one_object():
    sample = empty_sample(SIZE)
    sample.masks = torch.zeros(1, 16, 16)
    sample.masks[0, 4:8, 4:8] = 1
    sample.boxes, sample.clicks = torch.tensor([[16.0, 16, 32, 32]]), torch.tensor([[20.0, 20]])
    sample.keys, sample.labels = [("set", "1")], ["thing"]
    return sample


def step_with(model, **options) -> SamStep:
    step = SamStep.__new__(SamStep)
    torch.nn.Module.__init__(step)
    object.__setattr__(step, "model", model)
    step.options, step.image_store, step._known_names = StepOptions(**options), None, {}
    step._frozen = [SimpleNamespace(embed=lambda sample: torch.eye(4)[: len(sample.masks)]), None]
    return step


@pytest.mark.parametrize("kind", ["box", "point", "crop"])
def test_what_each_round_is_asked(kind: str) -> None:
    sample, model = one_object(), Recorder()
    step = step_with(model, text_share=float(kind == "crop"))
    for sample.seed in range(20):  # a seed that draws this kind
        model.asked.clear()
        results = step([sample], torch.Generator().manual_seed(0))
        if f"_{kind}0" in results:
            break
    schedule = click_rounds(8, torch.Generator().manual_seed(0))
    assert len(model.asked) == 11
    first = model.asked[0]
    assert (first["boxes"] is not None, first["text_embeddings"] is not None) == (kind == "box", kind == "crop")
    assert (first["point_coords"] is not None) == (kind == "point")
    assert first["mask_input"] is None
    points = 1 if kind == "point" else 0
    for number, (asked, brings_click) in enumerate(zip(model.asked[1:], schedule, strict=True), start=1):
        points += brings_click
        found = 0 if asked["point_coords"] is None else asked["point_coords"].shape[1]
        assert found == points
        assert (asked["boxes"] is not None, asked["text_embeddings"] is not None) == (kind == "box", kind == "crop")
        # After the first round the mask of highest predicted IoU among masks 1 to 3, then always the single mask; as
        # logits, without a threshold.
        assert asked["mask_input"].unique().tolist() == [10.0 * number + (2 if number == 1 else 0)]
        assert not asked["mask_input"].requires_grad
        if brings_click:  # everything was taken for the mask: the click says that some of it is not, or else
            inside = (asked["point_coords"][0, -1] // 4).long()
            assert asked["point_labels"][0, -1] == sample.masks[0, inside[1], inside[0]]


def test_a_batch_without_a_mask_has_a_loss() -> None:
    model = tiny_model(image_size=SIZE)
    results = SamStep(model, StepOptions(clicks=1))([empty_sample(SIZE)], torch.Generator().manual_seed(0))
    loss = sum(value for name, value in results.items() if name[0] != "_")
    loss.backward()
    assert loss == 0


def test_drop_path_keeps_the_mean_and_is_off_in_use() -> None:
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 1, 1), 0.25)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    block = Block(16, 2, 2.0, True, 0, 4)
    x = torch.randn(2, 4, 4, 16)
    before = block(x)
    block.drop_path_rate = 0.9
    assert torch.equal(block.eval()(x), before)
    assert not torch.equal(block.train()(x), before)
