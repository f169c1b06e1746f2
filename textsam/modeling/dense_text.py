"""The dense form of a text prompt: where the CLIP that embeds the text sees it, given to the decoder as a mask prompt.

One sparse token says what to look for and leaves it to the decoder to find where. A CLIP's last layer says where, cell
by cell (Zhou et al. 2022, *MaskCLIP*); SAM's prompt encoder has a place for such maps already, that of a former mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

OUTSIDE = -10.0  # logit where there is no picture


class DenseText(nn.Module):
    """Cosines of a text and the cells of an image -> logits.

    Cosines of one text differ little over an image, and by another amount for each text and for crops than for words:
    what counts is how far a cell stands out. Two weights turn that into logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def forward(self, features: Tensor, texts: Tensor) -> Tensor:
        """
        Args:
            features: (B, D, h, w) CLIP's, of unit length over D; zeros where there is no picture.
            texts: (B, Q, D) or (1, Q, D) of unit length.
        Returns:
            (B, Q, h, w) float32 logits, > 0 where the text stands out.
        """
        cosines = torch.einsum("bdhw,bqd->bqhw", features.float(), texts.float().expand(len(features), -1, -1))
        inside = features.any(dim=1, keepdim=True)
        share = inside / inside.sum((2, 3), keepdim=True).clamp(min=1)
        centred = cosines - (cosines * share).sum((2, 3), keepdim=True)
        deviation = (centred.square() * share).sum((2, 3), keepdim=True).sqrt()
        logits = self.scale.float() * centred / (deviation + 1e-6) + self.bias.float()
        return torch.where(inside, logits, OUTSIDE)
