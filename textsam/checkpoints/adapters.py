"""Adapters: the trained text prompt of a model (projection and presence weights), in a file of its own.

A SAM checkpoint has no trained text prompt. An adapter of a few hundred kB gives it one, and leaves all else as it is.
The file is safetensors: the tensors under the names of `TextSamNetwork.text_parameter_names()`, and in the header the
CLIP that they were trained for.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from textsam.checkpoints.conversion import check_state_dict
from textsam.checkpoints.hub import HubOptions, download, is_repo_id

if TYPE_CHECKING:
    from textsam.modeling.text_sam import TextSamNetwork

ADAPTER_FILE = "text_adapter.safetensors"
_HEADER = "textsam_adapter"
# What an adapter fixes in the configuration, and the types of the values.
_FIELDS: dict[str, tuple[type, ...]] = {
    "clip_name": (str,),
    "clip_pretrained": (str, type(None)),  # None: the name is a Hub id or a folder
    "clip_dim": (int,),
    "clip_template": (str,),
    "text_projection": (str,),
    "dense_text": (bool,),
}
_LATER: dict[str, Any] = {"dense_text": False}  # fields that adapters written before lack


def save_adapter(model: TextSamNetwork, path: str | os.PathLike[str]) -> Path:
    """Writes the text parameters of `model`, whole or not at all.

    Args:
        path: a file that ends in .safetensors, or a folder (made if need be) that gets `text_adapter.safetensors`; such
            a folder uploaded to the Hub can be loaded by its id.

    Returns:
        The file written.

    Raises:
        ValueError: the text parameters of `model` are untrained.
    """
    from safetensors.torch import save_file

    if not model.config.text_trained:
        raise ValueError(
            "The text parameters of this model are untrained, so there is nothing to save; set "
            "model.config.text_trained = True after training them."
        )
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / ADAPTER_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    state_dict = model.state_dict()
    tensors = {name: state_dict[name].detach().cpu().contiguous() for name in model.text_parameter_names()}
    fields = {name: getattr(model.config, name) for name in _FIELDS}
    metadata = {"format": "pt", _HEADER: json.dumps(fields)}
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        save_file(tensors, Path(scratch) / file.name, metadata=metadata)
        os.replace(Path(scratch) / file.name, file)
    return file


def read_adapter(
    path_or_id: str | os.PathLike[str], hub: HubOptions | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of `NetworkConfig` that an adapter fixes (its CLIP and the form of its projection), and its tensors.

    Args:
        path_or_id: a .safetensors file, a folder with `text_adapter.safetensors`, or its Hub id.
        hub: revision and cache, for a Hub id.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: there is no such file, or it could not be downloaded.
        ValueError: the file is damaged or is no adapter.
    """
    from safetensors import SafetensorError, safe_open

    file = _find(path_or_id, hub)
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get(_HEADER)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or is not a safetensors file: {error}.") from error
    if header is None:
        raise ValueError(
            f"{file} is not an adapter (its header has no {_HEADER!r}): pass a file that save_adapter wrote, or give a "
            "whole model as the first argument of textsam.load."
        )
    try:
        fields = {**_LATER, **json.loads(header)}
        valid = all(type(fields[name]) in kinds for name, kinds in _FIELDS.items())
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ValueError(f"The header of the adapter {file} does not name its CLIP: {header[:200]!r}.")
    return {name: fields[name] for name in _FIELDS}, tensors


def _find(path_or_id: str | os.PathLike[str], hub: HubOptions | None) -> Path:
    path = Path(path_or_id).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        name = os.fspath(path_or_id)
        if path.suffix == ".safetensors" or not is_repo_id(name):
            raise FileNotFoundError(
                f"There is no adapter {name!r}: pass a .safetensors file, a folder with {ADAPTER_FILE}, or a Hub id "
                "(organisation/name)."
            )
        path = download(name, [ADAPTER_FILE], hub)
    if not (path / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"{os.fspath(path_or_id)} holds no {ADAPTER_FILE}, so it is not an adapter.")
    return path / ADAPTER_FILE


def load_adapter(model: TextSamNetwork, path_or_id: str | os.PathLike[str]) -> TextSamNetwork:
    """Puts an adapter's text parameters into `model`, in place, and marks its text prompt as trained.

    Args:
        path_or_id: as for `read_adapter`, whose errors it also raises.

    Raises:
        ValueError: the adapter is for another CLIP, template or form of projection, or does not fit wholly. The model
            is then unchanged.
    """
    fields, tensors = read_adapter(path_or_id)
    for name, value in fields.items():  # another CLIP, too: its encoders may be made already
        if getattr(model.config, name) != value:
            raise ValueError(
                f"The adapter {os.fspath(path_or_id)} has {name} {value!r}, this model "
                f"{getattr(model.config, name)!r}; textsam.load(..., adapter=...) builds the model to fit the adapter."
            )
    state_dict = model.state_dict()
    expected = {name: state_dict[name] for name in model.text_parameter_names()}
    check_state_dict(expected, tensors, (), f"The adapter {os.fspath(path_or_id)}")
    model.load_state_dict(tensors, strict=False)  # complete: the line above compared all that an adapter holds
    model.config.text_trained = True
    return model
