"""What words say of a photo, and the instances found with them: their scores, and which of them stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.modeling.structures import ImageEmbeddings
from textsam.prompting.detections import confidence_score, mask_nms, mask_overlaps, stability_scores
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.transforms import LOW_RES_STRIDE, ImageGeometry

OUTSIDE = -10.0  # logit of what is surely outside
ROUNDING = 1e-4  # of confidences: those of two spellings of a name differ by it


@dataclass(frozen=True)
class TextReading:
    """What Q texts alone say of a photo.

    Attributes:
        presence: (Q,) in [0, 1], does the named thing appear at all? The geometric mean of two estimates where the
            model has both: the presence token, and the maximum of a similarity head's map.
        region_logits: (Q, 4h, 4w) the text's mask, the union of its instances where the model learned that.
        region_iou: (Q,) its predicted IoU.
        similarity: (Q, hc, wc) probabilities; None where the model knows of none.
    """

    presence: Tensor
    region_logits: Tensor
    region_iou: Tensor
    similarity: Tensor | None


@dataclass(frozen=True)
class TextInstances:
    """N instances, those of a text together and best first.

    Attributes:
        low_res_logits: (N, 4h, 4w) float32.
        query_index: (N,) int64, which text.
        confidence, predicted_iou, stability, presence, agreement: (N,) float32.
    """

    low_res_logits: Tensor
    query_index: Tensor
    confidence: Tensor
    predicted_iou: Tensor
    stability: Tensor
    presence: Tensor
    agreement: Tensor

    def __len__(self) -> int:
        return len(self.query_index)

    def select(self, rows: Tensor | slice) -> TextInstances:
        """The instances of these rows: (K,) int64, in that order, or (N,) bool, which of them."""
        return TextInstances(**{name: values[rows] for name, values in vars(self).items()})

    @staticmethod
    def join(parts: list[TextInstances]) -> TextInstances:
        """Several (at least one) one after the other."""
        return TextInstances(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    @staticmethod
    def none(image: ImageEmbeddings) -> TextInstances:
        """No instance at all, with all axes."""
        height, width = (n // LOW_RES_STRIDE for n in image.input_size)
        empty = torch.zeros(0, device=image.image_embeddings.device)
        return TextInstances(empty.new_zeros(0, height, width), empty.long(), empty, empty, empty, empty, empty)


def score_masks(
    logits: Tensor,
    predicted_iou: Tensor,
    reading: TextReading,
    query: int,
    geometry: ImageGeometry,
    options: TextPromptOptions,
) -> TextInstances:
    """Of the M masks (N, M, 4h, 4w) that each prompt with one text got the most confident, with all its scores."""
    count, number = predicted_iou.shape
    flat = logits.flatten(0, 1)
    flat = clear_padding(flat, geometry, fill=OUTSIDE)
    if reading.similarity is None:
        agreement = torch.ones(len(flat), device=flat.device)
    else:
        agreement = mask_agreement(flat > 0, reading.similarity[query], options.ring_weight)
    presences = reading.presence[query].expand(len(flat))
    confidence = confidence_score(predicted_iou.flatten(), presences, agreement)
    best = torch.arange(count, device=flat.device) * number + confidence.view(count, number).argmax(1)
    every = TextInstances(
        low_res_logits=flat,
        query_index=torch.full((len(flat),), query, device=flat.device),
        confidence=confidence,
        predicted_iou=predicted_iou.flatten(),
        stability=stability_scores(flat),
        presence=presences,
        agreement=agreement,
    )
    return every.select(best)


def mask_agreement(masks: Tensor, probability: Tensor, ring_weight: float) -> Tensor:
    """How far masks agree with one text's similarity map.

    agreement = mean probability inside * (1 - ring_weight * mean probability just outside). The ring is as wide as one
    position of the similarity map is at the masks' resolution.

    Args:
        masks: (N, 4h, 4w) bool and probability: (hc, wc) in [0, 1], both with their padding cleared.
    Returns:
        (N,) float32 in [0, 1]; 0 for an empty mask.
    """
    width = max(masks.shape[-1] // probability.shape[-1], 1)
    fine = F.interpolate(probability[None, None], masks.shape[-2:], mode="bilinear", align_corners=False)
    inside = masks[:, None].float()
    ring = F.max_pool2d(inside, 2 * width + 1, stride=1, padding=width) - inside
    mean_inside, mean_outside = (
        (area * fine).sum((1, 2, 3)) / area.sum((1, 2, 3)).clamp(min=1) for area in (inside, ring)
    )
    return mean_inside * (1.0 - ring_weight * mean_outside)


def keep_best(guesses: TextInstances, options: TextPromptOptions, threshold: float) -> TextInstances:
    """Of one text's guesses: those that are confident, stable and not empty, without repetitions, best first."""
    not_empty = (guesses.low_res_logits > 0).flatten(1).any(1)
    good = not_empty & (guesses.confidence >= threshold) & (guesses.stability >= options.min_stability)
    guesses = guesses.select(good)
    kept = mask_nms(
        guesses.low_res_logits > 0, guesses.confidence, options.iou_threshold, options.containment_threshold
    )
    return guesses.select(kept)


def one_name_each(instances: TextInstances, same_mask_iou: float) -> TextInstances:
    """Of instances of different texts that are the same mask, the more confident: a striped cat is no zebra as well.

    Of equally confident ones ("cup" and "cups") that of the text asked first.
    """
    masks = instances.low_res_logits > 0
    texts = instances.query_index
    iou, _ = mask_overlaps(masks)
    surer = instances.confidence[None, :] - instances.confidence[:, None]
    better = (surer > ROUNDING) | ((surer.abs() <= ROUNDING) & (texts[None, :] < texts[:, None]))
    beaten = (iou > same_mask_iou) & better & (texts[None, :] != texts[:, None])
    return instances.select(~beaten.any(1))


def clear_padding(maps: Tensor, geometry: ImageGeometry, fill: float = 0.0) -> Tensor:
    """A copy of (..., rows, columns) maps over the padded input whose positions wholly in the padding are `fill`."""
    (height, width), (padded_height, padded_width) = geometry.resized_size_hw, geometry.padded_size_hw
    rows, columns = maps.shape[-2:]
    cleared = torch.full_like(maps, fill)
    inside = (..., slice(-(-height * rows // padded_height)), slice(-(-width * columns // padded_width)))
    cleared[inside] = maps[inside]
    return cleared
