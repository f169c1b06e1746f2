"""`pipeline("text-prompted-segmentation")`: TextSAM in transformers' form, for lists, generators and data sets."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import PipelineDataset

from textsam.checkpoints.devices import resolve_dtype
from textsam.checkpoints.loading import EMBEDDED
from textsam.files.images import RgbImage, read_image
from textsam.huggingface.processing import TextSamProcessor
from textsam.model import TextSamModel
from textsam.predictor import TextSam

TASK = "text-prompted-segmentation"
# What may be asked of each photo by a dict, and of all photos by keyword.
PROMPTS = ("text", "points", "point_labels", "boxes", "mask_input")
OPTIONS = ("negative_text", "multimask_output", "max_instances", "threshold")


@dataclass(frozen=True)
class AskedPhoto:
    """One photo (H, W, 3) and what is asked of it, in the order of `PROMPTS`; transformers hands it on as it is."""

    image: RgbImage
    prompts: tuple[Any, ...]


class TextPromptedSegmentationPipeline(Pipeline):
    """Photos and words, points, boxes or masks to objects.

    >>> segmenter = pipeline("text-prompted-segmentation", model=...)
    >>> segmenter("cat.jpg", text=["cat", "dog"])
    [{"score": 0.98, "label": "cat", "mask": <PIL.Image>, "box": {"xmin": 4, "ymin": 0, "xmax": 450, "ymax": 299}}]

    The model is the path or Hub id of one that TextSAM saved; without one, textsam-tiny. Whatever else `textsam.load`
    reads (Meta's files, transformers' SamModel, adapters) is given as its result: `model=textsam.load(...)`.
    """

    processor: TextSamProcessor
    _load_processor: Any = None  # needed for a TextSamModel; a TextSam has it all
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any) -> None:
        if isinstance(model, TextSam):
            self.sam = model
            kwargs.setdefault("device", model.device)
        elif isinstance(model, TextSamModel):
            if not isinstance(processor, TextSamProcessor):
                raise ValueError(
                    "Expected a TextSamProcessor beside the model, got none: pass processor=..., a path or Hub id as "
                    "model, or model=textsam.load(...)."
                )
            self.sam = TextSam(model, *processor.encoders)
        else:
            raise TypeError(
                f"Expected a TextSAM model, got {type(model).__name__}: pass model=textsam.load(...), which also reads "
                "SAM's own checkpoints."
            )
        processor = processor or TextSamProcessor.of_config(self.sam.network.config, *self.sam.carried_encoders)
        # transformers makes batches for those pipelines that have an image processor.
        super().__init__(model=self.sam.model, image_processor=processor.image_processor, **kwargs)
        self.processor = processor
        if not isinstance(model, TextSam) and kwargs.get("dtype") in (None, "auto"):  # weights are as stored
            self.sam.network.to(resolve_dtype(None, self.device, self.sam.network.config.encoder_type))

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """
        Args:
            inputs: a photo as `textsam.files.images.read_image` takes it, or a dict of "image" and prompts of its own;
                a list, generator or `Dataset` (of PyTorch or of Hugging Face) of these.
            text, points, point_labels, boxes, mask_input, negative_text, multimask_output, max_instances, threshold: as
                `TextSam.predict`, for photos without a prompt of their own.
            batch_size: photos in one call of the encoder. num_workers: processes that read photos.
        Returns:
            a list of dicts for one photo, or a list (for a generator or data set, an iterator) of these. score: in
            [0, 1]; label: the text, the detector's class or "object"; mask: PIL "L" of the photo's size, 255 inside;
            box: xmin, ymin, xmax, ymax in whole pixels, all inside the mask.
        Raises:
            ValueError, TypeError: as `TextSam.predict`.
        """
        if isinstance(inputs, list) and not inputs:  # of which transformers would look at the first
            return []
        if hasattr(inputs, "to_iterable_dataset"):  # transformers, which knows PyTorch's, takes it for a photo
            inputs = PipelineDataset(inputs, dict, {})
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """The model and its processor, with the small encoders: what `pipeline(..., model=save_directory)` reads.

        transformers' own would call the pipeline custom code, write its source, and change the model's configuration.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = set(kwargs) - {*PROMPTS, *OPTIONS}
        if unknown:
            known = ", ".join((*PROMPTS, *OPTIONS))
            raise TypeError(f"Expected {known}, got {', '.join(sorted(unknown))}.")
        shared = {name: kwargs[name] for name in PROMPTS if name in kwargs}
        options = {name: kwargs[name] for name in OPTIONS if name in kwargs}
        return ({"shared": shared} if shared else {}), ({"options": options} if options else {}), {}

    def preprocess(self, inputs: Any, shared: dict[str, Any] | None = None) -> dict[str, Any]:  # type: ignore[override]
        own = dict(inputs) if isinstance(inputs, dict) else {"image": inputs}
        if "image" not in own or not own.keys() <= {"image", *PROMPTS}:
            raise ValueError(f'Expected a dict of "image" and {", ".join(PROMPTS)}, got {", ".join(map(str, own))}.')
        asked = own if any(own.get(name) is not None for name in PROMPTS) else (shared or {})
        return {"asked": AskedPhoto(read_image(own["image"]), tuple(asked.get(name) for name in PROMPTS))}

    def _forward(self, model_inputs: dict[str, Any], options: dict[str, Any] | None = None) -> dict[str, Any]:  # type: ignore[override]
        asked = model_inputs["asked"]
        batch = asked if isinstance(asked, list) else [asked]
        text, *geometric = (list(column) for column in zip(*(each.prompts for each in batch), strict=True))
        # As lists: a list of plain texts would be asked of every photo.
        texts = [[each] if isinstance(each, str) else each for each in text]
        columns = [None if all(value is None for value in column) else column for column in (texts, *geometric)]
        found = self.sam.predict_batch(
            [each.image for each in batch], *columns, batch_size=len(batch), **(options or {})
        )
        return {"found": found if isinstance(asked, list) else found[0]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        found = model_outputs["found"]
        return [
            {
                "score": float(found.confidence[row]),
                "label": str(found.data["class_name"][row]),
                "mask": Image.fromarray(found.mask[row].astype("uint8") * 255),
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(int, found.xyxy[row]), strict=True)),
            }
            for row in range(len(found))
        ]


PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=TextPromptedSegmentationPipeline,
    pt_model=AutoModel,
    default={"model": (str(Path(str(files("textsam"))) / "weights" / EMBEDDED), None)},
    type="multimodal",
)
