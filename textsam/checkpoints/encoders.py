"""Which encoders of words and of crops a model gets."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from textsam.config import NetworkConfig
    from textsam.language.clip import CropEncoder, TextEncoder
    from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder

logger = logging.getLogger(__name__)
EMBEDDED = "textsam-tiny"
# A folder of ours may carry its own small encoders here.
TEXT_ENCODER, CROP_ENCODER = "text_encoder", "crop_encoder"
# Or it shares those of the embedded model and adds names: `extra` (E, D), and in its metadata `names` and `aliases`.
EXTRA_NAMES = "extra_names.safetensors"
# What to fetch of these from the Hub.
ENCODER_PATTERNS = (f"{TEXT_ENCODER}/*", f"{CROP_ENCODER}/*", EXTRA_NAMES)


def packaged_folder(name: str) -> Path:
    """Where a model that is part of this package lies.

    Raises:
        FileNotFoundError: this installation lacks it.
    """
    folder = Path(str(files("textsam"))) / "weights" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"This installation lacks its embedded model ({folder}): install textsam again.")
    return folder


def small_encoders(
    folder: Path | None, config: NetworkConfig, device: torch.device
) -> tuple[SmallTextEncoder, SmallCropEncoder] | None:
    """The small encoders that a model's folder carries, or shares with the embedded model; None if neither.

    Raises:
        FileNotFoundError, ValueError: they are there but incomplete, damaged or of another width than the model's.
    """
    if folder is None:
        return None
    extra = folder / EXTRA_NAMES
    if extra.is_file():
        folder = packaged_folder(EMBEDDED)
    if not (folder / TEXT_ENCODER).is_dir() or not (folder / CROP_ENCODER).is_dir():
        return None
    from safetensors import SafetensorError

    from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder

    try:
        text_encoder = SmallTextEncoder.from_pretrained(folder / TEXT_ENCODER)
        crop_encoder = SmallCropEncoder.from_pretrained(folder / CROP_ENCODER)
        if extra.is_file():
            text_encoder = text_encoder.with_names(*read_extra_names(extra))
    except SafetensorError as error:
        raise ValueError(f"The weights of an encoder in {folder} are truncated or no safetensors: {error}.") from error
    if {text_encoder.embed_dim, crop_encoder.embed_dim} != {config.clip_dim}:
        raise ValueError(
            f"The encoders in {folder} have widths {text_encoder.embed_dim} (words) and {crop_encoder.embed_dim} "
            f"(crops), but the model's clip_dim is {config.clip_dim}."
        )
    return text_encoder.to(device), crop_encoder.to(device)


def save_encoders(folder: str | Path, encoders: Sequence[Any]) -> None:
    """Into a model's folder those of its encoders of words and of crops that travel with it; a public CLIP is only
    referred to, by the configuration."""
    for name, encoder in zip((TEXT_ENCODER, CROP_ENCODER), encoders, strict=True):
        if hasattr(encoder, "save_pretrained"):
            encoder.save_pretrained(Path(folder) / name)
            (Path(folder) / EXTRA_NAMES).unlink(missing_ok=True)  # of a former model; it would go before this encoder


def write_extra_names(path: Path, names: Sequence[str], embeddings: Tensor, aliases: Mapping[str, str]) -> None:
    """Names that a model adds to those of the embedded text encoder; arguments as for `SmallTextEncoder.with_names`."""
    from safetensors.torch import save_file

    metadata = {"names": json.dumps(list(names)), "aliases": json.dumps(dict(aliases))}
    save_file({"extra": embeddings.contiguous()}, path, metadata)
    path.chmod(0o644)


def read_extra_names(path: Path) -> tuple[list[str], Tensor, dict[str, str]]:
    """What `write_extra_names` wrote.

    Raises:
        ValueError: the file is another one.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "extra" not in set(file.keys()) or not {"names", "aliases"} <= metadata.keys():
            raise ValueError(f'{path} must hold the tensor "extra" and, as metadata, "names" and "aliases".')
        return json.loads(metadata["names"]), file.get_tensor("extra").float(), json.loads(metadata["aliases"])


def deferred_encoders(
    config: NetworkConfig, device: torch.device
) -> tuple[Callable[[], TextEncoder], Callable[[], CropEncoder]]:
    """Functions that fetch the CLIP that the configuration names, for whoever needs it first."""
    clip = config.clip_name, config.clip_pretrained
    return partial(_text_encoder, *clip, config.clip_template, device), partial(_crop_encoder, *clip, device)


def _text_encoder(name: str, tag: str, template: str, device: torch.device) -> TextEncoder:
    from textsam.language.clip import TextEncoder

    return TextEncoder.from_pretrained(name, tag, template=template, device=device)


def _crop_encoder(name: str, tag: str, device: torch.device) -> CropEncoder:
    from textsam.language.clip import CropEncoder

    return CropEncoder.from_pretrained(name, tag, device=device)


def named_encoders(clip: str, config: NetworkConfig, device: torch.device) -> tuple[TextEncoder, CropEncoder]:
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
    text_encoder = TextEncoder.from_pretrained(clip, template=config.clip_template, device=device)
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
    return text_encoder, CropEncoder.from_pretrained(clip, device=device)


def speaks_clip(config: NetworkConfig) -> bool:
    """Whether any trained part of the model reads CLIP embeddings, so that only its own CLIP will do."""
    return config.text_trained or config.similarity_head
