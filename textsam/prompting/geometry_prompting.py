"""Points, boxes and masks, with or without words, to one object each: SAM's own use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from textsam.modeling.structures import ImageEmbeddings, MaskPredictions
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.detections import confidence_score, stability_scores
from textsam.prompting.mask_details import only_click
from textsam.prompting.prompts import PROMPTS_PER_BATCH, GeometricPrompts
from textsam.prompting.text_instances import OUTSIDE, clear_padding, mask_agreement
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.transforms import ImageGeometry


@dataclass(frozen=True)
class GeometryMasks:
    """N * M masks: all masks of the first prompt set, then all of the second, and so on.

    Attributes:
        low_res_logits: (N * M, 4h, 4w) float32.
        prompt_index, mask_index: (N * M,) int64.
        predicted_iou, stability, confidence: (N * M,) float32.
        presence: (N * M,) float32 in [0, 1]; None without text.
        agreement: (N * M,) float32 in [0, 1]; None without text or without a similarity head.
    """

    low_res_logits: Tensor
    prompt_index: Tensor
    mask_index: Tensor
    predicted_iou: Tensor
    stability: Tensor
    confidence: Tensor
    presence: Tensor | None
    agreement: Tensor | None


def segment_prompts(
    model: TextSamNetwork,
    image: ImageEmbeddings,
    geometry: ImageGeometry,
    prompts: GeometricPrompts,
    text_embeddings: Tensor | None,
    similarity: Tensor | None,
    multimask_output: bool,
    options: TextPromptOptions,
) -> GeometryMasks:
    """The masks of N prompt sets on one photo.

    Args:
        image: one encoded photo (B = 1). geometry: its sizes.
        prompts: N checked prompt sets.
        text_embeddings: (N, D) of unit length, one for each prompt set, or None.
        similarity: (N, hc, wc) probabilities of those texts, or None.
        multimask_output: True: M = 3 masks for an ambiguous prompt; False: M = 1, SAM's mask 0.
        options: of them ring_weight, and click_rounds where a prompt set is one click and a text and M = 1.
    """
    device = image.image_embeddings.device
    possible = {
        "point_coords": prompts.point_coords,
        "point_labels": prompts.point_labels,
        "boxes": prompts.boxes,
        "mask_input": prompts.mask_input,
        "text_embeddings": text_embeddings,
    }
    tensors: dict[str, Any] = {
        name: torch.as_tensor(value, device=device) for name, value in possible.items() if value is not None
    }
    number = model.config.num_multimask_outputs if multimask_output else 1
    height, width = geometry.low_res_size_hw
    logits = torch.zeros(len(prompts), number, height, width, device=device)
    predicted_iou = torch.zeros(len(prompts), number, device=device)
    presence = torch.zeros(len(prompts), device=device)
    one_click = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    if tensors.keys() == {"point_coords", "point_labels", "text_embeddings"}:
        labels = tensors["point_labels"]
        one_click = ((labels >= 0).sum(dim=1) == 1) & (labels == 1).any(dim=1)
    for start in range(0, len(prompts), PROMPTS_PER_BATCH):
        chunk = slice(start, start + PROMPTS_PER_BATCH)
        given = {name: value[chunk] for name, value in tensors.items()}
        decoded = model.decode_masks(image, model.encode_prompts(image, **given), multimask_output=multimask_output)
        if decoded.presence_logits is not None:
            presence[chunk] = decoded.presence_logits.float().sigmoid()
        logits[chunk] = decoded.low_res_logits.float()
        predicted_iou[chunk] = decoded.iou_predictions.float()
        rows = torch.nonzero(one_click[chunk])[:, 0]
        if len(rows) and options.click_rounds > 0 and not multimask_output:
            asked = only_click(given["point_coords"][rows], given["point_labels"][rows])
            texts, said = given["text_embeddings"][rows], decoded.low_res_logits[rows]
            decoded = _ask_again(model, image, asked, texts, said, options.click_rounds)
            logits[start + rows] = decoded.low_res_logits.float()
            predicted_iou[start + rows] = decoded.iou_predictions.float()
    inside = clear_padding(logits, geometry, fill=OUTSIDE)
    agreement = None
    if similarity is not None:
        pairs = zip(inside, similarity, strict=True)
        each = [mask_agreement(masks > 0, map_, options.ring_weight) for masks, map_ in pairs]
        agreement = torch.stack(each).flatten() if each else predicted_iou.flatten()
    flat_presence = None if text_embeddings is None else presence.repeat_interleave(number)
    index = torch.arange(len(prompts) * number, device=device)
    return GeometryMasks(
        low_res_logits=logits.flatten(0, 1),
        prompt_index=index // number,
        mask_index=index % number,
        predicted_iou=predicted_iou.flatten(),
        stability=stability_scores(inside).flatten(),
        confidence=confidence_score(predicted_iou.flatten(), flat_presence, agreement),
        presence=flat_presence,
        agreement=agreement,
    )


def _ask_again(
    model: TextSamNetwork, image: ImageEmbeddings, clicks: dict[str, Any], texts: Tensor, said: Tensor, rounds: int
) -> MaskPredictions:
    """What N clicks and texts (N, D) say about the mean of what they `said` (N, 1, 4h, 4w) and the clicks alone say.

    Where things of one name touch, the name takes in the neighbours; a click alone may stop at a part of the thing.
    """
    alone = model.decode_masks(image, model.encode_prompts(image, **clicks), multimask_output=True)
    best = alone.iou_predictions.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    about = (said + alone.low_res_logits[rows, best][:, None]) / 2
    for _ in range(rounds):
        prompts = model.encode_prompts(image, **clicks, text_embeddings=texts, mask_input=about)
        decoded = model.decode_masks(image, prompts, multimask_output=False)
        about = decoded.low_res_logits
    return decoded
