"""Prompts of several photos as one set of tensors, the arguments of `TextSamModel.forward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.prompting.detections import to_numpy
from textsam.prompting.prompts import GeometricPrompts, check_geometry, check_texts
from textsam.prompting.questions import spread_prompts
from textsam.prompting.transforms import ImageGeometry

# Axes of points, labels, boxes and masks of one photo at most; SAM's processors put one for the photo in front.
_AXES = (3, 2, 2, 4)


def prompt_tensors(
    geometries: Sequence[ImageGeometry],
    text: Any,
    geometric: Sequence[Any],
    *,
    alone: bool,
    embed: Callable[[Sequence[str]], Tensor],
) -> dict[str, Tensor]:
    """
    Args:
        geometries: of B photos.
        text, geometric: text, and points, labels, boxes and masks, as `TextSamProcessor.__call__`.
        alone: there is one photo, and the prompts are not in a list.
        embed: Q texts to (Q, D).
    Returns:
        what was asked, of N prompts in the order of the photos; nothing without prompts.
    Raises:
        ValueError, TypeError: see `TextSamProcessor.__call__`.
    """
    if alone:
        geometric = [
            None if value is None else [_of_one(value, axes)] for value, axes in zip(geometric, _AXES, strict=True)
        ]
    asked = spread_prompts(len(geometries), text, *geometric)
    parts = []
    for number, (geometry, (texts, *rest)) in enumerate(zip(geometries, asked, strict=True)):
        prompts = check_geometry(geometry, *rest)
        parts.append(_of_photo(prompts, None if texts is None else check_texts(texts), number, embed))
    kinds = {frozenset(part) for part in parts}
    if len(kinds) > 1:
        named = " and ".join(sorted("+".join(sorted(kind)) or "none" for kind in kinds))
        raise ValueError(f"Expected the same kinds of prompts for every image, got {named}: process them one by one.")
    if not parts[0]:
        return {}
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if name in ("point_coords", "point_labels"):
            tensors = [_fill(tensor, max(each.shape[1] for each in tensors)) for tensor in tensors]
        joined[name] = torch.cat(tensors)
    if len(parts) > 1:
        counts = [len(next(iter(part.values()))) for part in parts]
        joined["image_index"] = torch.arange(len(parts)).repeat_interleave(torch.tensor(counts))
    return joined


def _of_one(value: Any, axes: int) -> Any:
    """Without the axis for the photo, if there is one."""
    if hasattr(value, "xyxy"):  # a detector's result
        return value
    array = to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)
    return array[0] if array.ndim > axes and len(array) == 1 else value


def _of_photo(
    prompts: GeometricPrompts | None, texts: list[str] | None, number: int, embed: Callable[[Sequence[str]], Tensor]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if prompts is not None:
        given = {name: getattr(prompts, name) for name in ("point_coords", "point_labels", "boxes", "mask_input")}
        tensors |= {name: torch.as_tensor(value) for name, value in given.items() if value is not None}
    if texts is not None:
        count = len(texts) if prompts is None else len(prompts)
        if len(texts) not in (1, count):
            raise ValueError(
                f"Expected one text for image {number}, or one for each of its {count} prompts, got {len(texts)}."
            )
        tensors["text_embeddings"] = embed(texts).expand(count, -1)
    return tensors


def _fill(tensor: Tensor, points: int) -> Tensor:
    """(N, K, 2) coordinates or (N, K) labels with K raised to `points`; the label -1 marks what was added."""
    missing = points - tensor.shape[1]
    return F.pad(tensor, (0, 0, 0, missing)) if tensor.ndim == 3 else F.pad(tensor, (0, missing), value=-1)
