"""Picture examples as prompts, as the model's own prompt of the modality "image"."""

from typing import Any

import numpy as np
import pytest
import supervision as sv
import torch
from miniatures import CLIP_DIM, HashedWords, mobile_miniature

from textsam.language.small_clip import SmallCropEncoder
from textsam.predictor import TextSam
from textsam.prompting.exemplars import exemplar_embedding, exemplar_mask

PIXELS = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sam() -> TextSam:
    model = mobile_miniature()
    torch.manual_seed(3)
    with torch.no_grad():
        model.prompt_encoder.modality_means.copy_(0.2 * torch.randn(2, CLIP_DIM))
    return TextSam(model, HashedWords(), SmallCropEncoder(embed_dim=CLIP_DIM).eval())


@torch.no_grad()
def test_the_embedding_is_aligned_as_an_image_s(sam: TextSam) -> None:
    embedding = exemplar_embedding(sam.model, sam.crop_encoder, (PIXELS, [10, 20, 60, 80]))
    mask = exemplar_mask(PIXELS, [10, 20, 60, 80])[None]
    pair = [sam.crop_encoder.encode(PIXELS, mask, expand=1.5, zero_outside=zero) for zero in (False, True)]
    mean = torch.nn.functional.normalize(sum(pair), dim=-1)
    align = sam.model.prompt_encoder.align_clip
    torch.testing.assert_close(align(embedding, "text"), align(mean, "image"))
    assert (align(embedding, "text") - align(mean, "text")).abs().max() > 0.01


class CropsOfCats:
    """A crop encoder to which everything is the word cat."""

    def encode(self, image: np.ndarray, masks: np.ndarray, **options: Any) -> torch.Tensor:
        return HashedWords().encode(["cat"] * len(masks))


def test_a_crop_that_means_a_word_finds_what_the_word_finds() -> None:
    sam = TextSam(
        mobile_miniature(),  # its modality means are zero
        HashedWords(),
        CropsOfCats(),
    )
    by_word = sam.predict(PIXELS, text="cat", threshold=0.0)
    by_picture = sam.predict(PIXELS, exemplar=(PIXELS, [10, 20, 60, 80]), threshold=0.0)
    assert set(by_picture.data["class_name"]) <= {"exemplar"}
    np.testing.assert_array_equal(by_picture.mask, by_word.mask)
    np.testing.assert_allclose(by_picture.confidence, by_word.confidence, atol=1e-5)


def test_a_box_is_a_filled_mask() -> None:
    mask = np.zeros((90, 120), bool)
    mask[20:80, 10:60] = True
    np.testing.assert_array_equal(exemplar_mask(PIXELS, [10, 20, 60, 80]), mask)
    np.testing.assert_array_equal(exemplar_mask(PIXELS, mask), mask)


def test_one_detection_is_its_mask_or_its_box() -> None:
    mask = np.zeros((1, 90, 120), bool)
    mask[0, 20:80, 10:60] = True
    box = np.array([[10.0, 20, 60, 80]])
    np.testing.assert_array_equal(exemplar_mask(PIXELS, sv.Detections(box, ~mask)), ~mask[0])
    np.testing.assert_array_equal(exemplar_mask(PIXELS, sv.Detections(box)), mask[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exemplar": PIXELS}, r"exemplar=\(image, mask or box\), got ndarray"),
        ({"exemplar": (PIXELS, [1, 2, 3])}, r"got int64 of shape \(3,\)"),
        ({"exemplar": (PIXELS, np.ones((4, 4), bool))}, r"bool mask of shape \(90, 120\)"),
        ({"exemplar": (PIXELS, [200, 10, 300, 20])}, "at least one pixel inside"),
        ({"exemplar": (PIXELS, [0.2, 0.1, 0.8, 0.9])}, "exemplar's box in pixels, got values that look normalised"),
        ({"exemplar": (PIXELS, sv.Detections(np.ones((2, 4))))}, r"one detection as exemplar, got 2: pick one"),
        ({"exemplar": (PIXELS, [0, 0, 9, 9]), "text": "cat"}, "in the place of text"),
    ],
)
def test_what_cannot_be_meant(sam: TextSam, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        sam.predict(PIXELS, **arguments)


def test_models_that_cannot(sam: TextSam) -> None:
    with pytest.raises(ValueError, match="a trained text prompt and a crop encoder"):
        TextSam(sam.model, HashedWords()).predict(PIXELS, exemplar=(PIXELS, [0, 0, 9, 9]))
