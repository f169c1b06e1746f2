"""What the paper leaves open of the text prompt, decided before training starts: its projection, the two cones of CLIP.

CLIP's images and texts lie in two narrow cones of one space (Liang et al. 2022, *Mind the Gap*). A prompt that was
trained on crops and is asked with words has to cross from one to the other; with each cone's mean taken off
(`PromptEncoder.modality_means`), crops and names of a thing lie nearer to each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from textsam.checkpoints.encoders import EMBEDDED, TEXT_ENCODER, packaged_folder
from textsam.language.vocabulary import Vocabulary
from textsam.model import TextSamModel
from train.data import Sample
from train.parts import rebuilt
from train.stores import CropPrompts

MEAN_NAMES = 256  # of the embedded vocabulary, evenly spaced


@dataclass(frozen=True)
class PromptOptions:
    """
    Args:
        projection: "linear" or "mlp", from a CLIP embedding to a token.
        dense: the dense form beside the token: where the CLIP's own image tower sees the embedding, as a mask prompt.
        centre: pictures of which crops are looked at for the mean of CLIP's images; 0 leaves embeddings as they are.
    """

    projection: str = "linear"
    dense: bool = False
    centre: int = 0


def with_projection(model: TextSamModel, projection: str) -> TextSamModel:
    """The model with a text prompt of this form, afresh where it had another; all else is taken over.

    Raises:
        ValueError: a form that there is not.
    """
    if model.config.text_projection == projection:
        return model
    return rebuilt(model, "prompt_encoder.text_projection.", text_projection=projection)


def with_dense_form(model: TextSamModel, dense: bool) -> TextSamModel:
    """The model with the dense form of the text prompt, afresh where it had none.

    Raises:
        ValueError: the model's own encoder says where a text is.
    """
    return model if model.config.dense_text or not dense else rebuilt(model, "dense_text.", dense_text=True)


@torch.no_grad()
def centre(model: TextSamModel, crops: CropPrompts, names: Any, samples: Iterable[Sample], count: int) -> None:
    """Measures the two means and writes them into the model.

    Args:
        names: the text encoder of the same CLIP. samples: of the training data. count: of them.
    Raises:
        ValueError: none of these samples has a mask.
    """
    embeddings = torch.cat([crops.embed(sample).cpu() for sample in itertools.islice(samples, count)])
    if not len(embeddings):
        raise ValueError(f"none of the first {count} pictures has a mask to measure the mean of crops on")
    known = Vocabulary.load(packaged_folder(EMBEDDED) / TEXT_ENCODER / "vocabulary.json").names
    words = names.encode(known[:: max(1, len(known) // MEAN_NAMES)])
    means = torch.stack([words.float().mean(0).cpu(), embeddings.mean(0)])
    model.prompt_encoder.modality_means.copy_(means.to(model.prompt_encoder.modality_means))
