"""Words on transformers' `Sam2Model`, a tiny one of random weights."""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
import torch
from miniatures import ColourWords
from PIL import Image
from tiny_models import randomize, tiny_model
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2Processor,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from textsam.huggingface.ranking_elsewhere import RankedSegmenter
from textsam.predictor import TextSam
from textsam.prompting.detections import to_detections
from textsam.prompting.ranking import RankingOptions

SIDE = 128
# Random weights: nothing is filtered for its quality.
EVERYTHING = {"points_per_crop": 6, "pred_iou_thresh": -100.0, "stability_score_thresh": -1.0, "crops_nms_thresh": 1.0}


def tiny_sam2() -> Sam2Model:
    backbone = Sam2HieraDetConfig(
        hidden_size=12,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 2, 1, 1],
        embed_dim_per_stage=[12, 24, 48, 96],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[2],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[96, 48, 24, 12],
        backbone_feature_sizes=[[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
        fpn_hidden_size=32,
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=32, image_size=SIDE, mask_input_channels=4)
    decoder = Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32)
    torch.manual_seed(0)
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    return randomize(Sam2Model(config))


@pytest.fixture(scope="module")
def segmenter() -> RankedSegmenter:
    sizes = {"height": SIDE, "width": SIDE}
    processor = Sam2Processor(Sam2ImageProcessor(size=sizes, mask_size={"height": SIDE // 4, "width": SIDE // 4}))
    words = ColourWords()
    options = RankingOptions(logit_scale=20.0)
    return RankedSegmenter(tiny_sam2(), processor, words, words, mask_options=EVERYTHING, ranking_options=options)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Red at the left, blue at the right."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[:, :60, 0], image[:, 60:, 2] = 220, 220
    return image


def test_points_and_boxes_are_the_models_own(segmenter: RankedSegmenter, photo: np.ndarray) -> None:
    points, boxes = [[[20.0, 30.0]], [[90.0, 50.0]]], [[5.0, 5.0, 50.0, 80.0], [60.0, 10.0, 110.0, 80.0]]
    found = segmenter.predict(photo, points=points, boxes=boxes)
    inputs = segmenter.processor(
        images=Image.fromarray(photo), input_points=[points], input_labels=[[[1], [1]]], input_boxes=[boxes],
        return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        output = segmenter.model(**inputs, multimask_output=False)
    (masks,) = segmenter.processor.post_process_masks(output.pred_masks, inputs["original_sizes"])
    assert masks.any()
    np.testing.assert_array_equal(found.mask, masks[:, 0])
    np.testing.assert_allclose(found.data["predicted_iou"], output.iou_scores[0, :, 0], atol=1e-6)
    named = segmenter.predict(photo, text=["red", "blue"], points=points, boxes=boxes)
    np.testing.assert_array_equal(named.mask, found.mask)  # a text beside them only names
    assert list(named.data["class_name"]) == ["red", "blue"]


def test_results_are_as_those_of_textsam(segmenter: RankedSegmenter, photo: np.ndarray) -> None:
    """The same classes and keys, and no rows where a detector has found nothing."""
    words = ColourWords()
    own = TextSam(tiny_model(), words, words)
    asked = {"text": ["red", "red", "blue"], "points": [[[20.0, 30.0]], [[90.0, 50.0]], [[60.0, 40.0]]]}
    with pytest.warns(UserWarning, match="only names the results"):
        expected = own.predict(photo, **asked)
    found = segmenter.predict(photo, **asked)
    assert found.class_id.tolist() == expected.class_id.tolist() == [0, 0, 1]
    assert list(found.data["class_name"]) == list(expected.data["class_name"])
    nothing = segmenter.predict(photo, text="red", boxes=sv.Detections.empty())
    assert nothing.mask.shape == (0, 90, 120)
    assert set(found.data) == set(nothing.data) == set(expected.data)
    assert np.isnan(found.data["presence"]).all()


def test_automatic_masks_are_the_pipelines(segmenter: RankedSegmenter, photo: np.ndarray) -> None:
    found = segmenter.generate(photo)
    assert len(found) > 3
    assert found.mask.shape == (len(found), 90, 120)
    assert found.mask.any(axis=(1, 2)).all()


def test_words_choose_among_the_models_masks(
    segmenter: RankedSegmenter, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = segmenter.generate(photo)
    for text in ("red", "blue"):
        found = segmenter.predict(photo, text=text, threshold=0.0)
        for mask in found.mask:
            assert (every.mask == mask).all(axis=(1, 2)).any()  # taken as the model made it
    # Random weights draw no sides; masks that are the sides go to their names.
    left = np.zeros((2, 90, 120), bool)
    left[0, :, :60], left[1, :, 60:] = True, True
    data = {"predicted_iou": np.full(2, 0.9, np.float32), "stability_score": np.ones(2, np.float32)}
    sides = to_detections(left, confidence=data["predicted_iou"], data=data)
    monkeypatch.setattr(segmenter, "generate", lambda image: sides)
    found = segmenter.predict(photo, text=["blue", "red"])
    assert list(found.data["class_name"]) == ["blue", "red"]
    np.testing.assert_array_equal(found.mask, left[::-1])


def test_what_cannot_be_meant(segmenter: RankedSegmenter, photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Expected a prompt, got none"):
        segmenter.predict(photo)
    with pytest.raises(ValueError, match="one text, or one for each of 1 prompt sets, got 2"):
        segmenter.predict(photo, text=["red", "blue"], boxes=[1, 2, 30, 40])
