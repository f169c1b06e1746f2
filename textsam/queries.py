"""Classes with synonyms, thresholds and negative words, asked of a photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from textsam.language.queries import QueryList
from textsam.predictor import TextSam
from textsam.prompting.detections import best_of_group, mask_nms
from textsam.prompting.prompts import check_max_instances, check_threshold

if TYPE_CHECKING:
    import supervision as sv


def find_queries(
    sam: TextSam,
    image: Any,
    queries: QueryList | str | Sequence[str],
    *,
    max_instances: int | None = None,
    threshold: float | None = None,
) -> sv.Detections:
    """Every instance of every class.

    Each synonym is asked on its own, and what several of them find is suppressed within the class by masks, the most
    confident staying. The mean of their embeddings would be cheaper, but it lies between the senses (a "mouse" of two
    kinds is neither) and is shorter than any of them, so that its scores no longer mean what thresholds were set for.

    Args:
        image: the photo; None: the one that is set.
        queries: classes, or their lines as `QueryList.parse` takes them, of which plain names are the simplest; a
            threshold of a class goes before `threshold`.
        max_instances: for each class, the most confident.
        threshold: for classes without one of their own; None: the model's default.
    Returns:
        as `TextSam.predict`, levels of written text in reading order, with class_id and class_name those of the
        classes, and data["query_text"] the synonym.
    Raises:
        ValueError, TypeError: as `TextSam.predict` and `QueryList.parse`.
    """
    queries = queries if isinstance(queries, QueryList) else QueryList.parse(queries)
    max_instances, threshold = check_max_instances(max_instances), check_threshold(threshold)
    reader = sam.text_reader
    levels = [] if reader is None else reader.levels_asked(queries.texts)
    if reader is not None and levels:
        scores = [reader.options.least_score(level) if threshold is None else threshold for level in levels]
        return _find_written_text(sam, image, queries, max_instances, scores)
    options = sam.text_options if sam.network.config.text_trained else sam.ranking_options
    own = [query.threshold for query in queries.queries]
    lowest = threshold
    if any(value is not None for value in own):
        default = options.confidence_threshold if threshold is None else threshold
        lowest = min(default if value is None else value for value in own)
    negatives = list(queries.negative_texts) or None
    found = sam.predict(image, text=queries.texts, negative_text=negatives, threshold=lowest, return_logits=True)
    masks = torch.from_numpy(found.data.pop("low_res_logits")) > 0
    found.data["query_text"] = found.data["class_name"]
    classes = np.array(queries.class_of_text, dtype=np.int64)[found.class_id]
    keep = np.ones(len(found), dtype=bool)
    for number, value in enumerate(own):
        of_class = classes == number
        if value is not None:
            keep[of_class] &= found.confidence[of_class] >= value
        elif lowest != threshold:  # asked below this class's threshold for the sake of another class
            least = options.confidence_threshold if threshold is None else threshold
            keep[of_class] &= found.confidence[of_class] >= least
            if threshold is None and sam.network.config.text_trained:
                keep[of_class] &= found.data["presence"][of_class] >= sam.text_options.presence_threshold
                best = best_of_group(found.confidence, found.class_id)  # of each text, as `predict` has it
                keep[of_class] &= found.confidence[of_class] >= sam.text_options.share_of_best * best[of_class]
    indices = np.flatnonzero(keep)
    kept = mask_nms(
        masks[indices],
        torch.from_numpy(found.confidence[indices]),
        options.iou_threshold,
        options.containment_threshold,
        torch.from_numpy(classes[indices]),
    ).numpy()
    best_first = indices[kept]
    chosen = [best_first[classes[best_first] == number][:max_instances] for number in range(len(own))]
    order = np.concatenate([*chosen, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    result = found[order]
    result.class_id = classes[order]
    result.data["class_name"] = np.array([queries.names[number] for number in result.class_id], dtype=str)
    result.data["prompt_index"] = result.class_id
    return result


def _find_written_text(
    sam: TextSam,
    image: Any,
    queries: QueryList,
    max_instances: int | None,
    least: list[float],
) -> sv.Detections:
    """Levels of written text as classes; regions of a level do not repeat each other, so nothing is suppressed.

    Args:
        least: of each text, the score below which it is dropped, unless its class says otherwise.
    """
    class_of_text = np.array(queries.class_of_text, dtype=np.int64)
    own = [queries.queries[number].threshold for number in class_of_text]
    least = [general if value is None else value for general, value in zip(least, own, strict=True)]
    negatives = list(queries.negative_texts) or None
    found = sam.predict(image, text=queries.texts, negative_text=negatives, threshold=min(least))
    classes = class_of_text[found.class_id]
    keep = np.flatnonzero(found.confidence >= np.array(least)[found.class_id])
    if max_instances is not None:
        ranked = keep[np.argsort(-found.confidence[keep], kind="stable")]
        best = [ranked[classes[ranked] == number][:max_instances] for number in range(len(queries.queries))]
        keep = np.sort(np.concatenate(best))
    result = found[keep]
    result.data["query_text"] = result.data["class_name"]
    result.class_id = classes[keep]
    result.data["class_name"] = np.array([queries.names[number] for number in result.class_id], dtype=str)
    result.data["prompt_index"] = result.class_id
    return result
