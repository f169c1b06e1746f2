"""What words alone say of a photo: is each of them there, and in which region?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.modeling.structures import ImageEmbeddings
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.prompts import PROMPTS_PER_BATCH
from textsam.prompting.text_instances import OUTSIDE, TextInstances, TextReading, clear_padding
from textsam.prompting.transforms import ImageGeometry


def read_texts(
    model: TextSamNetwork,
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
    parts = []
    for texts in text_embeddings.split(PROMPTS_PER_BATCH):
        prompts = model.encode_prompts(image, text_embeddings=texts)
        decoded = model.decode_masks(image, prompts, multimask_output=False)
        parts.append((decoded.presence_logits, decoded.low_res_logits[:, 0], decoded.iou_predictions[:, 0]))
    presence, logits, predicted_iou = (torch.cat(each).float() for each in zip(*parts, strict=True))
    presence, logits = presence.sigmoid(), clear_padding(logits, geometry, fill=OUTSIDE)
    if similarity is not None:
        if not model.config.dense_text:  # which tells where a text stands out, be it there or not
            presence = (presence * similarity.flatten(1).amax(1)).sqrt()
        allowed = F.interpolate((similarity > 0)[None].float(), tuple(logits.shape[-2:]), mode="nearest")[0] > 0
        logits = torch.where(allowed, logits, OUTSIDE)
    return TextReading(presence, logits, predicted_iou, similarity)


def similarity_probability(
    model: TextSamNetwork,
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
