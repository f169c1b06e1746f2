"""Embeddings on disk: shared by processes, bounded in size, the least recently used thrown out first.

One safetensors file for each key. Files appear whole (renamed into place) and are never changed, so that readers need
no lock: a file that another process has just thrown out, or a damaged one, is simply not there.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from textsam.files.atomic import write_atomically

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 20 * 2**30
_KEEP_AFTER_EVICTION = 15 / 16  # of the bound, so that not every write has to make room
_RESCAN_SHARE = 1 / 64  # of the bound: after writing so much, look what other processes wrote


class EmbeddingCache:
    """Tensors by key.

    Args:
        folder: made when missing; any number of processes may share it.
        max_bytes: bound on the sum of the files. Each process that shares the folder may exceed it by 1/64, until it
            looks again at what the others wrote.
    Raises:
        ValueError: max_bytes is not positive.
    """

    def __init__(self, folder: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes <= 0:
            raise ValueError(f"Expected max_bytes above 0, got {max_bytes}: leave the cache out for none.")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._written = 0  # since the last look at the folder
        self._bytes = sum(size for _, size, _ in self._files())
        self._broken = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors that were put under the key, on the CPU; None when there are none any more."""
        path, tensors = self._path(key), None
        try:
            tensors = load(path.read_bytes())
            os.utime(path)  # used now
        except OSError:
            pass  # not there, thrown out meanwhile, or a folder that may only be read
        except (SafetensorError, ValueError):  # cut off or overwritten by somebody else
            with suppress(OSError):  # a folder that may only be read
                path.unlink()
        self.hits += tensors is not None
        self.misses += tensors is None
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors; a full disk or a folder without write permission is told once and stops nothing."""
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        if len(data) > self.max_bytes:
            return
        try:
            write_atomically(self._path(key), data)
        except OSError as error:
            if not self._broken:
                logger.warning("The cache %s cannot be written (%s); going on without.", self.folder, error)
            self._broken = True
            return
        self._bytes += len(data)
        self._written += len(data)
        if self._bytes > self.max_bytes or self._written > self.max_bytes * _RESCAN_SHARE:
            self._make_room()

    def _make_room(self) -> None:
        files = sorted(self._files())
        self._written, self._bytes = 0, sum(size for _, size, _ in files)
        if self._bytes <= self.max_bytes:
            return
        for _, size, path in files:
            if self._bytes <= self.max_bytes * _KEEP_AFTER_EVICTION:
                break
            path.unlink(missing_ok=True)
            self._bytes -= size

    def _files(self) -> Iterable[tuple[int, int, Path]]:
        """(last use in ns, bytes, path) of every file."""
        for path in self.folder.glob("??/*.safetensors"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process threw it out
            yield status.st_mtime_ns, status.st_size, path

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def content_key(revision: str, content: np.ndarray | str) -> str:
    """The key of a picture's pixels (H, W, 3) uint8, or of a text, under one revision of a model."""
    digest = hashlib.blake2b(revision.encode(), digest_size=20)
    if isinstance(content, str):
        digest.update(b"text" + content.encode())
    else:
        digest.update(repr(content.shape).encode())
        digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()


def module_revision(module: nn.Module, *facts: Any) -> str:
    """A hash of a module's weights, with their names and dtypes, and of other facts that its output depends on."""
    digest = hashlib.blake2b(repr((type(module).__qualname__, facts)).encode(), digest_size=20)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in _parts(tensor.detach(), digest.update):
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class CachedTexts:
    """Text embeddings through a cache; an encoder without weights to tell it by is asked every time."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache = cache
        self._revisions: dict[int, str] = {}

    def encode(self, encoder: Any, texts: Sequence[str]) -> Tensor:
        """Q texts -> (Q, D) of unit length, as `encoder.encode`."""
        encode: Any = encoder.encode
        if not isinstance(encoder, nn.Module):
            return encode(texts)
        if id(encoder) not in self._revisions:
            words = getattr(encoder, "vocabulary", None)
            spellings = None if words is None else (words.names, words.aliases)
            self._revisions[id(encoder)] = module_revision(encoder, getattr(encoder, "template", None), spellings)
        keys = [content_key(self._revisions[id(encoder)], text) for text in texts]
        kept = [self.cache.get(key) for key in keys]
        missing = [i for i, tensors in enumerate(kept) if tensors is None]
        if missing:
            fresh = encode([texts[i] for i in missing])
            for i, embedding in zip(missing, fresh, strict=True):
                kept[i] = {"embedding": embedding.cpu()}
                self.cache.put(keys[i], kept[i])  # type: ignore[arg-type]
        return torch.stack([tensors["embedding"] for tensors in kept])  # type: ignore[index]


def _parts(tensor: Tensor, describe: Callable[[bytes], None]) -> Iterator[Tensor]:
    """The plain tensors of which a quantised one is made, after telling how it is used; a plain one is its own."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, use = tensor.__tensor_flatten__()
    describe(repr(use).encode())
    for name in names:
        yield from _parts(getattr(tensor, name), describe)
