"""The region of one text taken apart into instances: its connected parts, or the guesses that cover them."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from textsam.prompting.text_instances import OUTSIDE, TextInstances, TextReading, score_masks
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.transforms import ImageGeometry

LEAST_IOU = 0.1  # that a prediction is believed


def find_regions(
    reading: TextReading, query: int, geometry: ImageGeometry, options: TextPromptOptions
) -> TextInstances:
    """The connected parts of one text's mask, as instances.

    Their logits are moved by -log(predicted IoU). Of a mask whose expected overlap is I, what is likelier than
    I / (1 + I), not than one half, belongs into it for the overlap to be largest (Lipton et al. 2014, *Optimal
    Thresholding of Classifiers to Maximize F1 Measure*: half of F1, which is 2 I / (1 + I)).
    """
    from scipy import ndimage  # on first use: importing it takes longer than loading the model

    logits = reading.region_logits[query] - reading.region_iou[query].clamp(LEAST_IOU, 1).log()
    labels, count = ndimage.label((logits > 0).cpu().numpy(), structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    numbers = [number for number in range(1, count + 1) if areas[number] >= options.min_region]
    chosen = (
        torch.from_numpy(labels)[None].to(logits.device) == torch.tensor(numbers, device=logits.device)[:, None, None]
    )
    # Just outside a part the logits stay, so that upscaling finds the same edge.
    near = F.max_pool2d(chosen[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
    parts = torch.where(near & ((logits <= 0) | chosen), logits, OUTSIDE)
    iou = reading.region_iou[query].expand(len(parts))[:, None]
    return score_masks(parts[:, None], iou, reading, query, geometry, options)


def explain_regions(regions: TextInstances, guesses: TextInstances, options: TextPromptOptions) -> TextInstances:
    """Each region as it is, or in its place the two or more guesses inside it that cover it; guesses elsewhere stay.

    Touching things of one name are one region. A lone guess in a region is the same thing, drawn from less.
    """
    if not len(regions):
        return guesses
    masks, inside = regions.low_res_logits > 0, guesses.low_res_logits > 0
    shared = torch.einsum("rhw,ghw->rg", masks.float(), inside.float())
    belongs = shared >= options.part_share * inside.flatten(1).sum(1)
    keep_region = torch.ones(len(regions), dtype=torch.bool, device=masks.device)
    keep_guess = ~belongs.any(0)
    for number, mask in enumerate(masks):
        members = torch.nonzero(belongs[number])[:, 0]
        covered = (
            (inside[members].any(0) & mask).sum() >= options.part_share * mask.sum() if len(members) > 1 else False
        )
        if covered:
            keep_region[number] = False
            keep_guess[members] = True
    return TextInstances.join([regions.select(keep_region), guesses.select(keep_guess)])
