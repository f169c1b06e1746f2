"""Simulated clicks and boxes: the interactive part of Segment Anything's training.

Source: Kirillov et al. 2023, appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor

BOX_NOISE = 0.1  # standard deviation, share of the side
MAX_BOX_NOISE_PX = 20.0  # at an input of 1024


def noisy_boxes(boxes: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(N, 4) xyxy px, each coordinate moved by a Gaussian of 10% of the side, at most 20 px of 1024."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limit = MAX_BOX_NOISE_PX * size / 1024
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device)
    noise = (noise * BOX_NOISE * sides).clamp(-limit, limit)
    moved = (boxes + noise).clamp(0, size)
    # A tiny box may turn inside out; its corners are put in order again.
    return torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])], dim=1)


CLICKS = 8  # after the first prompt


def click_rounds(clicks: int, generator: torch.Generator) -> list[bool]:
    """Whether each round after the first brings a click: `clicks` of them, with one round without at a random place
    among them and one at the end. With 8 clicks that makes the paper's 11 rounds, the first included."""
    rounds = [True] * clicks
    if clicks:
        rounds.insert(int(torch.randint(clicks, (), generator=generator)), False)
    return [*rounds, False]


def uniform_error_clicks(
    logits: Tensor, targets: Tensor, weights: Tensor, stride: int, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """A click uniform in the region where the prediction is wrong.

    Args:
        logits: (N, h, w), targets (N, h, w) in [0, 1], weights (N, h, w); h = S / stride.
        draws: (N, 3) in [0, 1): the cell of the region, and the place inside it.
    Returns:
        coords (N, 1, 2) xy px; labels (N, 1): 1 where the mask was missed, 0 where it was too much. A perfect
        prediction gets a click somewhere on the mask.
    """
    truth = targets > 0.5
    wrong = (((logits > 0) != truth) & (weights > 0)).flatten(1)
    truth = truth.flatten(1)
    fallback = torch.where(truth.any(1, keepdim=True), truth, torch.ones_like(truth))
    region = torch.where(wrong.any(1, keepdim=True), wrong, fallback)
    counts = region.cumsum(1)
    rank = (draws[:, :1] * counts[:, -1:]).long() + 1  # the rank-th cell of the region
    index = torch.searchsorted(counts, rank.clamp(max=counts[:, -1:]))
    row, column = index // logits.shape[-1], index % logits.shape[-1]
    coords = (torch.stack([column, row], dim=-1) + draws[:, None, 1:]) * stride - 0.5
    return coords, truth.gather(1, index).long()
