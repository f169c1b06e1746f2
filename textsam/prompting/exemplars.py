"""Picture examples as prompts: the CLIP embedding of what a mask or a box shows takes the place of a text's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.files.images import read_image
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.detections import to_numpy
from textsam.prompting.prompts import masks_of_detections, refuse_normalised

EXEMPLAR_NAME = "exemplar"
# Training drew the crop's side between 1 and 2 times the box, half of the crops without what surrounds the mask.
_EXPAND = 1.5


def exemplar_mask(image: np.ndarray, place: Any) -> np.ndarray:
    """A bool mask (H, W), a box (4,) xyxy in pixels, or one detection, as a mask of the photo (H, W, 3).

    Raises:
        ValueError, TypeError: neither, or nothing inside the photo.
    """
    if hasattr(place, "xyxy"):
        if len(place) != 1:
            raise ValueError(f"Expected one detection as exemplar, got {len(place)}: pick one, such as detections[:1].")
        place = place.xyxy[0] if getattr(place, "mask", None) is None else masks_of_detections(place, "exemplar")[0]
    array = to_numpy(place) if isinstance(place, Tensor) else np.asarray(place)
    height, width = image.shape[:2]
    if array.dtype == bool and array.shape == (height, width):
        mask = array
    elif array.shape == (4,) and array.dtype.kind in "iuf":
        refuse_normalised(array.astype(np.float64), "the exemplar's box")
        x1, y1, x2, y2 = (float(value) for value in array)
        mask = np.zeros((height, width), bool)
        if np.isfinite(array).all():
            rows, columns = (slice(max(int(low), 0), max(round(high), 0)) for low, high in ((y1, y2), (x1, x2)))
            mask[rows, columns] = True
    else:
        raise ValueError(
            f"Expected exemplar=(image, mask or box) with a bool mask of shape ({height}, {width}) or a box "
            f"[x1, y1, x2, y2], got {array.dtype} of shape {array.shape}."
        )
    if not mask.any():
        raise ValueError(
            "Expected an exemplar with at least one pixel inside its image, got none: check the mask or box."
        )
    return mask


def exemplar_embedding(model: TextSamNetwork, crop_encoder: Any, exemplar: Any) -> Tensor:
    """(1, D), to be used as a text's embedding.

    The crops' embeddings are averaged over those that training saw, with and without surroundings. Images and texts lie
    in different parts of CLIP's space; the model takes each kind's mean off, so here the image mean is replaced by the
    text mean, which is all that a prompt of the modality "image" differs in.

    Raises:
        ValueError, TypeError: not a pair of an image and a mask or box; the model has no crop encoder or its text
            prompt is not trained.
    """
    if not model.config.text_trained or crop_encoder is None:
        raise ValueError(
            "Expected a trained text prompt and a crop encoder for exemplar, got a model without: "
            "use textsam-tiny, or give an adapter and a clip to textsam.load."
        )
    if not isinstance(exemplar, tuple) or len(exemplar) != 2:
        raise TypeError(f"Expected exemplar=(image, mask or box), got {type(exemplar).__name__}.")
    pixels = read_image(exemplar[0])
    mask = exemplar_mask(pixels, exemplar[1])[None]
    crops = [crop_encoder.encode(pixels, mask, expand=_EXPAND, zero_outside=zero) for zero in (False, True)]
    text_mean, image_mean = model.prompt_encoder.modality_means[:2].float()
    mean = F.normalize(torch.stack(crops).mean(0).to(text_mean), dim=-1)
    return mean - image_mean + text_mean
