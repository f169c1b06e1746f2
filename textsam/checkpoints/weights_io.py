"""Tensors from files: safetensors, or PyTorch's own format without its code. Nothing read here is executed."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What to fetch from the Hub: safetensors, and PyTorch's format where a repository has nothing else.
WEIGHTS_PATTERNS = (
    ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"],
)
_SINGLE = ("model.safetensors", "pytorch_model.bin")


def read_folder_tensors(folder: Path, source: str) -> dict[str, Tensor]:
    """All weights of a `save_pretrained` folder, in one file or in shards.

    Args:
        source: what the user asked for, to be named in errors.

    Raises:
        FileNotFoundError: the folder has no weights, or a shard that its index names is absent.
        ValueError: a file is damaged.
    """
    for name in _SINGLE:
        if (folder / name).is_file():
            return read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                tensors.update(read_tensors(folder / shard))
            return tensors
    raise FileNotFoundError(f"{source} has no weights: expected model.safetensors (or its shards) in {folder}.")


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        plain = all(Path(name).name == name for name in names)  # a name with a folder could point anywhere
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: {error!r}.") from error
    if not plain:
        raise ValueError(f"{index} names files outside its own folder: {sorted(names)}.")
    return sorted(names)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, on the CPU, mapped from the disk where the format allows.

    Args:
        path: ends in .safetensors, or a file that `torch.save` wrote with a dict of tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, or is something else than a dict of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is only a Git LFS pointer, not the weights: run `git lfs pull` where it came from.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or is not a safetensors file: {error}.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch asks to be told of pickles that it does not read
            # Only the zip format can be mapped; files from before PyTorch 1.6 are read whole.
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if is_zip or "GLOBAL" in str(error):
            reason = "it is a pickle with code or objects in it, and only tensors are accepted; where you trust it, "
            mend = "save its bare state dict again, best as safetensors"
        else:
            reason, mend = "it is damaged, or a pickle that torch.save did not write; ", "get it again"
        raise ValueError(f"{path} was refused, and nothing of it was run: {reason}{mend}.") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is truncated or is not a checkpoint of PyTorch: {error!r}.") from error
    if isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        return content
    held = (
        f"a dict of {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
    )
    raise ValueError(
        f"{path} must hold a dict of tensors by name, but holds {held}; save the model's state dict alone."
    )
