"""What the ImageNet classifier teaches: its names are known ones, and which of them fits best is learned."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import textsam
from textsam.language.vocabulary import Vocabulary
from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.mobile_encoder import MobileNetV2
from train.data import Sample
from train.embedding_table import EmbeddingTable
from train.imagenet_teacher import CLASSES, SURE, ImageNetTeacher, classes_by_name, distillation_loss
from train.step import TextSamStep

SIZE = 96


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A classifier with a background class that calls everything a zebra, or else a cat."""
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in MobileNetV2(with_head=True).state_dict().items()}
    bias = torch.zeros(1 + CLASSES)
    bias[1 + 340], bias[1 + 281], bias[1 + 285] = 9.0, 8.0, 7.5
    state |= {"classifier.weight": torch.zeros(1 + CLASSES, 1280), "classifier.bias": bias}
    save_file(state, tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


def test_classes_have_one_known_name_each() -> None:
    by_name = classes_by_name()
    numbers = [number for classes in by_name.values() for number in classes]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) <= set(range(CLASSES))
    folder = Path(textsam.__file__).parent / "weights/textsam-tiny/text_encoder"
    assert set(by_name) <= set(Vocabulary.load(folder / "vocabulary.json").names)
    assert by_name["zebra"] == [340]
    assert len(by_name["dog"]) == 118


def test_a_name_is_as_likely_as_the_likeliest_of_its_classes(weights: Path) -> None:
    teacher = ImageNetTeacher(weights, {"cat": 5, "zebra": 2, "dog": 3})
    assert teacher.names == [3, 5, 2]  # in the order of the classes
    taught = teacher(torch.zeros(2, 3, 64, 96))
    assert taught.shape == (2, 3, 2, 3)
    whole = math.exp(9) + math.exp(8) + math.exp(7.5) + CLASSES - 2
    expected = torch.tensor([0.0, math.exp(8) / whole, math.exp(9) / whole])  # "dog" is unlikely, so 0
    assert expected[1] > SURE
    torch.testing.assert_close(taught, expected[None, :, None, None].expand_as(taught))


def test_distillation_by_hand() -> None:
    logits, taught = torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert distillation_loss(logits, taught).item() == pytest.approx(math.log(3))  # where nothing is sure counts not
    assert distillation_loss(logits, 0 * taught).item() == 0.0


def test_a_step_learns_what_the_teacher_sees(weights: Path) -> None:
    """Of a picture of which nothing else is known."""
    sizes = {"prompt_dim": 32, "decoder_heads": 4, "decoder_mlp_dim": 32, "iou_head_hidden": 16, "clip_dim": 8}
    torch.manual_seed(0)
    config = TextSamConfig.tiny(image_size=SIZE, similarity_dim=16, text_trained=True, image_presence=True, **sizes)
    names = F.normalize(torch.randn(3, 8), dim=-1)
    teacher = ImageNetTeacher(weights, {"cat": 0, "dog": 1, "zebra": 2})
    step = TextSamStep(TextSamModel(config), EmbeddingTable(names), teacher=teacher)
    cell, nothing = SIZE // 4, torch.zeros(0, dtype=torch.int64)
    sample = Sample(
        torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8),
        torch.zeros(0, cell, cell), torch.zeros(0, 4), torch.zeros(0, 2), nothing, [],
        absent=nothing, weights=torch.ones(cell, cell),
    )  # fmt: skip
    optimizer, losses = torch.optim.Adam(step.model.parameters(), 3e-3), []
    for _ in range(12):
        results = step([sample, sample], torch.Generator().manual_seed(0))
        assert set(results) == {"taught"}
        results["taught"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(results["taught"].item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        image = step.model.encode_image(torch.zeros(1, 3, SIZE, SIZE))
        zebra_first = step.model.text_similarity(image, names)[0].mean((1, 2)).tolist()
    assert zebra_first[2] > zebra_first[0] > zebra_first[1]
    assert not any("teacher" in name for name, _ in step.named_parameters())  # it does not train, nor is it stored
