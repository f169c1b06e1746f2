"""TextSAM's words on models of transformers that know none: `Sam2Model`, and others that make automatic masks.

What these models let in is points, boxes and masks. So words alone work by ranking the model's automatic masks with
CLIP, as for SAM's own checkpoints, and beside points or boxes they only name the result. A text token in the same
decoder call is not possible: their prompt encoders build the sparse prompt themselves, `forward` takes no embedding of
ours, and no weights exist that would make one mean something to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from textsam.files.images import RgbImage, read_image
from textsam.language.words import Words
from textsam.prompting.detections import stability_scores, to_detections, to_numpy, word_scores
from textsam.prompting.prompts import GeometricPrompts, check_geometry
from textsam.prompting.questions import ask
from textsam.prompting.ranker import Ranker
from textsam.prompting.ranking import MaskEmbedder, RankingOptions
from textsam.prompting.transforms import ImageGeometry

if TYPE_CHECKING:
    import supervision as sv


class RankedSegmenter:
    """Words, points and boxes to objects with another model's masks.

    Args:
        model: a `Sam2Model`, or another of transformers with a processor of the same calls.
        processor: its processor, such as `Sam2Processor`.
        text_encoder, crop_encoder: the two towers of one CLIP, such as those of `textsam.language.clip`.
        mask_options: of transformers' pipeline "mask-generation", such as points_per_crop and pred_iou_thresh.
        ranking_options: None: the defaults.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        text_encoder: Any,
        crop_encoder: MaskEmbedder,
        *,
        mask_options: Mapping[str, Any] | None = None,
        ranking_options: RankingOptions | None = None,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        image_processor = processor.image_processor
        self._generator = pipeline("mask-generation", model=model, image_processor=image_processor, device=model.device)
        self.mask_options = dict(mask_options or {})
        words = Words(text_encoder, None, "")
        options = ranking_options or RankingOptions()
        self._ranker = Ranker(words, crop_encoder, lambda encoded, _: self.generate(encoded.pixels), options)

    def generate(self, image: Any) -> sv.Detections:
        """The model's automatic masks; stability_score is not told by the pipeline, which filters by it, and is 1."""
        pixels = read_image(image)
        found = self._generator(Image.fromarray(pixels), **self.mask_options)
        masks = np.array([np.asarray(mask, bool) for mask in found["masks"]]).reshape(-1, *pixels.shape[:2])
        scores = to_numpy(found["scores"]).astype(np.float32).reshape(-1)
        filled = np.flatnonzero(masks.any(axis=(1, 2)))
        data = {"predicted_iou": scores[filled], "stability_score": np.ones(len(filled), np.float32)}
        return to_detections(masks[filled], confidence=scores[filled].clip(0, 1), data=data)

    @torch.inference_mode()
    def predict(
        self,
        image: Any,
        text: str | Sequence[str] | None = None,
        points: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        *,
        negative_text: str | Sequence[str] | None = None,
        max_instances: int | None = None,
        threshold: float | None = None,
    ) -> sv.Detections:
        """Arguments, result and errors as of `TextSam.predict`, as far as they are there."""
        question = ask(text, points, point_labels, boxes, None, negative_text, False, max_instances, threshold, False)
        pixels = read_image(image)
        height, width = pixels.shape[:2]
        # In the frame of the photo: the model's own processor scales.
        frame = ImageGeometry((height, width), (height, width), (height, width))
        prompts = check_geometry(frame, points, point_labels, boxes)
        if prompts is None:
            return self._ranker.rank(pixels, self.generate(pixels), question)
        texts = question.texts or []
        if len(texts) not in (0, 1, len(prompts)):
            raise ValueError(f"Expected one text, or one for each of {len(prompts)} prompt sets, got {len(texts)}.")
        class_id, names = prompts.class_id, prompts.class_names
        if texts:
            names = texts * (len(prompts) if len(texts) == 1 else 1)
            class_id = np.array([list(dict.fromkeys(texts)).index(name) for name in names], dtype=np.int64)
        masks, predicted_iou, stability = self._segment(pixels, prompts)
        found = to_detections(
            masks,
            confidence=predicted_iou.clip(0, 1),
            class_id=class_id,
            class_names=names,
            data={
                "predicted_iou": predicted_iou,
                "stability_score": stability,
                "prompt_index": np.arange(len(prompts)),
                "mask_index": np.zeros(len(prompts), np.int64),
                **word_scores(len(prompts)),
            },
        )
        return found if threshold is None else found[found.confidence >= threshold]  # type: ignore[return-value]

    def _segment(self, pixels: RgbImage, prompts: GeometricPrompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The model's masks (N, H, W) of N prompt sets, their predicted IoU (N,) and stability (N,)."""
        if not len(prompts):  # which the processors do not take
            return np.zeros((0, *pixels.shape[:2]), bool), np.zeros(0, np.float32), np.zeros(0, np.float32)
        given = {
            "input_points": None if prompts.point_coords is None else [prompts.point_coords.tolist()],
            "input_labels": None if prompts.point_labels is None else [prompts.point_labels.tolist()],
            "input_boxes": None if prompts.boxes is None else [prompts.boxes.tolist()],
        }
        inputs = self.processor(images=Image.fromarray(pixels), return_tensors="pt", **given).to(self.model.device)
        output = self.model(**inputs, multimask_output=False)
        masks = self.processor.post_process_masks(output.pred_masks.cpu(), inputs["original_sizes"].cpu())[0][:, 0]
        stability = to_numpy(stability_scores(output.pred_masks[0, :, 0].float()))
        return to_numpy(masks), to_numpy(output.iou_scores[0, :, 0]), stability
