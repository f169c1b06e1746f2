"""The losses of Segment Anything, as short pieces.

Source: Kirillov et al. 2023, appendix A: focal and dice 20 : 1, mean squared error of the predicted IoU, gradient to
the best of three masks only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_loss(logits: Tensor, targets: Tensor, weights: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """(..., H, W) logits, targets in [0, 1], weights >= 0 -> (...), weighted mean over the pixels.

    Source: Lin et al. 2017, *Focal Loss*. Soft targets give the focal form of soft cross entropy.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return _pixel_mean(balance * wrong**gamma * bce, weights)


def bce_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy of each pixel; arguments and result as `focal_loss`."""
    return _pixel_mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), weights)


def balance(targets: Tensor, weights: Tensor, limit: float = 10.0) -> Tensor:
    """Pixel weights under which a small mask is not drowned by its background: the mask's pixels count by the root of
    how much rarer they are, at most `limit`. Shapes as `focal_loss`."""
    share = ((targets * weights).sum((-1, -2)) / weights.sum((-1, -2)).clamp(min=1)).clamp(1e-4, 0.5)
    rarity = ((1 - share) / share).sqrt().clamp(max=limit)[..., None, None]
    return weights * (1 + (rarity - 1) * targets)


def dice_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """1 - 2 |A B| / (|A| + |B|), one added above and below so that two empty masks agree; as `focal_loss`.

    Source: Milletari et al. 2016, *V-Net*.
    """
    probability = logits.sigmoid() * weights
    targets = targets * weights
    both = (probability * targets).sum((-1, -2))
    return 1 - (2 * both + 1) / (probability.sum((-1, -2)) + targets.sum((-1, -2)) + 1)


def sam_mask_loss(logits: Tensor, targets: Tensor, weights: Tensor, focal: float = 20.0, dice: float = 1.0) -> Tensor:
    """Focal and dice at the paper's 20 : 1; arguments and result as `focal_loss`."""
    return focal * focal_loss(logits, targets, weights) + dice * dice_loss(logits, targets, weights)


def lowest_loss(losses: Tensor) -> Tensor:
    """(N, M) losses of M masks -> (N,): only the best of them gets a gradient."""
    return losses.min(dim=1).values


def iou_loss(predicted: Tensor, iou: Tensor) -> Tensor:
    """Squared error of the predicted IoU, mean over a prompt's masks: (N, M), (N, M) -> (N,).

    All masks count, not the best alone: the prediction has to rank them. The paper does not say.
    """
    return (predicted - iou).square().mean(dim=1)


def mask_iou(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """IoU of the thresholded masks, without gradient; shapes as `focal_loss`. Two empty masks: 1."""
    counted = weights > 0
    predicted, truth = (logits > 0) & counted, (targets > 0.5) & counted
    union = (predicted | truth).sum((-1, -2))
    return torch.where(union > 0, (predicted & truth).sum((-1, -2)) / union.clamp(min=1), 1.0)


def _pixel_mean(loss: Tensor, weights: Tensor) -> Tensor:
    return (loss * weights).sum((-1, -2)) / weights.sum((-1, -2)).clamp(min=1)
