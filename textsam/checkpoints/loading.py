"""From a name, a file or a folder to a model: `textsam.load`.

Whatever the source, the way is the same: read a configuration and tensors under Meta's names, compare every name and
every shape with the model that the configuration describes, and only then fill the model. Nothing is executed from a
checkpoint, and nothing is made up: only the text parameters that SAM's own checkpoints cannot have start at random.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from textsam.checkpoints.adapters import ADAPTER_FILE, load_adapter, read_adapter, save_adapter
from textsam.checkpoints.conversion import (
    check_state_dict,
    config_from_state_dict,
    config_from_transformers,
    convert_transformers_state_dict,
)
from textsam.checkpoints.devices import resolve_device, resolve_dtype
from textsam.checkpoints.encoders import (
    EMBEDDED,
    ENCODER_PATTERNS,
    deferred_encoders,
    named_encoders,
    packaged_folder,
    small_encoders,
    speaks_clip,
)
from textsam.checkpoints.hub import HubOptions, download, is_repo_id
from textsam.checkpoints.quantization import check_kind, quantize_encoder
from textsam.checkpoints.weights_io import WEIGHTS_PATTERNS, read_folder_tensors, read_tensors

if TYPE_CHECKING:
    from textsam.config import NetworkConfig
    from textsam.model import TextSamModel
    from textsam.modeling.text_sam import TextSamNetwork
    from textsam.predictor import TextSam

__all__ = ["EMBEDDED", "KNOWN_NAMES", "load", "load_adapter", "load_model", "save_adapter"]

PACKAGED = (EMBEDDED, "textsam-tiny-ocr")
KNOWN_NAMES = (*PACKAGED, "facebook/sam-vit-base", "facebook/sam-vit-large", "facebook/sam-vit-huge")
# The keys of segment-anything's `sam_model_registry`, of which "default" is the largest.
_NAMES_OF_META = {
    "vit_b": "facebook/sam-vit-base",
    "vit_l": "facebook/sam-vit-large",
    "vit_h": "facebook/sam-vit-huge",
    "default": "facebook/sam-vit-huge",
}
ACCEPTED = (
    f"one of {', '.join(KNOWN_NAMES)}; the Hub id (organisation/name) or folder of a model that TextSAM or "
    "transformers' SamModel saved; or a sam_vit_*.pth in Meta's layout"
)


@dataclass
class Checkpoint:
    """A checkpoint in memory, before any model is built."""

    source: str  # what the user asked for, to be named in errors
    config: NetworkConfig
    state_dict: dict[str, Tensor]  # under Meta's names
    folder: Path | None  # where config.json lies; None for a single file


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    clip: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    image_size: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> TextSam:
    """Loads a model, ready to predict.

    Args:
        name_or_path: None: the model embedded in this package, textsam-tiny. textsam-tiny-ocr: the one beside it, for
            written text. facebook/sam-vit-base, -large or -huge: Meta's weights from the Hub. A Hub id or a folder of a
            model that TextSAM or transformers' SamModel saved. A `sam_vit_*.pth` of Meta's; sizes are read from its
            tensors, never from its name.
        clip: encoders of words and crops by open_clip's name and tag, such as "ViT-B-32:openai" or "hf-hub:org/name",
            instead of those that the model names. Its width must be the one that the text prompt was trained for.
        adapter: a trained text prompt for a model that has none: a file, a folder or a Hub id; see `save_adapter`.
        device: None: cuda, else mps, else cpu, whichever is there; a number: that GPU, or -1 for the CPU.
        dtype: "float32", "bfloat16", "float16" or torch's; None: bfloat16 on a GPU that has it, and for a ViT on a CPU
            with AMX; float32 otherwise.
        quantize: "int8" (weights), "int8-dynamic" (weights and products) or "float8" (weights): the ViT encoder's
            matrices in eight bits, through torchao; the masks are then not quite SAM's. Such a model is not for saving.
        image_size: side in px that photos are resized to, a multiple of the patch size; None: that of the training, for
            which results are best. Larger shows small things and costs more: time with its square, at least. Written
            text is read at sizes of its own.
        revision: of the model on the Hub: a branch, tag or commit. An adapter's goes behind its id, "org/name@v1".
        cache_dir: where files of the Hub are kept; None: the client's own (HF_HOME).
        local_files_only: take what is in that cache, and ask nobody. A private repository is read with the token of
            `hf auth login` or HF_TOKEN. A public CLIP is fetched by open_clip, which goes by HF_HUB_CACHE and
            HF_HUB_OFFLINE instead of these two.

    Returns:
        `TextSam`, in eval mode. An open_clip model that only the configuration names is fetched when words or crops are
        first used, not here.

    Raises:
        ValueError: an unknown name, device or dtype (the choices are listed); a damaged file; a pickle with code in it;
            tensors missing, unexpected or of a wrong shape; a CLIP or an adapter that does not fit.
        FileNotFoundError: no such file, folder or Hub repository, or a folder without its files.
        PermissionError: the Hub asks for a login or for terms to be accepted.
        ConnectionError: offline, or the Hub failed.
    """
    from textsam.language.clip import parse_clip_name
    from textsam.predictor import TextSam

    to_device = resolve_device(device)
    resolve_dtype(dtype, to_device)  # wrong names are told before anything is fetched
    if quantize is not None:
        check_kind(quantize)
    if clip is not None:
        parse_clip_name(clip)
    checkpoint = _read(name_or_path, adapter, HubOptions(revision, cache_dir, local_files_only))
    config = checkpoint.config
    if clip is None:
        encoders = small_encoders(checkpoint.folder, config, to_device) or deferred_encoders(config, to_device)
        return TextSam(_build(checkpoint, to_device, dtype, quantize), *encoders, image_size=image_size)
    text_encoder, crop_encoder = named_encoders(clip, config, to_device)
    if not speaks_clip(config):  # ranking goes by this CLIP from now on
        name, tag = parse_clip_name(clip)
        fields = {"clip_name": name, "clip_pretrained": tag, "clip_dim": text_encoder.embed_dim}
        checkpoint = _without_text(checkpoint, fields)
    model = _build(checkpoint, to_device, dtype, quantize)
    return TextSam(model, text_encoder, crop_encoder, image_size=image_size)


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> TextSamModel:
    """The model alone, without encoders of words and crops: for training. Arguments and errors as for `load`."""
    from textsam.model import TextSamModel

    to_device = resolve_device(device)
    resolve_dtype(dtype, to_device)
    hub = HubOptions(revision, cache_dir, local_files_only)
    return TextSamModel.of(_build(_read(name_or_path, adapter, hub), to_device, dtype))


def _read(
    name_or_path: str | os.PathLike[str] | None, adapter: str | os.PathLike[str] | None, hub: HubOptions
) -> Checkpoint:
    name = EMBEDDED if name_or_path is None else os.fspath(name_or_path)
    path = Path(name).expanduser()
    if name in PACKAGED:
        checkpoint = _read_folder(packaged_folder(name), name)
    elif path.is_file():
        checkpoint = _read_file(path)
    elif name and path.is_dir():  # "" would be the current folder
        checkpoint = _read_folder(path, name)
    elif isinstance(name_or_path, os.PathLike) or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        raise FileNotFoundError(f"There is no file or folder {name!r}.")
    elif is_repo_id(name):
        checkpoint = _read_folder(_download(name, hub), name)
    elif len(path.parts) > 1:
        raise FileNotFoundError(f"There is no folder {name!r}, and it is not a Hub id (organisation/name).")
    else:
        short = {known.split("/")[-1]: known for known in KNOWN_NAMES}
        known = {**dict(zip(KNOWN_NAMES, KNOWN_NAMES, strict=True)), **short, **_NAMES_OF_META}
        close = difflib.get_close_matches(name.lower(), known, n=1)
        full = known[close[0]] if close else None
        hint = f" Did you mean {full!r}?" if full else ""
        raise ValueError(f"There is no model {name!r}.{hint} Accepted are {ACCEPTED}.")
    return checkpoint if adapter is None else _with_adapter(checkpoint, adapter, hub)


def _download(repo_id: str, hub: HubOptions) -> Path:
    """The configuration first: a repository of another kind is refused before its gigabytes are fetched."""
    folder = download(repo_id, ["config.json", ADAPTER_FILE], hub)
    _read_config(folder, repo_id)
    safe, pickled = WEIGHTS_PATTERNS
    folder = download(repo_id, ["config.json", *safe, *ENCODER_PATTERNS], hub)
    if not any(folder.glob("*.safetensors")):
        folder = download(repo_id, ["config.json", *pickled, *ENCODER_PATTERNS], hub)
    return folder


def _read_config(folder: Path, source: str) -> tuple[str, NetworkConfig]:
    """The model_type, "sam" or "textsam", and the configuration."""
    from textsam.config import NetworkConfig

    file = folder / "config.json"
    if not file.is_file():
        if (folder / ADAPTER_FILE).is_file():
            raise ValueError(f"{source} is an adapter, not a model: load a model with adapter={source!r}.")
        raise FileNotFoundError(f"{source} has no config.json (looked in {folder}). Accepted are {ACCEPTED}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in ("sam", "textsam"):
        raise ValueError(f"{source} is a model of type {kind!r}, which TextSAM does not load. Accepted are {ACCEPTED}.")
    try:
        return kind, config_from_transformers(content) if kind == "sam" else NetworkConfig.of_dict(content)
    except Exception as error:  # Validators of several libraries look at the values, each with errors of its own.
        raise ValueError(f"{file} does not describe a model that can be built: {error}") from error


def _read_folder(folder: Path, source: str) -> Checkpoint:
    kind, config = _read_config(folder, source)
    tensors = read_folder_tensors(folder, source)
    if kind == "sam":
        tensors = convert_transformers_state_dict(tensors, config)
    return Checkpoint(source, config, tensors, folder)


def _read_file(path: Path) -> Checkpoint:
    tensors = read_tensors(path)
    if any(name.startswith("vision_encoder.") for name in tensors):
        raise ValueError(f"{path} is a SamModel of transformers; pass its folder, whose config.json is needed too.")
    if "prompt_encoder.text_embed.weight" in tensors:  # shapes do not tell whether text is trained, nor its CLIP
        raise ValueError(f"{path} is a model of TextSAM; pass its folder, whose config.json is needed too.")
    try:
        return Checkpoint(str(path), config_from_state_dict(tensors), tensors, folder=None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _with_adapter(checkpoint: Checkpoint, adapter: str | os.PathLike[str], hub: HubOptions) -> Checkpoint:
    """The checkpoint with the adapter's text parameters instead of its own, if it had any."""
    path_or_id, _, revision = os.fspath(adapter).partition("@")
    named = bool(revision) and is_repo_id(path_or_id) and not Path(adapter).exists()
    fields, tensors = read_adapter(path_or_id if named else adapter, replace(hub, revision=revision if named else None))
    other = {name: fields[name] for name in ("clip_name", "clip_pretrained")}
    own = {name: getattr(checkpoint.config, name) for name in other}
    if checkpoint.config.similarity_head and other != own:  # the head and the small encoders stay those of its own
        raise ValueError(
            f"The adapter {os.fspath(adapter)} is for {other}, but {checkpoint.source} speaks {own} only: give one of "
            "that CLIP."
        )
    bare = _without_text(checkpoint, {**fields, "text_trained": True})
    source = f"{checkpoint.source} with the adapter {os.fspath(adapter)}"
    return replace(bare, source=source, state_dict={**bare.state_dict, **tensors})


def _without_text(checkpoint: Checkpoint, fields: dict[str, Any]) -> Checkpoint:
    """The checkpoint less its text parameters, and with other fields in its configuration."""
    own = set(_skeleton(checkpoint).text_parameter_names())
    kept = {name: tensor for name, tensor in checkpoint.state_dict.items() if name not in own}
    config = type(checkpoint.config).of_dict({**vars(checkpoint.config), **fields})
    return replace(checkpoint, config=config, state_dict=kept)


def _skeleton(checkpoint: Checkpoint) -> TextSamNetwork:
    """The model that the configuration describes, with any values for weights."""
    from textsam.modeling.text_sam import TextSamNetwork

    try:
        with _WithoutStartValues():
            return TextSamNetwork(checkpoint.config)
    except Exception as error:  # Sizes that contradict each other fail in whichever layer meets them first.
        raise ValueError(f"The configuration of {checkpoint.source} cannot be built: {error}") from error


class _WithoutStartValues(TorchFunctionMode):
    """Leaves out the start values of layers: all are replaced at once, and memory that nobody writes to is none,
    however large a model the configuration describes. (torch's meta device does the same, but imports torch's compiler
    for it: two seconds.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_):
            return args[0]
        return (torch.empty if func in (torch.randn, torch.zeros, torch.ones) else func)(*args, **(kwargs or {}))


def _build(
    checkpoint: Checkpoint, device: torch.device, dtype: str | torch.dtype | None, quantize: str | None = None
) -> TextSamNetwork:
    to_dtype = resolve_dtype(dtype, device, checkpoint.config.encoder_type)
    model = _skeleton(checkpoint)
    expected = model.state_dict()
    declared = () if checkpoint.config.text_trained else model.text_parameter_names()
    check_state_dict(expected, checkpoint.state_dict, declared, checkpoint.source)
    filled, weights = {}, {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    generator = torch.Generator().manual_seed(0)
    for name, meta in expected.items():
        tensor = checkpoint.state_dict.get(name)
        if tensor is None:  # an untrained text parameter: small weights, the same on every machine; zeros for the rest
            tensor = torch.randn(meta.shape, generator=generator) * 0.02 if name in weights else torch.zeros(meta.shape)
        # A copy, so that the model does not stand on a file that somebody may overwrite.
        filled[name] = tensor.to(device, to_dtype if meta.is_floating_point() else meta.dtype, copy=True)
    model.load_state_dict(filled, strict=True, assign=True)
    if quantize is not None:
        quantize_encoder(model, quantize)
    return model.eval()
