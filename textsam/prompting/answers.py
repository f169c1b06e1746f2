"""A question about an encoded photo, answered as `supervision.Detections`: by geometry or by text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.detections import to_detections, to_numpy, word_scores
from textsam.prompting.encoded_image import EncodedImage
from textsam.prompting.geometry_prompting import segment_prompts
from textsam.prompting.mask_details import Asked, masks_of_photo
from textsam.prompting.prompts import GeometricPrompts
from textsam.prompting.questions import Question
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.text_prompting import find_instances
from textsam.prompting.text_reading import similarity_probability

if TYPE_CHECKING:
    import supervision as sv


def answer_geometry(
    model: TextSamNetwork,
    encoded: EncodedImage,
    question: Question,
    prompts: GeometricPrompts,
    text_embeddings: Tensor | None,
    options: TextPromptOptions,
) -> sv.Detections:
    """One object (with `multimask_output` three masks) for each prompt set, in their order.

    Args:
        text_embeddings: (1, D) or (N, D); None: the model cannot use the question's texts, which are then mere names.
    """
    class_id, names = prompts.class_id, prompts.class_names
    if question.texts is not None:
        names = question.texts * (len(prompts) if len(question.texts) == 1 else 1)
        distinct = list(dict.fromkeys(question.texts))
        class_id = np.array([distinct.index(name) for name in names], dtype=np.int64)
    similarity = None
    if text_embeddings is not None:
        similarity = similarity_probability(model, encoded.embeddings, encoded.geometry, text_embeddings)
        text_embeddings = text_embeddings.expand(len(prompts), -1)
        if similarity is not None:
            similarity = similarity.expand(len(prompts), -1, -1)
    masks = segment_prompts(
        model,
        encoded.embeddings,
        encoded.geometry,
        prompts,
        text_embeddings,
        similarity,
        question.multimask_output,
        options,
    )
    index = to_numpy(masks.prompt_index)
    data = {
        "predicted_iou": to_numpy(masks.predicted_iou),
        "stability_score": to_numpy(masks.stability),
        "prompt_index": index,
        "mask_index": to_numpy(masks.mask_index),
        **word_scores(len(index), masks.presence, masks.agreement),
    }
    if question.return_logits:
        data["low_res_logits"] = to_numpy(masks.low_res_logits)
    texts = None if text_embeddings is None else text_embeddings[masks.prompt_index]
    asked = Asked.of(prompts, encoded.geometry, index, texts)
    detections = to_detections(
        masks_of_photo(model, encoded.pixels, masks.low_res_logits, encoded.geometry, asked),
        confidence=to_numpy(masks.confidence),
        class_id=class_id[index],
        class_names=[names[i] for i in index],
        data=data,
    )
    if question.threshold is None:
        return detections
    return detections[detections.confidence >= question.threshold]  # type: ignore[return-value, operator]


def answer_text(
    model: TextSamNetwork,
    encoded: EncodedImage,
    question: Question,
    text_embeddings: Tensor,
    negative_embeddings: Tensor | None,
    options: TextPromptOptions,
) -> sv.Detections:
    """Every instance of every text, those of a text together and best first."""
    found = find_instances(
        model,
        encoded.embeddings,
        encoded.geometry,
        text_embeddings,
        negative_embeddings,
        options,
        question.max_instances,
        question.threshold,
    )
    queries = to_numpy(found.query_index)
    data = {
        "predicted_iou": to_numpy(found.predicted_iou),
        "stability_score": to_numpy(found.stability),
        "prompt_index": queries,
        "mask_index": np.zeros(len(queries), dtype=np.int64),
        **word_scores(len(queries), found.presence, found.agreement),
    }
    if question.return_logits:
        data["low_res_logits"] = to_numpy(found.low_res_logits)
    return to_detections(
        masks_of_photo(
            model,
            encoded.pixels,
            found.low_res_logits,
            encoded.geometry,
            Asked(texts=text_embeddings[found.query_index]),
        ),
        confidence=to_numpy(found.confidence),
        class_id=queries,
        class_names=names_of(question, queries),
        data=data,
    )


def names_of(question: Question, queries: np.ndarray) -> list[str]:
    """The text of each result, given its number: (N,) -> N names."""
    texts = question.texts or []
    return [texts[query] for query in queries]
