"""Which encoders of words and of crops a model gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from textsam.config import TextSamConfig
    from textsam.language.clip import CropEncoder, TextEncoder
    from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder

logger = logging.getLogger(__name__)
# A folder of ours may carry its own small encoders here.
TEXT_ENCODER, CROP_ENCODER = "text_encoder", "crop_encoder"


def small_encoders(
    folder: Path | None, config: TextSamConfig, device: torch.device
) -> tuple[SmallTextEncoder, SmallCropEncoder] | None:
    """The small encoders that a model's folder carries; None if it carries none.

    Raises:
        FileNotFoundError, ValueError: they are there but incomplete, damaged or of another width than the model's.
    """
    if folder is None or not (folder / TEXT_ENCODER).is_dir() or not (folder / CROP_ENCODER).is_dir():
        return None
    from safetensors import SafetensorError

    from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder

    try:
        text_encoder = SmallTextEncoder.from_pretrained(folder / TEXT_ENCODER)
        crop_encoder = SmallCropEncoder.from_pretrained(folder / CROP_ENCODER)
    except SafetensorError as error:
        raise ValueError(f"The weights of an encoder in {folder} are truncated or no safetensors: {error}.") from error
    if {text_encoder.embed_dim, crop_encoder.embed_dim} != {config.clip_dim}:
        raise ValueError(
            f"The encoders in {folder} have widths {text_encoder.embed_dim} (words) and {crop_encoder.embed_dim} "
            f"(crops), but the model's clip_dim is {config.clip_dim}."
        )
    return text_encoder.to(device), crop_encoder.to(device)


def deferred_encoders(
    config: TextSamConfig, device: torch.device
) -> tuple[Callable[[], TextEncoder], Callable[[], CropEncoder]]:
    """Functions that fetch the CLIP that the configuration names, for whoever needs it first."""
    name, tag, template = config.clip_name, config.clip_pretrained, config.clip_template

    def text_encoder() -> TextEncoder:
        from textsam.language.clip import TextEncoder

        return TextEncoder.from_pretrained(name, tag, template=template).to(device)

    def crop_encoder() -> CropEncoder:
        from textsam.language.clip import CropEncoder

        return CropEncoder.from_pretrained(name, tag).to(device)

    return text_encoder, crop_encoder


def named_encoders(clip: str, config: TextSamConfig, device: torch.device) -> tuple[TextEncoder, CropEncoder]:
    """The encoders of the CLIP asked for, now.

    Args:
        clip: "MODEL:TAG" or "hf-hub:org/name"; see `textsam.language.clip.parse_clip_name`.
        config: of the model that they are for.

    Raises:
        ValueError: there is no such CLIP, or the model's text prompt was trained for one of another width.
        OSError: its weights are not here and could not be downloaded.
    """
    from textsam.language.clip import CropEncoder, TextEncoder, parse_clip_name

    name, tag = parse_clip_name(clip)
    text_encoder = TextEncoder.from_pretrained(clip, template=config.clip_template).to(device)
    if speaks_clip(config):
        trained_for = ":".join(part for part in (config.clip_name, config.clip_pretrained) if part)
        if text_encoder.embed_dim != config.clip_dim:
            raise ValueError(
                f"clip={clip!r} has width {text_encoder.embed_dim}, but the model was trained for {trained_for} of "
                f"width {config.clip_dim}; ask for that one, or give an adapter that was trained for yours."
            )
        own_name = config.clip_name.removesuffix("-quickgelu")  # open_clip's second name for the same weights
        if (name.removesuffix("-quickgelu"), tag) != (own_name, config.clip_pretrained):
            logger.warning("The model was trained for %s; embeddings of %s may mean little to it.", trained_for, clip)
    return text_encoder, CropEncoder.from_pretrained(clip).to(device)


def speaks_clip(config: TextSamConfig) -> bool:
    """Whether any trained part of the model reads CLIP embeddings, so that only its own CLIP will do."""
    return config.text_trained or config.similarity_head
