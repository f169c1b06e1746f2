"""Words alone to every instance of what they name, with a model whose text prompt was trained.

A text is first read alone: is it there, and in which region? Then the text token joins one point per guess in the same
decoder call, to tell instances apart. Where the guesses come from depends on the model: with a similarity head, from
the text's similarity map, and connected regions that the guesses do not take apart are instances themselves; without
one, from a regular grid of points. Every guess is scored, and of guesses that repeat each other the best stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from textsam.modeling.structures import ImageEmbeddings
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.text_guesses import grid_points, guess_prompts
from textsam.prompting.text_instances import TextInstances, TextReading, keep_best, one_name_each, score_masks
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.text_reading import read_texts
from textsam.prompting.text_regions import explain_regions, find_regions
from textsam.prompting.transforms import ImageGeometry


def find_instances(
    model: TextSamNetwork,
    image: ImageEmbeddings,
    geometry: ImageGeometry,
    text_embeddings: Tensor,
    negative_embeddings: Tensor | None,
    options: TextPromptOptions,
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
        max_instances: for each text, the most confident.
        threshold: on the confidence; None: the one of the options, and their share of the best.
    """
    reading = read_texts(model, image, geometry, text_embeddings, negative_embeddings)
    lowest = options.confidence_threshold if threshold is None else threshold
    gate = options.presence_threshold if threshold is None else lowest**3  # confidence is a mean of three
    parts = [TextInstances.none(image)]
    for query in torch.nonzero(reading.presence >= gate)[:, 0].tolist():
        if reading.similarity is None:
            points, boxes = grid_points(geometry, options.grid_points_per_side), np.zeros((0, 4))
        else:
            points, boxes = guess_prompts(reading.similarity[query].cpu().numpy(), geometry, options)
        guesses = decode_guesses(model, image, geometry, text_embeddings[query], reading, query, points, boxes, options)
        guesses = keep_best(guesses, options, lowest)
        if reading.similarity is not None:
            regions = find_regions(reading, query, geometry, options)
            guesses = explain_regions(regions.select(regions.confidence >= lowest), guesses, options)
            guesses = keep_best(guesses, options, lowest)
        if threshold is None and len(guesses):
            guesses = guesses.select(guesses.confidence >= options.share_of_best * guesses.confidence.max())
        parts.append(guesses.select(slice(max_instances)))
    return one_name_each(TextInstances.join(parts), options.same_mask_iou)


def decode_guesses(
    model: TextSamNetwork,
    image: ImageEmbeddings,
    geometry: ImageGeometry,
    text_embedding: Tensor,
    reading: TextReading,
    query: int,
    points: np.ndarray,
    boxes: np.ndarray,
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
            logits, predicted_iou = decoded.low_res_logits.float(), decoded.iou_predictions.float()
            parts.append(score_masks(logits, predicted_iou, reading, query, geometry, options))
    return TextInstances.join(parts)
