"""Random models small enough for a test, ours and transformers', with nothing left at zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

SIDE = 128  # px, of the encoder's input


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills every parameter and buffer, so that no bias or relative position is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            scale = 1.0 if tensor.ndim < 2 or "embed" in name else tensor[0].numel() ** -0.5
            noise = torch.randn(tensor.shape, generator=generator) * scale
            tensor.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.5 * noise)
    return model.eval()


def tiny_model(seed: int = 0, **config: Any) -> Any:
    """A `TextSamModel` of 2 blocks, one windowed and one global; `config` overrides its sizes."""
    from textsam.model import TextSamConfig, TextSamModel

    sizes: dict[str, Any] = {
        "image_size": SIDE,
        "encoder_width": 32,
        "encoder_depth": 2,
        "encoder_heads": 2,
        "window_size": 3,
        "global_attn_indexes": (1,),
        "decoder_mlp_dim": 64,
        "clip_dim": 48,
    }
    return randomize(TextSamModel(TextSamConfig(**{**sizes, **config})), seed)


def tiny_transformers_sam(seed: int = 0, **decoder: Any) -> Any:
    """transformers' `SamModel` of the same sizes; `decoder` overrides sizes of its mask decoder."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        window_size=3,
        global_attn_indexes=[1],
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(image_size=SIDE).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(**{"mlp_dim": 64, **decoder}).to_dict(),
    )
    return randomize(SamModel(config), seed)


def prompts(seed: int = 0) -> dict[str, torch.Tensor]:
    """Two objects, each with two clicks and a box, on one image, as the arguments of `TextSamModel.forward`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=generator),
        "point_coords": torch.rand(2, 2, 2, generator=generator) * SIDE,
        "point_labels": torch.tensor([[1, 0], [1, 1]]),
        "boxes": torch.tensor([[10.0, 20.0, 60.0, 90.0], [40.0, 8.0, 120.0, 70.0]]),
    }


@torch.no_grad()
def outputs(model: Any, **extra: torch.Tensor) -> list[torch.Tensor]:
    """Low-resolution logits (2, 3, 32, 32) and predicted IoUs (2, 3) of `prompts` by a model of ours."""
    asked = prompts()
    asked["pixel_values"] = asked["pixel_values"].to(model.dtype)
    masks = model(**asked, **extra, multimask_output=True)
    return [masks.low_res_logits, masks.iou_predictions]


@torch.no_grad()
def transformers_outputs(model: Any) -> list[torch.Tensor]:
    """The same by transformers' `SamModel`."""
    asked = prompts()
    found = model(
        pixel_values=asked["pixel_values"],
        input_points=asked["point_coords"][None],
        input_labels=asked["point_labels"][None],
        input_boxes=asked["boxes"][None],
        multimask_output=True,
    )
    return [found.pred_masks[0], found.iou_scores[0]]


def meta_state_dict(model: Any) -> dict[str, torch.Tensor]:
    """What one of Meta's .pth files would hold: all but the text parameters."""
    own = set(model.text_parameter_names())
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in own}


def unit_text(width: int = 48) -> torch.Tensor:
    """Two random text embeddings (2, width), of unit length."""
    return torch.nn.functional.normalize(torch.randn(2, width, generator=torch.Generator().manual_seed(9)), dim=-1)


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor], **tolerance: float) -> None:
    """Equal to the last bit, or within `rtol` and `atol`."""
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


def truncate(path: Path, keep: float = 0.5) -> Path:
    """Cuts a file to the fraction `keep`."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def write(path: Path, content: str | bytes | dict[str, Any]) -> Path:
    """Writes bytes, text or JSON, into a folder that is made if need be."""
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
