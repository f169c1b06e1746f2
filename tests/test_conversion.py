"""transformers' names and configurations to ours, and sizes from shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    assert_same,
    meta_state_dict,
    outputs,
    tiny_transformers_sam,
    transformers_outputs,
)

from textsam.checkpoints.conversion import (
    config_from_state_dict,
    config_from_transformers,
    convert_transformers_state_dict,
)
from textsam.checkpoints.loading import load_model
from textsam.config import NetworkConfig
from textsam.model import TextSamConfig, TextSamModel

SIZES = {"b": TextSamConfig.sam_vit_b, "l": TextSamConfig.sam_vit_l, "h": TextSamConfig.sam_vit_h}


@pytest.mark.parametrize(
    "decoder", [{}, {"iou_head_depth": 5, "iou_head_hidden_dim": 48}, {"num_multimask_outputs": 4}]
)
def test_conversion_covers_every_name_and_shape(decoder: dict[str, int]) -> None:
    sam = tiny_transformers_sam(**decoder)
    config = config_from_transformers(sam.config.to_dict())
    converted = convert_transformers_state_dict(sam.state_dict(), config)
    ours = meta_state_dict(TextSamModel(config))
    assert {name: t.shape for name, t in converted.items()} == {name: t.shape for name, t in ours.items()}
    # The positional matrix is the only tensor that transformers holds twice.
    assert len(sam.state_dict()) == len(converted) + 1
    assert vars(config_from_state_dict(converted)) == vars(config)


@pytest.mark.parametrize("shared", ["shared_image_embedding", "prompt_encoder.shared_embedding"])
def test_conversion_takes_the_positional_matrix_from_either_name(shared: str) -> None:
    sam = tiny_transformers_sam()
    config = config_from_transformers(sam.config.to_dict())
    state = {
        name: tensor
        for name, tensor in sam.state_dict().items()
        if not name.endswith("positional_embedding") or name.startswith(shared)
    }
    converted = convert_transformers_state_dict(state, config)
    matrix = converted["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert torch.equal(matrix, sam.shared_image_embedding.positional_embedding)


def test_conversion_refuses_two_different_positional_matrices() -> None:
    sam = tiny_transformers_sam()
    state = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    state["shared_image_embedding.positional_embedding"] += 1
    with pytest.raises(ValueError, match="two different values"):
        convert_transformers_state_dict(state, config_from_transformers(sam.config.to_dict()))


@pytest.mark.parametrize("size", SIZES)
def test_released_sizes_are_read_from_shapes_and_from_transformers_configs(size: str) -> None:
    from transformers import SamConfig

    expected = SIZES[size]()
    with torch.device("meta"):
        assert vars(config_from_state_dict(TextSamModel(expected).state_dict())) == vars(NetworkConfig.of(expected))
    vision = {
        "hidden_size": expected.encoder_width,
        "num_hidden_layers": expected.encoder_depth,
        "num_attention_heads": expected.encoder_heads,
        "global_attn_indexes": list(expected.global_attn_indexes),
    }
    whole = SamConfig(vision_config=vision).to_dict()
    short = {"model_type": "sam", "vision_config": vision}  # gaps are the defaults
    # Files of 2023 carry fields that transformers has dropped since.
    old = {"model_type": "sam", "vision_config": {**vision, "model_type": "", "projection_dim": 512, "num_beams": 1}}
    for written in (whole, short, old):
        assert vars(config_from_transformers(written)) == vars(NetworkConfig.of(expected))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "use_rel_pos", False),
        ("vision_config", "num_pos_feats", 64),
        ("vision_config", "image_size", [128, 256]),
        ("prompt_encoder_config", "image_size", 256),
        ("mask_decoder_config", "hidden_act", "gelu"),
    ],
)
def test_a_sam_variant_that_is_not_built_is_refused(section: str, key: str, value: Any) -> None:
    config = tiny_transformers_sam().config.to_dict()
    config[section][key] = value
    with pytest.raises(ValueError, match=key):
        config_from_transformers(config)


def test_transformers_folder_gives_transformers_masks(tmp_path: Path) -> None:
    sam = tiny_transformers_sam()
    sam.save_pretrained(tmp_path / "sam")
    ours = load_model(tmp_path / "sam", device="cpu", dtype="float32")
    # The decoder's LayerNorm has eps 1e-5 in the original, which ours follows, and 1e-6 in transformers.
    assert_same(outputs(ours), transformers_outputs(sam), rtol=5e-4, atol=5e-4)
    assert not ours.config.text_trained
