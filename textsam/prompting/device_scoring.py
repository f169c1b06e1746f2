"""Automatic masks scored, boxed and run-length encoded where the logits are: only the codes leave a GPU.

A mask at a photo's size is hundreds of kilobytes, its code hundreds of bytes; a thousand masks are encoded by a few
operations on all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# A compressed run is at most this many digits of 5 bits: runs fit 32 bits, differences of two of them 33.
_MOST_DIGITS = 7


def score_logits(
    logits: Tensor, levels: tuple[float, float, float], min_stability: float, margins: tuple[int, int, int, int]
) -> tuple[list[int], list[float], list[list[int]], list[bytes]]:
    """Masks that are stable enough.

    Args:
        logits: (N, H, W) float32 at the picture's size.
        levels: low, middle and high threshold: of the outer mask, of the mask, and of the inner mask.
        min_stability: masks below it are dropped; 0 keeps all.
        margins: pixels of the photo left of, right of, above and below the picture.
    Returns:
        of each mask kept: its row in the logits, stability, box in the picture as `mask_boxes`, and compressed run
        lengths in the photo.
    """
    low, middle, high = levels
    outer, inner = ((logits > level).flatten(1).sum(1).float() for level in (low, high))
    stability = torch.where(outer > 0, inner / outer, 0.0)
    keep = stability >= min_stability if min_stability > 0.0 else torch.ones_like(stability, dtype=torch.bool)
    kept = keep.nonzero()[:, 0]
    masks = logits[kept] > middle
    boxes = mask_boxes(masks)
    codes = encode_masks(F.pad(masks, margins) if any(margins) else masks)
    return kept.tolist(), stability[kept].tolist(), boxes.tolist(), codes


def mask_boxes(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, 4) int64: first and last column and row inside, zeros for an empty mask."""
    edges = []
    for axis in (1, 2):
        hit = masks.any(dim=axis)
        place = torch.arange(hit.shape[1], device=masks.device)
        first = torch.where(hit, place, hit.shape[1]).amin(1)
        edges.append((first, torch.where(hit, place, -1).amax(1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1) * (right >= 0)[:, None]


def encode_masks(masks: Tensor) -> list[bytes]:
    """(N, H, W) bool -> compressed COCO run lengths of each, equal to `encode_mask`'s counts."""
    count, height, width = masks.shape
    if not count:
        return []
    # Column by column, as COCO has it; a run ends where a pixel differs from the one before, and behind the last one.
    flat = masks.transpose(1, 2).reshape(count, -1)
    ends = torch.ones(count, height * width + 1, dtype=torch.bool, device=masks.device)
    ends[:, 0] = flat[:, 0]  # the first run is of zeros, and may be empty
    torch.ne(flat[:, 1:], flat[:, :-1], out=ends[:, 1:-1])
    row, position = ends.nonzero(as_tuple=True)
    per_mask = ends.sum(1)
    begin = per_mask.cumsum(0) - per_mask
    nth = torch.arange(len(row), device=row.device) - begin[row]
    runs = position - torch.where(nth > 0, position.roll(1), 0)
    # From the fourth run on, the difference to the run before the last is written.
    digits, used = _digits(runs - torch.where(nth > 2, runs.roll(2), 0))
    lengths = torch.zeros_like(per_mask).index_add_(0, row, used.sum(1))
    text = bytes(digits[used].cpu().numpy())
    stops = lengths.cumsum(0).tolist()
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def _digits(values: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) int64 -> characters (R, 7) uint8 of each number, and which of them are used (R, 7) bool.

    Source: rleToString in cocoapi/common/maskApi.c.
    """
    characters, used = [], []
    more = torch.ones_like(values, dtype=torch.bool)
    for _ in range(_MOST_DIGITS):
        used.append(more)
        digit = values & 31
        values = values >> 5
        more = torch.where((digit & 16) > 0, values != -1, values != 0)
        characters.append((digit + 32 * more + 48).to(torch.uint8))
        more = more & used[-1]
    return torch.stack(characters, dim=1), torch.stack(used, dim=1)
