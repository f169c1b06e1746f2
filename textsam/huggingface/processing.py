"""`TextSamProcessor`: photos, texts, points, boxes and masks to the tensors of `TextSamModel.forward`, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, ProcessorMixin

from textsam.checkpoints.encoders import (
    ENCODER_PATTERNS,
    deferred_encoders,
    packaged_folder,
    save_encoders,
    small_encoders,
)
from textsam.checkpoints.hub import HubOptions, download
from textsam.checkpoints.loading import PACKAGED
from textsam.config import NetworkConfig
from textsam.huggingface.image_processing import TextSamImageProcessor, refuse_prompts
from textsam.huggingface.prompt_tensors import prompt_tensors
from textsam.language.words import Words
from textsam.model import TextSamConfig
from textsam.modeling.structures import MaskPredictions
from textsam.prompting.detections import confidence_score

PROCESSOR_FILE, CONFIG_FILE = "processor_config.json", "config.json"
_CLIP_FIELDS = ("clip_name", "clip_pretrained", "clip_dim", "clip_template")


class TextSamProcessor(ProcessorMixin):
    """What goes in front of and behind a `TextSamModel`.

    Texts become CLIP embeddings here, by the small encoder that a model's folder carries or by the public CLIP that its
    configuration names, which is fetched when the first text comes.

    Args:
        image_processor: resizes and normalises.
        clip: the configuration's clip_name, clip_pretrained, clip_dim and clip_template; None: those of a
            `TextSamConfig`.
        text_encoder, crop_encoder: encoders, or functions that make them; None: the CLIP's own.
    """

    def __init__(
        self,
        image_processor: TextSamImageProcessor,
        clip: dict[str, Any] | None = None,
        text_encoder: Any = None,
        crop_encoder: Any = None,
    ) -> None:
        super().__init__(image_processor)
        self.image_processor = image_processor
        config = TextSamConfig(**(clip or {}))
        self.clip = {name: getattr(config, name) for name in _CLIP_FIELDS}
        deferred = deferred_encoders(config, torch.device("cpu"))
        self.encoders = (text_encoder or deferred[0], crop_encoder or deferred[1])
        self._words = Words(self.encoders[0], config.clip_dim, config.clip_name)

    @classmethod
    def of_config(cls, config: NetworkConfig, text_encoder: Any = None, crop_encoder: Any = None) -> TextSamProcessor:
        """The one that a model of this configuration needs."""
        clip = {name: getattr(config, name) for name in _CLIP_FIELDS}
        return cls(TextSamImageProcessor.of_config(config), clip, text_encoder, crop_encoder)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> TextSamProcessor:  # type: ignore[override]
        """
        Args:
            pretrained_model_name_or_path: a folder or Hub id, of a processor or of a model; or textsam-tiny.
            options: revision, cache_dir, local_files_only, token; others of transformers' are taken and not needed.
        Raises:
            FileNotFoundError: neither a processor's nor a model's configuration is there; and as `textsam.load`.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            folder = Path(name)
        elif name in PACKAGED:
            folder = packaged_folder(name)
        else:
            folder = download(name, [PROCESSOR_FILE, CONFIG_FILE, *ENCODER_PATTERNS], HubOptions.of(options))
        if (folder / PROCESSOR_FILE).is_file():
            fields = json.loads((folder / PROCESSOR_FILE).read_text("utf-8"))
            sizes = {key: value for key, value in fields["image_processor"].items() if key != "image_processor_type"}
            image_processor, config = TextSamImageProcessor(**sizes), TextSamConfig(**fields["clip"])
        elif (folder / CONFIG_FILE).is_file():
            config = TextSamConfig.from_pretrained(folder)
            image_processor = TextSamImageProcessor.of_config(config)
        else:
            raise FileNotFoundError(f"{name} has neither {PROCESSOR_FILE} nor {CONFIG_FILE}.")
        encoders = small_encoders(folder, config, torch.device("cpu")) or (None, None)
        return cls(image_processor, {key: getattr(config, key) for key in _CLIP_FIELDS}, *encoders)

    def to_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes beside the small encoders."""
        sizes = self.image_processor.to_dict()
        return {"processor_class": type(self).__name__, "image_processor": sizes, "clip": self.clip}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """processor_config.json, and the small encoders if there are any; a public CLIP is only referred to."""
        if push_to_hub:
            raise ValueError("Expected push_to_hub=False: textsam.push_to_hub uploads a model with all that it needs.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_encoders(folder, self.encoders)
        self.to_json_file(folder / PROCESSOR_FILE)
        return [str(folder / PROCESSOR_FILE)]

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        return_tensors: str = "pt",
        **options: Any,
    ) -> BatchFeature:
        """
        Args:
            images: one photo, or a list of B.
            text: one text or several; a list of B lists: for each photo its own.
            input_points, input_labels, input_boxes, input_masks: for one photo as points, point_labels, boxes and
                mask_input of `TextSam.predict`, in pixels of the photo, also with SAM's further axis for the photo in
                front; for a list of photos lists of B. Photos with fewer points are filled up with label -1.
            options: others of transformers' are taken and not needed.
        Returns:
            pixel_values (B, 3, S, S), original_sizes and reshaped_input_sizes (B, 2), and as far as they were asked
            point_coords (N, K, 2), point_labels (N, K), boxes (N, 4), mask_input (N, 1, 4h, 4w), text_embeddings
            (N, D) and, for several photos, image_index (N,): all that `model(**inputs)` takes.
        Raises:
            ValueError, TypeError: as `TextSam.predict`; the photos have different kinds of prompts; or a prompt under
                another name.
        """
        refuse_prompts(options)
        if images is None:
            raise ValueError("Expected images, got none.")
        inputs = self.image_processor(images, return_tensors=return_tensors)
        geometries = [self.image_processor.geometry(size) for size in inputs["original_sizes"]]
        alone = not isinstance(images, (list, tuple))
        geometric = (input_points, input_labels, input_boxes, input_masks)
        tensors = prompt_tensors(geometries, text, geometric, alone=alone, embed=self.embed)
        inputs.update(tensors)
        return inputs

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Q texts to CLIP embeddings (Q, D) of unit length, on the CPU."""
        return self._words.embed(texts, torch.device("cpu"))

    def post_process_masks(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """See `TextSamImageProcessor.post_process_masks`."""
        return self.image_processor.post_process_masks(*args, **kwargs)

    def post_process_instance_segmentation(
        self,
        outputs: MaskPredictions,
        original_sizes: Any,
        reshaped_input_sizes: Any = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.0,
        image_index: Tensor | None = None,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """One segment for each prompt, in transformers' form.

        A text alone is one prompt, and its segment the union of what it names; `TextSam.predict` and the pipeline tell
        instances apart.

        Args:
            outputs: of the model. original_sizes, reshaped_input_sizes, image_index: of the processor's result.
            threshold: least score, which is `textsam.prompting.detections.confidence_score`.
            return_binary_maps: True: a map for each segment instead of one map for all.
        Returns:
            for each of B photos: segmentation, (H, W) int32 with ids of segments and -1 elsewhere, the better above the
            worse, or (N, H, W) of 0 and 1; and segments_info: id, label_id (number of the prompt in its photo), score.
        """
        best_iou, best = outputs.iou_predictions.max(dim=1)
        logits = outputs.low_res_logits[torch.arange(len(best)), best][:, None]
        presence = None if outputs.presence_logits is None else outputs.presence_logits.float().sigmoid()
        scores = confidence_score(best_iou, presence)
        index = torch.zeros(len(scores), dtype=torch.int64) if image_index is None else image_index.cpu()
        if image_index is None and len(original_sizes) > 1:
            index = torch.arange(len(scores))
        photos = self.post_process_masks(
            logits, original_sizes, mask_threshold=mask_threshold, image_index=index.to(logits.device)
        )
        results = []
        for number, masks in enumerate(photos):
            own = scores[index.to(scores.device) == number]
            order = [row for row in own.argsort().tolist() if own[row] >= threshold]  # the best is painted last
            segmentation = torch.full(masks.shape[-2:], -1, dtype=torch.int32)
            for row in order:
                segmentation[masks[row, 0].cpu()] = row
            info = [{"id": row, "label_id": row, "score": round(float(own[row]), 6)} for row in sorted(order)]
            if return_binary_maps:
                segmentation = masks[sorted(order), 0].to(torch.int32).cpu()
            results.append({"segmentation": segmentation, "segments_info": info})
        return results


AutoImageProcessor.register(TextSamConfig, image_processor_classes={"pil": TextSamImageProcessor}, exist_ok=True)
AutoProcessor.register(TextSamConfig, TextSamProcessor, exist_ok=True)
