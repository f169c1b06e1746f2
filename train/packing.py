"""A batch of samples as one tensor for each type: it goes from process to process, and to a GPU, in few pieces.

A batch of 64 samples is a thousand small tensors; handing them over one by one takes longer than the training step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Place:
    """Where in the buffer of its type a tensor lies."""

    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]


@dataclass
class Packed:
    """Samples whose tensors are parts of `buffers`."""

    buffers: dict[torch.dtype, Tensor]  # (K,) each
    samples: list[Any]  # with a `_Place` for each tensor

    def pin_memory(self) -> Packed:
        return Packed({dtype: buffer.pin_memory() for dtype, buffer in self.buffers.items()}, self.samples)

    def unpack(self, device: torch.device | str = "cpu") -> list[Any]:
        """The samples, as views of one tensor for each type. Whole numbers, which say what to take and how often, stay
        on the CPU, where that is decided."""
        held = {
            dtype: buffer if dtype == torch.int64 else buffer.to(device, non_blocking=True)
            for dtype, buffer in self.buffers.items()
        }

        def restore(place: _Place) -> Tensor:
            part = held[place.dtype][place.start : place.start + math.prod(place.shape)]
            return part.view(place.shape)

        return [_map(sample, _Place, restore) for sample in self.samples]


def pack(samples: Iterable[Any]) -> Packed:
    """Dataclasses of tensors, also in lists, tuples and dictionaries, as `Packed`."""
    parts: dict[torch.dtype, list[Tensor]] = {}
    lengths: dict[torch.dtype, int] = {}

    def place(tensor: Tensor) -> _Place:
        start = lengths.get(tensor.dtype, 0)
        lengths[tensor.dtype] = start + tensor.numel()
        parts.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
        return _Place(tensor.dtype, start, tuple(tensor.shape))

    packed = [_map(sample, Tensor, place) for sample in samples]
    return Packed({dtype: torch.cat(tensors) for dtype, tensors in parts.items()}, packed)


def _map(value: Any, kind: type, change: Any) -> Any:
    """`value` with everything of a kind in it changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(entry, kind, change) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(entry, kind, change) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _map(getattr(value, field.name), kind, change) for field in fields(value)})
    return value
