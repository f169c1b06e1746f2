"""Words alone to every instance of what they name, with a model whose text prompt was trained.

A text is first read alone: is it there, and in which region? Then the text token joins one point per guess in the same
decoder call, to tell instances apart. Where the guesses come from depends on the model: with a similarity head, from
the text's similarity map, and connected regions that the guesses do not take apart are instances themselves; without
one, from a regular grid of points. Every guess is scored, and of guesses that repeat each other the best stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings
from textsam.prompting.detections import confidence_score, mask_nms, mask_overlaps, stability_scores
from textsam.prompting.text_guesses import grid_points, guess_prompts
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.transforms import LOW_RES_STRIDE, ImageGeometry

OUTSIDE = -10.0  # logit of what is surely outside


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

    def select(self, indices: Tensor) -> TextInstances:
        """The instances at these indices, (K,) int64, in that order."""
        return TextInstances(**{name: values[indices] for name, values in vars(self).items()})

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


def find_instances(
    model: TextSamModel,
    image: ImageEmbeddings,
    geometry: ImageGeometry,
    text_embeddings: Tensor,
    negative_embeddings: Tensor | None = None,
    options: TextPromptOptions | None = None,
    max_instances: int | None = None,
    threshold: float | None = None,
) -> TextInstances:
    """Every instance of every text in one photo.

    Args:
        model: one whose text prompt was trained.
        image: one encoded photo (B = 1).
        geometry: its sizes.
        text_embeddings: (Q, D) of unit length.
        negative_embeddings: (P, D) of unit length; where one of them fits better than the text, the text loses.
        options: None: the defaults.
        max_instances: for each text, the most confident.
        threshold: on the confidence; None: the one of the options.
    """
    options = options or TextPromptOptions()
    reading = read_texts(model, image, geometry, text_embeddings, negative_embeddings)
    lowest = options.confidence_threshold if threshold is None else threshold
    gate = options.presence_threshold if threshold is None else lowest**3  # confidence is a mean of three
    parts = [TextInstances.none(image)]
    for query in torch.nonzero(reading.presence >= gate)[:, 0].tolist():
        probability = None if reading.similarity is None else reading.similarity[query]
        if probability is None:
            points, boxes = grid_points(geometry, options.grid_points_per_side), np.zeros((0, 4))
        else:
            points, boxes = guess_prompts(probability.cpu().numpy(), geometry, options)
        presence = reading.presence[query]
        guesses = decode_guesses(
            model, image, geometry, text_embeddings[query], query, points, boxes, presence, probability, options
        )
        guesses = keep_best(guesses, options, lowest, None)
        if probability is not None:
            regions = find_regions(reading, query, geometry, options)
            guesses = explain_regions(
                regions.select(torch.nonzero(regions.confidence >= lowest)[:, 0]), guesses, options
            )
            guesses = keep_best(guesses, options, lowest, None)
        parts.append(guesses.select(torch.arange(len(guesses), device=presence.device)[:max_instances]))
    return one_name_each(TextInstances.join(parts), options.same_mask_iou)


def one_name_each(instances: TextInstances, same_mask_iou: float) -> TextInstances:
    """Of instances of different texts that are the same mask, the more confident: a striped cat is no zebra as well."""
    masks = instances.low_res_logits > 0
    texts = instances.query_index
    iou, _ = mask_overlaps(masks)
    better = instances.confidence[None, :] > instances.confidence[:, None]
    beaten = (iou > same_mask_iou) & better & (texts[None, :] != texts[:, None])
    return instances.select(torch.nonzero(~beaten.any(1))[:, 0])


@dataclass(frozen=True)
class TextReading:
    """What Q texts alone say of a photo.

    Attributes:
        presence: (Q,) in [0, 1], does the named thing appear at all? The geometric mean of two estimates where the
            model has both: the presence token, and the maximum of the similarity map.
        region_logits: (Q, 4h, 4w) the text's mask, the union of its instances where the model learned that.
        region_iou: (Q,) its predicted IoU.
        similarity: (Q, hc, wc) probabilities; None without a similarity head.
    """

    presence: Tensor
    region_logits: Tensor
    region_iou: Tensor
    similarity: Tensor | None


def read_texts(
    model: TextSamModel,
    image: ImageEmbeddings,
    geometry: ImageGeometry,
    text_embeddings: Tensor,
    negative_embeddings: Tensor | None = None,
) -> TextReading:
    """Decode (Q, D) texts without any other prompt; what fits one of the (P, D) negative texts better is left out."""
    similarity = similarity_probability(model, image, geometry, text_embeddings, negative_embeddings)
    if len(text_embeddings) == 0:
        none = TextInstances.none(image)
        return TextReading(none.presence, none.low_res_logits, none.predicted_iou, similarity)
    prompts = model.encode_prompts(image, text_embeddings=text_embeddings)
    decoded = model.decode_masks(image, prompts, multimask_output=False)
    presence = decoded.presence_logits.float().sigmoid()  # type: ignore[union-attr]
    logits = clear_padding(decoded.low_res_logits[:, 0].float(), geometry, fill=OUTSIDE)
    if similarity is not None:
        presence = (presence * similarity.flatten(1).amax(1)).sqrt()
        allowed = F.interpolate((similarity > 0)[None].float(), tuple(logits.shape[-2:]), mode="nearest")[0] > 0
        logits = torch.where(allowed, logits, OUTSIDE)
    return TextReading(presence, logits, decoded.iou_predictions[:, 0].float(), similarity)


def find_regions(
    reading: TextReading, query: int, geometry: ImageGeometry, options: TextPromptOptions
) -> TextInstances:
    """The connected parts of one text's mask, as instances."""
    logits = reading.region_logits[query]
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
    return score_masks(
        parts[:, None],
        iou,
        query,
        reading.presence[query],
        None if reading.similarity is None else reading.similarity[query],
        geometry,
        options,
    )


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
    chosen = [regions.select(torch.nonzero(keep_region)[:, 0]), guesses.select(torch.nonzero(keep_guess)[:, 0])]
    return TextInstances.join(chosen)


def similarity_probability(
    model: TextSamModel,
    image: ImageEmbeddings,
    geometry: ImageGeometry,
    text_embeddings: Tensor,
    negative_embeddings: Tensor | None = None,
) -> Tensor | None:
    """Where each text is: (Q, hc, wc) probabilities; None without a similarity head.

    Positions in the padding, and those that fit a negative text better than the text, are 0.
    """
    logits = model.text_similarity(image, text_embeddings)
    if logits is None:
        return None
    logits = logits[0].float()
    probability = logits.sigmoid()
    if negative_embeddings is not None and len(negative_embeddings):
        negative = model.text_similarity(image, negative_embeddings)[0].float().amax(0)  # type: ignore[index]
        probability = torch.where(negative > logits, 0.0, probability)
    return clear_padding(probability, geometry)


def decode_guesses(
    model: TextSamModel,
    image: ImageEmbeddings,
    geometry: ImageGeometry,
    text_embedding: Tensor,
    query: int,
    points: np.ndarray,
    boxes: np.ndarray,
    presence: Tensor,
    probability: Tensor | None,
    options: TextPromptOptions,
) -> TextInstances:
    """One instance for each point and each box, with one text (D,): decoded in chunks and scored."""
    device = image.image_embeddings.device
    parts = [TextInstances.none(image)]
    for name, array in (("points", points), ("boxes", boxes)):
        prompts = torch.from_numpy(array.astype(np.float32)).to(device)
        for chunk in prompts.split(options.points_per_batch) if len(prompts) else ():
            geometric: dict[str, Any] = {"boxes": chunk}
            if name == "points":
                labels = torch.ones(len(chunk), 1, dtype=torch.int64, device=device)
                geometric = {"point_coords": chunk[:, None], "point_labels": labels}
            embedded = model.encode_prompts(image, text_embeddings=text_embedding.expand(len(chunk), -1), **geometric)
            multimask = options.multimask_output and name == "points"
            decoded = model.decode_masks(image, embedded, multimask_output=multimask)
            candidates = score_masks(
                decoded.low_res_logits.float(),
                decoded.iou_predictions.float(),
                query,
                presence,
                probability,
                geometry,
                options,
            )
            parts.append(candidates)
    return TextInstances.join(parts)


def score_masks(
    logits: Tensor,
    predicted_iou: Tensor,
    query: int,
    presence: Tensor,
    probability: Tensor | None,
    geometry: ImageGeometry,
    options: TextPromptOptions,
) -> TextInstances:
    """Of the M masks (N, M, 4h, 4w) of each prompt the most confident, with all its scores."""
    count, number = predicted_iou.shape
    flat = logits.flatten(0, 1)
    flat = clear_padding(flat, geometry, fill=OUTSIDE)
    if probability is None:
        agreement = torch.ones(len(flat), device=flat.device)
    else:
        agreement = mask_agreement(flat > 0, probability, options.ring_weight)
    presences = presence.expand(len(flat))
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


def keep_best(
    guesses: TextInstances, options: TextPromptOptions, threshold: float, max_instances: int | None
) -> TextInstances:
    """Of one text's guesses: those that are confident, stable and not empty, without repetitions, best first."""
    not_empty = (guesses.low_res_logits > 0).flatten(1).any(1)
    good = not_empty & (guesses.confidence >= threshold) & (guesses.stability >= options.min_stability)
    guesses = guesses.select(torch.nonzero(good)[:, 0])
    kept = mask_nms(
        guesses.low_res_logits > 0, guesses.confidence, options.iou_threshold, options.containment_threshold
    )
    return guesses.select(kept[:max_instances])


def clear_padding(maps: Tensor, geometry: ImageGeometry, fill: float = 0.0) -> Tensor:
    """A copy of (..., rows, columns) maps over the padded input whose positions wholly in the padding are `fill`."""
    (height, width), (padded_height, padded_width) = geometry.resized_size_hw, geometry.padded_size_hw
    rows, columns = maps.shape[-2:]
    cleared = torch.full_like(maps, fill)
    inside = (..., slice(-(-height * rows // padded_height)), slice(-(-width * columns // padded_width)))
    cleared[inside] = maps[inside]
    return cleared
