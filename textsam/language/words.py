"""Texts to CLIP embeddings, each asked of the encoder once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor

from textsam.language.vocabulary import UnknownNameError

# Embeddings of this many texts are kept, a few kB each.
_TEXTS_KEPT = 1024


class WordEncoder(Protocol):
    """What is needed of a CLIP text tower; `TextEncoder` and `SmallTextEncoder` are two."""

    def encode(self, texts: Sequence[str], /) -> Tensor:
        """Q texts -> (Q, D) of unit length."""


class TextStore(Protocol):
    """Keeps what an encoder said of a text; `textsam.files.embedding_cache.CachedTexts` does."""

    def encode(self, encoder: WordEncoder, texts: Sequence[str], /) -> Tensor:
        """As `encoder.encode(texts)`."""


class Words:
    """The embeddings of texts; several threads may ask.

    Args:
        encoder: a `WordEncoder`, or a function that makes one when the first text comes; None: there is none.
        width: D that the embeddings must have; None: any.
        owner: name of the CLIP that they must come from, for the error.

    Attributes:
        store: where embeddings outlive this process; None: nowhere.
    """

    def __init__(self, encoder: WordEncoder | Callable[[], WordEncoder] | None, width: int | None, owner: str) -> None:
        self._encoder = encoder
        self._width = width
        self._owner = owner
        self.store: TextStore | None = None
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock, which neither goes to other processes nor into copies."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=RLock())

    @property
    def encoder(self) -> WordEncoder | None:
        """The encoder, made now if it was to be made on first use."""
        if self._encoder is not None and not hasattr(self._encoder, "encode"):
            self._encoder = self._encoder()
        return self._encoder  # type: ignore[return-value]

    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """(Q, D) of unit length, Q at least 1.

        Raises:
            ValueError: no encoder, or one of another CLIP; and as the encoder does for texts that it does not know.
        """
        with self._lock:
            return self._embed(texts).to(device)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        encoder = self.encoder
        if encoder is None:
            raise ValueError('Expected a model with a text encoder, got none: textsam.load(clip="ViT-B-32:openai").')
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            embeddings = encoder.encode(new) if self.store is None else self.store.encode(encoder, new)
            if self._width is not None and embeddings.shape[-1] != self._width:
                raise ValueError(
                    f"Expected text embeddings of width {self._width}, got {embeddings.shape[-1]}: "
                    f"this text prompt belongs to {self._owner}."
                )
            self._known.update(zip(new, embeddings, strict=True))
        for text in texts:
            self._known.move_to_end(text)
        result = torch.stack([self._known[text] for text in texts])
        while len(self._known) > _TEXTS_KEPT:
            self._known.popitem(last=False)
        return result

    def embed_known(self, texts: Sequence[str], device: torch.device) -> list[Tensor]:
        """(1, D) for each text, leaving out those that an encoder of a closed vocabulary does not know."""
        found = []
        for text in texts:
            with suppress(UnknownNameError):
                found.append(self.embed([text], device))
        return found
