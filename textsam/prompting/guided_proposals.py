"""Proposals where CLIP sees what the words name, in the place of masks of everything.

The dense features of one CLIP pass, compared with the words and with what else a photo may show, say where each word is
likely. A few points there ask for masks instead of a grid over the whole photo: a hundredth of the prompts, and small
things get points that a grid would miss.

Source: Zhou et al. 2022, *Extract Free Dense Labels from CLIP* (MaskCLIP), for the dense features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.prompting.text_guesses import find_peaks

# The map is enlarged before its peaks are looked for: points then lie between its coarse cells, too.
ENLARGED = 2
PEAK_RADIUS = 2


def word_maps(dense_features: Tensor, text_embeddings: Tensor, other_embeddings: Tensor, logit_scale: float) -> Tensor:
    """Where each text is likely: softmax over all texts of the scaled cosines, at each position.

    Args:
        dense_features: (D, hc, wc) of unit length over D. text_embeddings: (Q, D). other_embeddings: (P, D), what a
            place may show instead.
    Returns:
        (Q, hc, wc) float32 in [0, 1].
    """
    texts = torch.cat([text_embeddings, other_embeddings]).float().to(dense_features.device)
    cosines = torch.einsum("dhw,qd->qhw", dense_features.float(), texts)
    return (logit_scale * cosines).softmax(0)[: len(text_embeddings)]


def guiding_points(maps: Tensor, least: float, most: int) -> np.ndarray:
    """Points to ask for masks at.

    Args:
        maps: (Q, hc, wc) in [0, 1], over the whole photo.
        least: probability above which a place may get a point; each text's highest peak always does.
        most: peaks of each text, and as many further places spread over where the text is likely.
    Returns:
        (P, 2) xy in [0, 1] of the photo, none twice.
    """
    size = [side * ENLARGED for side in maps.shape[-2:]]
    if not len(maps):
        return np.zeros((0, 2))
    enlarged = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0].cpu().numpy()
    points = []
    for probability in enlarged:
        peaks = np.stack(find_peaks(probability, least, PEAK_RADIUS), axis=1)[:most]
        region = np.argwhere(probability >= least)
        if len(region) > most:  # evenly through the region, row by row
            region = region[np.linspace(0, len(region) - 1, most).round().astype(int)]
        points += [peaks, region]
    return ((np.unique(np.concatenate(points), axis=0) + 0.5) / size)[:, ::-1]
