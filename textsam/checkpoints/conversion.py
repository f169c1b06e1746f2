"""Names and sizes of SAM checkpoints: transformers' layout to Meta's, and the configuration that each one needs.

Meta's parameter names are this project's own: a `.pth` of Meta's needs no renaming. A checkpoint fits wholly, name by
name and shape by shape, or is refused with a list (`check_state_dict`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from textsam.config import NetworkConfig

_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# transformers' name -> Meta's. A name that no rule knows is kept: `check_state_dict` then calls it unexpected.
_RULES: tuple[tuple[str, str], ...] = (
    (r"shared_image_embedding\.positional_embedding", _MATRIX),
    (r"prompt_encoder\.shared_embedding\.positional_embedding", _MATRIX),
    (r"vision_encoder\.pos_embed", r"image_encoder.pos_embed"),
    (r"vision_encoder\.patch_embed\.projection\.(\w+)", r"image_encoder.patch_embed.proj.\1"),
    (r"vision_encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"image_encoder.blocks.\1.norm\2.\3"),
    (r"vision_encoder\.layers\.(\d+)\.((?:attn|mlp)\..+)", r"image_encoder.blocks.\1.\2"),
    (r"vision_encoder\.neck\.conv1\.(\w+)", r"image_encoder.neck.0.\1"),
    (r"vision_encoder\.neck\.layer_norm1\.(\w+)", r"image_encoder.neck.1.\1"),
    (r"vision_encoder\.neck\.conv2\.(\w+)", r"image_encoder.neck.2.\1"),
    (r"vision_encoder\.neck\.layer_norm2\.(\w+)", r"image_encoder.neck.3.\1"),
    (r"prompt_encoder\.point_embed\.(\d+)\.weight", r"prompt_encoder.point_embeddings.\1.weight"),
    (r"prompt_encoder\.mask_embed\.conv1\.(\w+)", r"prompt_encoder.mask_downscaling.0.\1"),
    (r"prompt_encoder\.mask_embed\.layer_norm1\.(\w+)", r"prompt_encoder.mask_downscaling.1.\1"),
    (r"prompt_encoder\.mask_embed\.conv2\.(\w+)", r"prompt_encoder.mask_downscaling.3.\1"),
    (r"prompt_encoder\.mask_embed\.layer_norm2\.(\w+)", r"prompt_encoder.mask_downscaling.4.\1"),
    (r"prompt_encoder\.mask_embed\.conv3\.(\w+)", r"prompt_encoder.mask_downscaling.6.\1"),
    (r"(mask_decoder\.transformer\.layers\.\d+)\.layer_norm([1-4])\.(\w+)", r"\1.norm\2.\3"),
    (r"(mask_decoder\.transformer)\.layer_norm_final_attn\.(\w+)", r"\1.norm_final_attn.\2"),
    (r"mask_decoder\.upscale_conv1\.(\w+)", r"mask_decoder.output_upscaling.0.\1"),
    (r"mask_decoder\.upscale_layer_norm\.(\w+)", r"mask_decoder.output_upscaling.1.\1"),
    (r"mask_decoder\.upscale_conv2\.(\w+)", r"mask_decoder.output_upscaling.3.\1"),
)
_HEAD = re.compile(r"(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.(.+)\.(weight|bias)")

# Built in: a configuration that says otherwise would load and be wrong.
_REQUIRED: tuple[tuple[str, str, Any], ...] = (
    ("vision_config", "hidden_act", "gelu"),
    ("vision_config", "layer_norm_eps", 1e-6),
    ("vision_config", "num_channels", 3),
    ("vision_config", "qkv_bias", True),
    ("vision_config", "use_abs_pos", True),
    ("vision_config", "use_rel_pos", True),
    ("prompt_encoder_config", "hidden_act", "gelu"),
    ("prompt_encoder_config", "num_point_embeddings", 4),
    ("mask_decoder_config", "hidden_act", "relu"),
)


def convert_transformers_state_dict(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """The weights of transformers' `SamModel` under Meta's names. No tensor is changed or copied.

    Args:
        config: from `config_from_transformers`; says how many layers the heads have.

    Raises:
        ValueError: two names mean one tensor and their values differ (the positional matrix is stored once or twice).
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        new_name = _meta_name(name, config.iou_head_depth)
        if new_name in converted and not torch.equal(converted[new_name], tensor):
            raise ValueError(f"The checkpoint holds two different values of {new_name} (one of them is {name}).")
        converted[new_name] = tensor
    return converted


def _meta_name(name: str, iou_head_depth: int) -> str:
    head = _HEAD.fullmatch(name)
    if head is not None:
        # transformers splits an MLP into proj_in, layers.0 .. layers.(depth - 3), proj_out; Meta counts them.
        depth = iou_head_depth if "iou_prediction_head" in head[1] else 3
        if head[2] == "proj_in":
            return f"{head[1]}.layers.0.{head[3]}"
        if head[2] == "proj_out":
            return f"{head[1]}.layers.{depth - 1}.{head[3]}"
        if re.fullmatch(r"layers\.\d+", head[2]):
            return f"{head[1]}.layers.{int(head[2].split('.')[1]) + 1}.{head[3]}"
        return name
    for pattern, replacement in _RULES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return match.expand(replacement)
    return name


def config_from_transformers(config: Mapping[str, Any]) -> NetworkConfig:
    """The configuration of the model in a transformers `config.json` of model_type "sam".

    Raises:
        ValueError: the file describes a variant that this model does not build, listing what differs.
    """
    from transformers import SamConfig

    from textsam.config import NetworkConfig

    sam = SamConfig.from_dict(dict(config))
    sections = {name: getattr(sam, name) for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    vision, prompt, decoder = sections.values()
    wrong = [
        f"{section}.{key} is {getattr(sections[section], key)!r}, not {value!r}"
        for section, key, value in _REQUIRED
        if getattr(sections[section], key) != value
    ]
    sides = {vision.image_size, prompt.image_size} if isinstance(vision.image_size, int) else None
    if sides is None or len(sides) != 1:
        wrong.append(f"image_size is {vision.image_size!r} and {prompt.image_size!r}, not one integer")
    if vision.patch_size != prompt.patch_size:
        wrong.append(f"patch_size is {vision.patch_size!r} and {prompt.patch_size!r}, not one integer")
    if not 2 * vision.num_pos_feats == vision.output_channels == prompt.hidden_size == decoder.hidden_size:
        wrong.append(
            f"widths differ: 2 x num_pos_feats {2 * vision.num_pos_feats}, output_channels {vision.output_channels}, "
            f"prompt encoder {prompt.hidden_size}, mask decoder {decoder.hidden_size}"
        )
    if wrong:
        raise ValueError(f"This SAM differs from the released ones, and is not built here: {'; '.join(wrong)}.")
    return NetworkConfig(
        encoder_type="vit",
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        encoder_width=vision.hidden_size,
        encoder_depth=vision.num_hidden_layers,
        encoder_heads=vision.num_attention_heads,
        global_attn_indexes=list(vision.global_attn_indexes),
        window_size=vision.window_size,
        mlp_ratio=vision.mlp_dim / vision.hidden_size,
        prompt_dim=vision.output_channels,
        decoder_depth=decoder.num_hidden_layers,
        decoder_heads=decoder.num_attention_heads,
        decoder_mlp_dim=decoder.mlp_dim,
        decoder_downsample_rate=decoder.attention_downsample_rate,
        num_multimask_outputs=decoder.num_multimask_outputs,
        iou_head_depth=decoder.iou_head_depth,
        iou_head_hidden=decoder.iou_head_hidden_dim,
        mask_in_chans=prompt.mask_input_channels,
    )


def config_from_state_dict(state_dict: Mapping[str, Tensor]) -> NetworkConfig:
    """The configuration of the model in Meta's layout, read from the shapes of its tensors.

    The number of heads is width over head width, the second side of a relative-position table; a block is global when
    its table spans the whole grid (2 * 64 - 1 = 127 rows) and windowed when it is shorter (2 * 14 - 1 = 27). The
    decoder's heads leave no trace in a shape: 8, as in every released SAM.

    Raises:
        ValueError: tensors that the sizes are read from are absent (another model, or a wrapped checkpoint), or their
            shapes are not those of a SAM.
    """
    from textsam.config import NetworkConfig

    blocks = _count(state_dict, r"image_encoder\.blocks\.(\d+)\..+")
    needed = {  # name -> number of axes
        "image_encoder.patch_embed.proj.weight": 4,
        "image_encoder.pos_embed": 4,
        "image_encoder.neck.0.weight": 4,
        "image_encoder.blocks.0.mlp.lin1.weight": 2,
        **{f"image_encoder.blocks.{i}.attn.rel_pos_h": 2 for i in range(blocks)},
        "prompt_encoder.mask_downscaling.3.weight": 4,
        "mask_decoder.transformer.layers.0.mlp.lin1.weight": 2,
        "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight": 2,
        "mask_decoder.mask_tokens.weight": 2,
        "mask_decoder.iou_prediction_head.layers.0.weight": 2,
    }
    absent = [name for name, axes in needed.items() if name not in state_dict or state_dict[name].ndim != axes]
    if absent:
        raise ValueError(
            "These are not the weights of a SAM in Meta's layout: sizes are read from "
            f"{_listing(absent)}, absent or of another shape here; the checkpoint holds {_listing(list(state_dict))}."
        )
    shape = {name: tuple(state_dict[name].shape) for name in needed}
    width, _, patch_size, _ = shape["image_encoder.patch_embed.proj.weight"]
    grid = shape["image_encoder.pos_embed"][1]
    attention_in, attention_out = shape["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"]
    tables = [shape[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(blocks)]
    windows = {(rows + 1) // 2 for rows, _ in tables if rows != 2 * grid - 1}
    head_widths = {head_width for _, head_width in tables}
    if len(windows) > 1 or len(head_widths) != 1 or width % max(head_widths):
        raise ValueError(
            f"The image encoder is not SAM's: width {width} and grid {grid} with relative-position tables "
            f"{sorted(set(tables))}; one window size and one head width that divides the width are expected."
        )
    return NetworkConfig(
        encoder_type="vit",
        image_size=grid * patch_size,
        patch_size=patch_size,
        encoder_width=width,
        encoder_depth=blocks,
        encoder_heads=width // head_widths.pop(),
        global_attn_indexes=[i for i, (rows, _) in enumerate(tables) if rows == 2 * grid - 1],
        window_size=windows.pop() if windows else grid,
        mlp_ratio=shape["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        prompt_dim=shape["image_encoder.neck.0.weight"][0],
        decoder_depth=_count(state_dict, r"mask_decoder\.transformer\.layers\.(\d+)\..+"),
        decoder_heads=8,
        decoder_mlp_dim=shape["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        decoder_downsample_rate=attention_out // attention_in,
        num_multimask_outputs=shape["mask_decoder.mask_tokens.weight"][0] - 1,
        iou_head_depth=_count(state_dict, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\..+"),
        iou_head_hidden=shape["mask_decoder.iou_prediction_head.layers.0.weight"][0],
        mask_in_chans=shape["prompt_encoder.mask_downscaling.3.weight"][0],
    )


def _count(names: Collection[str], pattern: str) -> int:
    indexes = [int(match[1]) for match in map(re.compile(pattern).fullmatch, names) if match]
    return max(indexes, default=-1) + 1


def check_state_dict(
    expected: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], may_be_missing: Collection[str], source: str
) -> None:
    """Compares every name and every shape.

    Args:
        expected: the model's own `state_dict()`; meta tensors do.
        may_be_missing: names that a checkpoint may leave out.
        source: what the user asked for, to be named in the error.

    Raises:
        ValueError: one error: all that is missing, unexpected or of another shape (ten names of each, and the count).
    """
    missing = [name for name in expected if name not in state_dict and name not in may_be_missing]
    unexpected = [name for name in state_dict if name not in expected]
    reshaped = [
        f"{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state_dict and state_dict[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {title}: {_listing(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of a wrong shape", reshaped))
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model that it describes. Tensors {'; '.join(problems)}.")


def _listing(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
