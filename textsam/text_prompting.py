"""Words alone to every instance of what they name, with a model whose text prompt was trained.

The text token joins one point or one box per guess in the same decoder call. Where the guesses come from depends on
the model: with a similarity head, from the peaks and the regions of each text's similarity map; without one, from a
regular grid of points. Every guess is scored, and of guesses that repeat each other the best stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from textsam.detections import confidence_score, mask_nms, stability_scores
from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings
from textsam.transforms import LOW_RES_STRIDE, ImageGeometry


@dataclass(frozen=True)
class TextPromptOptions:
    """Every constant of text prompting.

    Attributes:
        presence_threshold: a text whose presence is below it is taken as absent, and no guess is made.
        confidence_threshold: instances of a lower confidence are dropped, unless the caller gives a threshold.
        region_threshold: similarity probability above which a position belongs to a text's region.
        peak_threshold: similarity probability that a peak needs to become a point.
        peak_radius: a peak is the maximum of a window of 2 * radius + 1 positions of the similarity map.
        points_per_side: with a similarity head: spacing of the grid points that cover a region, as points per long
            side of the photo, beside the peaks.
        grid_points_per_side: without a similarity head: the whole grid's.
        max_points: at most this many points for each text, the most similar first.
        use_boxes: also ask with the box of each connected region.
        min_region: a connected region of fewer positions gets no box.
        points_per_batch: prompts in one decoder call.
        multimask_output: let each point offer three masks, of which the best scored is kept.
        ring_weight: how far similarity just outside a mask counts against it (a part of a thing has the rest around).
        iou_threshold, containment_threshold: see `mask_nms`.
        min_stability: masks whose stability score is below it are dropped.
    """

    presence_threshold: float = 0.3
    confidence_threshold: float = 0.25
    region_threshold: float = 0.5
    peak_threshold: float = 0.5
    peak_radius: int = 2
    points_per_side: int = 16
    grid_points_per_side: int = 16
    max_points: int = 48
    use_boxes: bool = True
    min_region: int = 2
    points_per_batch: int = 64
    multimask_output: bool = True
    ring_weight: float = 0.5
    iou_threshold: float = 0.5
    containment_threshold: float = 0.8
    min_stability: float = 0.5


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
    similarity = similarity_probability(model, image, geometry, text_embeddings, negative_embeddings)
    presence = text_presence(model, image, text_embeddings, similarity)
    lowest = options.confidence_threshold if threshold is None else threshold
    # No instance can be more confident than its text is present: below the threshold nothing need be decoded.
    gate = max(lowest, options.presence_threshold) if threshold is None else lowest
    parts = [TextInstances.none(image)]
    for query in torch.nonzero(presence >= gate)[:, 0].tolist():
        probability = None if similarity is None else similarity[query]
        if probability is None:
            points, boxes = grid_points(geometry, options.grid_points_per_side), np.zeros((0, 4))
        else:
            points, boxes = guess_prompts(probability.cpu().numpy(), geometry, options)
        guesses = decode_guesses(
            model, image, geometry, text_embeddings[query], query, points, boxes, presence[query], probability, options
        )
        parts.append(keep_best(guesses, options, lowest, max_instances))
    return TextInstances.join(parts)


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


def text_presence(
    model: TextSamModel, image: ImageEmbeddings, text_embeddings: Tensor, similarity: Tensor | None
) -> Tensor:
    """Does each named thing appear in the photo at all? (Q,) float32 in [0, 1].

    The geometric mean of two estimates where the model has both: the presence token, read with the text as the only
    prompt, and the maximum of the similarity map.
    """
    if len(text_embeddings) == 0:
        return torch.zeros(0, device=image.image_embeddings.device)
    prompts = model.encode_prompts(image, text_embeddings=text_embeddings)
    logits = model.decode_masks(image, prompts, multimask_output=False).presence_logits
    presence = logits.float().sigmoid()  # type: ignore[union-attr]
    if similarity is None:
        return presence
    return (presence * similarity.flatten(1).amax(1)).sqrt()


def guess_prompts(
    probability: np.ndarray, geometry: ImageGeometry, options: TextPromptOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Points and boxes, in input pixels, that one text's similarity map suggests.

    Args:
        probability: (hc, wc) in [0, 1], covering the padded input.
    Returns:
        points (P, 2) xy: the peaks, then grid points inside the region, P at most `max_points`; boxes (R, 4) xyxy of
        the connected regions.
    """
    height, width = geometry.resized_size_hw
    cell_y, cell_x = (n / cells for n, cells in zip(geometry.padded_size_hw, probability.shape, strict=True))
    size = 2 * options.peak_radius + 1
    is_peak = ndimage.maximum_filter(probability, size=size) == probability
    # The highest peak counts in any case: whoever asks with a low threshold gets an answer of low confidence.
    is_peak &= probability >= min(options.peak_threshold, probability.max())
    rows, columns = np.nonzero(is_peak)
    order = np.argsort(-probability[rows, columns], kind="stable")[: options.max_points]
    peaks = np.stack([(columns[order] + 0.5) * cell_x, (rows[order] + 0.5) * cell_y], axis=1)
    peaks = np.minimum(peaks, (width, height))  # the last cell may reach into the padding

    grid = grid_points(geometry, options.points_per_side)
    at_grid = probability[(grid[:, 1] / cell_y).astype(int), (grid[:, 0] / cell_x).astype(int)]
    order = np.argsort(-at_grid, kind="stable")
    order = order[at_grid[order] >= options.region_threshold][: options.max_points - len(peaks)]
    points = np.concatenate([peaks, grid[order]])

    boxes = []
    if options.use_boxes:
        labels, _ = ndimage.label(probability >= options.region_threshold, structure=np.ones((3, 3)))
        for number, (rows_slice, columns_slice) in enumerate(ndimage.find_objects(labels), start=1):
            if (labels[rows_slice, columns_slice] == number).sum() >= options.min_region:
                left, right = columns_slice.start * cell_x, columns_slice.stop * cell_x
                boxes.append([left, rows_slice.start * cell_y, right, rows_slice.stop * cell_y])
    return points, np.minimum(np.array(boxes).reshape(-1, 4), (width, height, width, height))


def grid_points(geometry: ImageGeometry, points_per_side: int) -> np.ndarray:
    """A regular grid of points over the photo: (P, 2) xy in input pixels, `points_per_side` along the long side."""
    height, width = geometry.resized_size_hw
    step = max(height, width) / points_per_side
    count_y, count_x = max(round(height / step), 1), max(round(width / step), 1)
    x, y = (np.arange(count_x) + 0.5) * width / count_x, (np.arange(count_y) + 0.5) * height / count_y
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


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
            geometric: dict[str, Tensor] = {"boxes": chunk}
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
    flat = clear_padding(flat, geometry, fill=-10.0)
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

    agreement = mean probability inside * (1 - ring_weight * mean probability just outside). The ring is one position
    of the similarity map wide.

    Args:
        masks: (N, 4h, 4w) bool and probability: (hc, wc) in [0, 1], both with their padding cleared.
    Returns:
        (N,) float32 in [0, 1]; 0 for an empty mask.
    """
    occupancy = F.interpolate(masks[:, None].float(), tuple(probability.shape), mode="area")
    ring = (F.max_pool2d(occupancy, 3, stride=1, padding=1) - occupancy).clamp(min=0)
    inside = (occupancy * probability).sum((1, 2, 3)) / occupancy.sum((1, 2, 3)).clamp(min=1e-6)
    outside = (ring * probability).sum((1, 2, 3)) / ring.sum((1, 2, 3)).clamp(min=1e-6)
    return inside * (1.0 - ring_weight * outside)


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
