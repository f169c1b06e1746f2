"""The same numbers as the original SAM, stage by stage, on random weights; and as transformers' port of it.

The original's numbers are in golden/original_sam.safetensors, which golden/make_golden.py made with its code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import SIDE, randomize, tiny_transformers_sam
from torch import Tensor

from textsam.checkpoints.conversion import config_from_transformers, convert_transformers_state_dict
from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.structures import ImageEmbeddings, PromptEmbeddings

pytestmark = pytest.mark.usefixtures("way")
GOLDEN = Path(__file__).parent / "golden" / "original_sam.safetensors"
CASES = ["points", "box", "mask", "points_box", "points_box_mask"]
PROMPTS = ("point_coords", "point_labels", "boxes", "mask_input")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def load_sam_weights(model: TextSamModel, weights: dict[str, Tensor]) -> TextSamModel:
    """Everything but what text adds comes from `weights`; what text adds is random and must not matter."""
    randomize(model, seed=5)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert sorted(missing) == sorted(model.text_parameter_names())
    assert not unexpected
    return model.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.fixture(scope="module")
def ours(golden: dict[str, Tensor]) -> TextSamModel:
    with safe_open(GOLDEN, framework="pt") as file:
        config = TextSamConfig(clip_dim=24, **json.loads(file.metadata()["config"]))
    weights = {name.removeprefix("weights/"): t.float() for name, t in golden.items() if name.startswith("weights/")}
    return load_sam_weights(TextSamModel(config), weights)


@pytest.fixture(scope="module")
def image(golden: dict[str, Tensor], ours: TextSamModel) -> ImageEmbeddings:
    """The original's embedding, so that the later stages are compared on their own."""
    side = ours.config.image_size
    return ImageEmbeddings(golden["image_embeddings"], (side, side))


def prompts_of(golden: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    return {name: golden[f"{case}/{name}"] for name in PROMPTS if f"{case}/{name}" in golden}


@pytest.mark.parametrize("grad", [True, False])
def test_image_encoder(golden: dict[str, Tensor], ours: TextSamModel, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        embeddings = ours.encode_image(golden["pixels_times_64"] / 64).image_embeddings
    assert embeddings.requires_grad == grad
    assert relative_error(embeddings.detach(), golden["image_embeddings"]) < 1e-5


@torch.no_grad()
def test_position_encoding_of_the_grid(golden: dict[str, Tensor], ours: TextSamModel) -> None:
    h, w = golden["image_pe"].shape[-2:]
    assert relative_error(ours.prompt_encoder.pe_layer((h, w))[None], golden["image_pe"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_prompt_encoder(golden: dict[str, Tensor], ours: TextSamModel, image: ImageEmbeddings, case: str) -> None:
    prompts = ours.encode_prompts(image, **prompts_of(golden, case))
    sparse = golden[f"{case}/sparse"]
    assert prompts.sparse_prompt_embeddings.shape == sparse.shape
    if sparse.numel():
        assert relative_error(prompts.sparse_prompt_embeddings, sparse) < 1e-5
    if "mask" in case:
        assert relative_error(prompts.dense_prompt_embeddings, golden[f"{case}/dense"]) < 1e-5
    else:  # one map for all prompts, not one each
        assert prompts.dense_prompt_embeddings.shape[0] == 1


@pytest.mark.parametrize("kind", ["multi", "single"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_mask_decoder(
    golden: dict[str, Tensor], ours: TextSamModel, image: ImageEmbeddings, case: str, kind: str
) -> None:
    no_mask = golden["weights/prompt_encoder.no_mask_embed.weight"].float().reshape(1, -1, 1, 1)
    dense = golden.get(f"{case}/dense", no_mask.expand(-1, -1, *image.image_embeddings.shape[-2:]))
    masks = ours.decode_masks(
        image, PromptEmbeddings(golden[f"{case}/sparse"], dense), multimask_output=kind == "multi"
    )
    assert relative_error(masks.low_res_logits, golden[f"{case}/{kind}_logits"]) < 1e-5
    assert relative_error(masks.iou_predictions, golden[f"{case}/{kind}_iou"]) < 1e-5
    assert masks.presence_logits is None


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_whole(golden: dict[str, Tensor], ours: TextSamModel, case: str) -> None:
    masks = ours(golden["pixels_times_64"] / 64, **prompts_of(golden, case), multimask_output=True)
    assert relative_error(masks.low_res_logits, golden[f"{case}/multi_logits"]) < 5e-5  # the decoder amplifies
    assert relative_error(masks.iou_predictions, golden[f"{case}/multi_iou"]) < 5e-5


def transformers_pair(sam: Any) -> TextSamModel:
    """Our model with the weights of a transformers `SamModel`."""
    config = config_from_transformers(sam.config.to_dict())
    return load_sam_weights(TextSamModel(config), convert_transformers_state_dict(sam.state_dict(), config))


def compare_with_transformers(sam: Any, side: int) -> None:
    """Encoder and decoder, each on its own: with random weights a decoder may amplify the encoder's last bits."""
    model = transformers_pair(sam)
    generator = torch.Generator().manual_seed(3)
    pixel_values = torch.randn(1, 3, side, side, generator=generator)
    points = torch.rand(2, 3, 2, generator=generator) * side
    labels = torch.tensor([[1, 0, 1], [1, 1, 0]])
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.3, 0.1, 0.9, 0.5]]) * side
    low_res = torch.randn(1, 1, side // 4, side // 4, generator=generator)

    embeddings = sam.get_image_embeddings(pixel_values)
    image = model.encode_image(pixel_values)
    assert relative_error(image.image_embeddings, embeddings) < 1e-5

    shared = ImageEmbeddings(embeddings, image.input_size)
    both = {"point_coords": points, "point_labels": labels, "boxes": boxes}
    cases = [
        {"point_coords": points, "point_labels": labels},
        {"boxes": boxes},
        both,
        {name: tensor[:1] for name, tensor in both.items()} | {"mask_input": low_res},
    ]
    for prompts in cases:
        theirs = sam(
            image_embeddings=embeddings,
            input_points=prompts["point_coords"][None] if "point_coords" in prompts else None,
            input_labels=prompts["point_labels"][None] if "point_labels" in prompts else None,
            input_boxes=prompts["boxes"][None] if "boxes" in prompts else None,
            input_masks=prompts.get("mask_input"),
            multimask_output=True,
        )
        masks = model.decode_masks(shared, model.encode_prompts(shared, **prompts), multimask_output=True)
        # transformers has eps 1e-6 in the decoder's LayerNorms, the original 1e-5.
        assert relative_error(masks.low_res_logits, theirs.pred_masks[0]) < 5e-4, list(prompts)
        assert relative_error(masks.iou_predictions, theirs.iou_scores[0]) < 5e-4, list(prompts)


@torch.no_grad()
def test_transformers() -> None:
    compare_with_transformers(tiny_transformers_sam(seed=1), SIDE)


@pytest.mark.slow
@torch.no_grad()
def test_transformers_vit_b_at_1024() -> None:
    from transformers import SamConfig, SamModel

    compare_with_transformers(randomize(SamModel(SamConfig()), seed=2), 1024)
