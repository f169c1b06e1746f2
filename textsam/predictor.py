"""`TextSam`: pictures and prompts in, `supervision.Detections` out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from textsam.checkpoints.encoders import save_encoders
from textsam.files.embedding_cache import DEFAULT_MAX_BYTES, CachedTexts, EmbeddingCache
from textsam.files.images import read_image
from textsam.language.words import Words
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.answers import answer_geometry, answer_text
from textsam.prompting.argument_names import refuse_names
from textsam.prompting.automatic import generate
from textsam.prompting.automatic_options import AutomaticOptions
from textsam.prompting.cached_encoding import CachedImageEncoder
from textsam.prompting.detections import to_detections, to_numpy
from textsam.prompting.encoded_image import EncodedImage, encode_images
from textsam.prompting.exemplars import EXEMPLAR_NAME, exemplar_embedding
from textsam.prompting.prompts import GeometricPrompts, check_geometry, check_texts, listed_texts
from textsam.prompting.questions import Question, ask, spread_prompts
from textsam.prompting.ranker import NAMES_NOTICE, Ranker
from textsam.prompting.ranking import RankingOptions
from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.text_reading import read_texts
from textsam.prompting.transforms import ImageGeometry
from textsam.text_regions.answers import answer_levels
from textsam.text_regions.levels import TextRegionConfig
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.reader import TextRegionReader

if TYPE_CHECKING:
    import supervision as sv

    from textsam.model import TextSamConfig, TextSamModel


class TextSam:
    """Segments what words, points, boxes and masks point at.

    Args:
        model: put into eval mode.
        text_encoder: words to CLIP embeddings (`encode(texts) -> (Q, D)`), or a function that makes one when the first
            word comes; None: no words.
        crop_encoder: masks to CLIP embeddings, or a function that makes it when it is needed, by ranking or by a model
            with `dense_text`.
        image_size: side in pixels that photos are resized to, a multiple of the patch size; None: the model's own.
        pad_to_square: False encodes photos that are not square without their padding: faster, not bit for bit SAM.
        text_options: constants of text prompting. ranking_options: those of text by ranking. reading_options: those of
            reading written text.
    """

    def __init__(
        self,
        model: TextSamNetwork,
        text_encoder: Any = None,
        crop_encoder: Any = None,
        *,
        image_size: int | None = None,
        pad_to_square: bool = True,
        text_options: TextPromptOptions | None = None,
        ranking_options: RankingOptions | None = None,
        reading_options: TextReadingOptions | None = None,
    ) -> None:
        config = model.config
        self.network = model.eval()
        self.image_size = config.image_size if image_size is None else image_size
        ImageGeometry.of((1, 1), self.image_size, config.patch_size)  # refuses a side that cannot be
        self.pad_to_square = pad_to_square
        self.text_options = text_options or TextPromptOptions()
        # Encoders of words and crops that travel with the model; None for those that are made on first use.
        self.carried_encoders = [
            each if hasattr(each, "save_pretrained") else None for each in (text_encoder, crop_encoder)
        ]
        # Ranking may use any CLIP; a trained text prompt only the one it was trained with.
        self._words = Words(text_encoder, config.clip_dim if config.text_trained else None, config.clip_name)
        self.ranking_options = ranking_options or RankingOptions()
        self._ranker = Ranker(self._words, crop_encoder, self._generate, self.ranking_options)
        regions = TextRegionConfig.of(config)
        self.text_reader: TextRegionReader | None = None
        if regions is not None:
            self.text_reader = TextRegionReader(model, self._embed, self._tile, regions, reading_options)
        self._image: EncodedImage | None = None
        self._cached: CachedImageEncoder | None = None

    def use_cache(self, folder: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> EmbeddingCache:
        """Keep the embeddings of photos and texts on disk, so that a second pass with other prompts only decodes.

        Args:
            folder: made when missing; other processes and other models may share it. Keys are made of the photo's
                pixels and the model's weights, so nothing stale is ever found.
            max_bytes: the least recently used embeddings go when the files are larger together.
        Returns:
            the cache, which counts its `hits` and `misses`.
        """
        cache = EmbeddingCache(folder, max_bytes)
        self._cached = CachedImageEncoder(cache, self.network, self.image_size, self.pad_to_square)
        self._words.store = CachedTexts(cache)
        return cache

    @cached_property
    def model(self) -> TextSamModel:
        """The network as a model of transformers, with `save_pretrained` and the like; imports transformers' models."""
        from textsam.model import TextSamModel

        return TextSamModel.of(self.network)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes all that `textsam.load(folder)` needs: the model, and the small encoders if it has them.

        A public CLIP is only referred to, by the configuration. (`model.save_pretrained` writes the model alone.)

        Args:
            folder: made when missing.
        Raises:
            ValueError: the encoder was quantised, for which the files have no form.
        """
        self.model.save_pretrained(folder)
        save_encoders(folder, self.carried_encoders)

    def to(self, *args: Any, **kwargs: Any) -> TextSam:
        """Takes the model to another device or dtype, as `torch.nn.Module.to`, and returns this object.

        The photo that is set is encoded again. A shorter dtype rounds the weights for good. The encoders of words and
        crops stay where they are.
        """
        self.network.to(*args, **kwargs)
        if self._cached is not None:  # its keys hold the dtype
            self._cached = CachedImageEncoder(self._cached.cache, self.network, self.image_size, self.pad_to_square)
        if self._image is not None:
            self.set_image(self._image.pixels)
        return self

    def __repr__(self) -> str:
        config, network = self.network.config, self.network
        text = "trained" if config.text_trained else "by ranking"
        return (
            f"TextSam({config.encoder_type} encoder, {self.image_size} px, text {text}, {network.dtype}, "
            f"{network.device}, {'no image' if self._image is None else 'an image'} set)"
        )

    @property
    def config(self) -> TextSamConfig:
        """The network's configuration as transformers has it, which its pipelines ask for."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.network.device

    @property
    def text_encoder(self) -> Any:
        """The encoder of words, made now if it was to be made on first use; None when there is none."""
        return self._words.encoder

    @property
    def crop_encoder(self) -> Any:
        """The encoder of masks, made now if it was to be made on first use; None when there is none."""
        return self._ranker.crop_encoder

    @torch.inference_mode()
    def set_image(self, image: Any) -> None:
        """Encode a photo, for any number of `predict` calls without `image`.

        Args:
            image: PIL image, (H, W, 3) uint8 RGB array, path, or tensor; see `textsam.files.images.read_image`.
        Raises:
            As `read_image`. The photo that was set before stays set then.
        """
        self._image = self._encode([read_image(image)])[0]

    def reset_image(self) -> None:
        """Forget the photo that was set."""
        self._image = None

    @torch.inference_mode()
    def predict(
        self,
        image: Any = None,
        text: str | Sequence[str] | None = None,
        points: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        *,
        exemplar: tuple[Any, Any] | None = None,
        negative_text: str | Sequence[str] | None = None,
        multimask_output: bool = False,
        max_instances: int | None = None,
        threshold: float | None = None,
        return_logits: bool = False,
        **others: NoReturn,
    ) -> sv.Detections:
        """Masks of what is asked for. All coordinates are pixels of the original photo.

        *Text alone*: every instance of every text, those of a text together and best first. *Points, boxes, masks, with
        or without text*: one object for each prompt set, in their order, exactly as SAM; a text beside one click is
        asked again about what the two say (`TextPromptOptions.click_rounds`).

        A model with `mask_detail` redraws each mask on the photo's own pixels; `low_res_logits` stay the decoder's.

        Args:
            image: the photo, which does not replace the one that is set; None: the one that is set.
            text: one text or several, in a list, an array or an iterator. With points, boxes or masks: one for all
                prompt sets, or one for each.
            points: (K, 2) xy for one object, or (N, K, 2).
            point_labels: (K,) or (N, K): 1 foreground, 0 background, -1 fills up a short row; None: all foreground.
            boxes: (4,) xyxy, (N, 4), or the `sv.Detections` of any detector, whose class names are kept, or
                ultralytics' `Boxes`.
            mask_input: logits of a former result, (4h, 4w), (N, 4h, 4w) or (N, 1, 4h, 4w); or bool masks of the photo's
                size, (H, W) or (N, H, W); or `sv.Detections` with masks.
            exemplar: in the place of text: (image, mask or box), a picture of the thing and where it is in it, as a
                bool mask (H, W), xyxy, or `sv.Detections` of one object; finds what looks like it, named "exemplar".
                Needs a trained text prompt.
            negative_text: text alone: what must not be found instead. Places that fit one of these better count against
                an instance, so that it may go, or its mask and confidence change.
            multimask_output: points, boxes, masks: three masks for each prompt set (whole, part, subpart; N * 3 rows),
                instead of SAM's single mask.
            max_instances: text alone: at most this many for each text, the most confident.
            threshold: lowest confidence, in [0, 1]; None: 0 with points, boxes or masks; for text alone the options',
                and a share of the confidence of the text's best instance, where the model's text prompt was trained.
            return_logits: also `data["low_res_logits"]`, (N, 4h, 4w) float32.
        Returns:
            xyxy (N, 4) float32; mask (N, H, W) bool; confidence (N,) in [0, 1], see
            `textsam.prompting.detections.confidence_score`; class_id (N,), the number of the text, or of the
            detector's class, or 0; data: class_name, predicted_iou (as the model gives it, not clipped),
            stability_score, prompt_index, mask_index, presence of the text in the photo and agreement of the mask with
            it; these two are NaN where nothing was said, or cannot be compared.
        Raises:
            ValueError, TypeError: a prompt that cannot be meant, saying what is expected, what came, and the mend, or
            an argument by another tool's name (others); or as `read_image`. The photo that is set stays set.
        """
        if others:
            refuse_names(self.predict, others)
        if exemplar is not None:
            if any(value is not None for value in (text, points, point_labels, boxes, mask_input)):
                raise ValueError("Expected exemplar in the place of text, points, boxes and masks, got both: drop one.")
            text = EXEMPLAR_NAME
        if isinstance(image, str) and all(value is None for value in (text, points, point_labels, boxes, mask_input)):
            raise ValueError(
                f"Expected a prompt, got none: {image!r} was taken as the image; write text=... for words, or give "
                "points, boxes or mask_input."
            )
        question = ask(
            text, points, point_labels, boxes, mask_input,
            negative_text, multimask_output, max_instances, threshold, return_logits,
        )  # fmt: skip
        encoded = self._current_image() if image is None else None
        pixels = read_image(image) if encoded is None else encoded.pixels
        levels = self._levels(question)
        if levels:
            return answer_levels(self.text_reader, pixels, levels, question)
        if exemplar is not None:
            like = exemplar_embedding(self.network, self.crop_encoder, exemplar)
            negatives = self._embed(question.negative_texts) if question.negative_texts else None
            photo = encoded or self._encode([pixels])[0]
            self._look(photo)
            return answer_text(self.network, photo, question, like, negatives, self.text_options)
        prompts = self._check(question, self._geometry(pixels) if encoded is None else encoded.geometry)
        return self._answer(encoded or self._encode([pixels])[0], question, prompts)

    @torch.inference_mode()
    def predict_batch(
        self,
        images: Sequence[Any],
        text: Any = None,
        points: Sequence[Any] | None = None,
        point_labels: Sequence[Any] | None = None,
        boxes: Sequence[Any] | None = None,
        mask_input: Sequence[Any] | None = None,
        *,
        negative_text: str | Sequence[str] | None = None,
        multimask_output: bool = False,
        max_instances: int | None = None,
        threshold: float | None = None,
        return_logits: bool = False,
        batch_size: int | None = None,
        **others: NoReturn,
    ) -> list[sv.Detections]:
        """`predict` on many photos, encoded several at a time. The photo that is set is left alone.

        Args:
            images: B photos.
            text: one text or several, asked of every photo; or a list of B lists, one for each photo.
            points, point_labels, boxes, mask_input: lists of B, each as in `predict`, or None for a photo without.
            batch_size: photos in one call of the encoder; None: 1 on a CPU, 4 elsewhere.
            The rest: as in `predict`, the same for all photos.
        Returns:
            B results.
        Raises:
            As `predict`, saying which photo.
        """
        if others:
            refuse_names(self.predict_batch, others)
        if isinstance(images, (str, bytes, np.ndarray, Tensor)) or not isinstance(images, Sequence):
            raise TypeError(f"Expected a list of images, got {type(images).__name__}: for one photo call predict.")
        size = (1 if self.device.type == "cpu" else 4) if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise TypeError(f"Expected batch_size as a whole number, got {size!r}: leave it out for the default.")
        if size < 1:
            raise ValueError(f"Expected batch_size of at least 1, got {batch_size}: leave it out for the default.")
        per_image = spread_prompts(len(images), text, points, point_labels, boxes, mask_input)
        shared: Any = (negative_text, multimask_output, max_instances, threshold, return_logits)
        questions = []
        for index, prompts in enumerate(per_image):
            with _naming(index):
                questions.append(ask(*prompts, *shared))
        results = []
        for start in range(0, len(images), size):
            group = range(start, min(start + size, len(images)))
            pixels, checked, levels = [], [], []
            for index in group:
                with _naming(index):
                    pixels.append(read_image(images[index]))
                    levels.append(self._levels(questions[index]))
                    checked.append(self._check(questions[index], self._geometry(pixels[-1])))
            whole = iter(self._encode([photo for photo, asked in zip(pixels, levels, strict=True) if not asked]))
            for index, photo, geometric, asked in zip(group, pixels, checked, levels, strict=True):
                if asked:
                    results.append(answer_levels(self.text_reader, photo, asked, questions[index]))
                else:
                    results.append(self._answer(next(whole), questions[index], geometric))
        return results

    @torch.inference_mode()
    def presence(self, image: Any = None, texts: str | Sequence[str] | None = None) -> np.ndarray:
        """Does each named thing appear in the photo at all?

        Args:
            image: the photo; None: the one that is set.
            texts: Q texts, or one.
        Returns:
            (Q,) float32 in [0, 1].
        Raises:
            As `predict`.
        """
        if texts is None and isinstance(image, (str, list, tuple)):
            raise TypeError(f"Expected texts, got none: {image!r} was taken as the image; write texts=... for words.")
        texts = listed_texts(texts)
        names = [] if isinstance(texts, (list, tuple)) and not texts else check_texts(texts)
        encoded = self._current_image() if image is None else self._encode([read_image(image)])[0]
        if not names:
            return np.zeros(0, dtype=np.float32)
        embeddings = self._embed(names)
        self._look(encoded)
        if not self.network.config.text_trained:
            agreement = self._ranker.agreement(encoded, names)
            return agreement.amax(1).numpy() if agreement.numel() else np.zeros(len(names), dtype=np.float32)
        return to_numpy(read_texts(self.network, encoded.embeddings, encoded.geometry, embeddings).presence)

    @torch.inference_mode()
    def generate(self, image: Any = None, **options: Any) -> sv.Detections:
        """Automatic masks: everything in a photo, asked for by a grid of points.

        Args:
            image: the photo, which does not replace the one that is set; None: the one that is set.
            options: fields of `textsam.prompting.automatic_options.AutomaticOptions`.
        Returns:
            As `predict`, in order of predicted IoU (with crops, those of small crops first; with
            `min_mask_region_area`, those that needed no mending); data: predicted_iou, stability_score, class_name
            ("object"), point_coords (N, 2), the point that asked for each mask, and crop_box (N, 4), the part of the
            photo that it was found in.
        Raises:
            TypeError: an option that does not exist, naming those that do, or a value that is no number.
            ValueError: a value out of its range.
        """
        refuse_names(self.generate, options, [field.name for field in fields(AutomaticOptions)])
        checked = AutomaticOptions(**options)
        encoded = self._current_image() if image is None else self._encode([read_image(image)])[0]
        return self._generate(encoded, checked)

    # -- what happens to one photo -------------------------------------------------------------------------------------

    def _current_image(self) -> EncodedImage:
        if self._image is None:
            raise ValueError("Expected an image, got none: pass image=..., or call set_image first.")
        return self._image

    def _geometry(self, pixels: np.ndarray) -> ImageGeometry:
        return ImageGeometry.of(pixels.shape[:2], self.image_size, self.network.config.patch_size, self.pad_to_square)

    def _encode(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        if self._cached is not None:
            return self._cached(images)
        return encode_images(self.network, images, self.image_size, self.pad_to_square)

    def _tile(self, tile: np.ndarray) -> EncodedImage:
        """A square part of a photo, encoded at its own size."""
        side = tile.shape[0]
        if self._cached is not None:
            return self._cached.at_side(side)([tile])[0]
        return encode_images(self.network, [tile], side)[0]

    def _levels(self, question: Question) -> list[str]:
        """The levels of written text that are asked for, if this model reads any and nothing else is asked."""
        geometric = (question.points, question.point_labels, question.boxes, question.mask_input)
        if self.text_reader is None or any(prompt is not None for prompt in geometric):
            return []
        return self.text_reader.levels_asked(question.texts, question.negative_texts)

    def _check(self, question: Question, geometry: ImageGeometry) -> GeometricPrompts | None:
        """The rest of the checks, for which the photo's size is needed; also that all words are known."""
        prompts = check_geometry(geometry, question.points, question.point_labels, question.boxes, question.mask_input)
        if prompts is not None and question.texts is not None and len(question.texts) not in (1, len(prompts)):
            raise ValueError(
                f"Expected one text, or one for each of {len(prompts)} prompt sets, got {len(question.texts)}."
            )
        if question.texts is not None and (prompts is None or self.network.config.text_trained):
            self._embed(question.texts + question.negative_texts)
        return prompts

    def _look(self, encoded: EncodedImage) -> None:
        """CLIP looks at the photo, too, before the first text is asked for, where the model takes its dense form."""
        config = self.network.config
        if config.dense_text and config.text_trained:
            encoded.look_with(self._ranker.tower(config.clip_dim))

    def _answer(self, encoded: EncodedImage, question: Question, prompts: GeometricPrompts | None) -> sv.Detections:
        trained = self.network.config.text_trained
        if question.texts:
            self._look(encoded)
        if prompts is not None:
            texts = None
            if question.texts is not None and trained:
                texts = self._embed(question.texts)
            elif question.texts is not None:
                self._ranker.notice(NAMES_NOTICE, stacklevel=5)
            return answer_geometry(self.network, encoded, question, prompts, texts, self.text_options)
        if not trained:
            return self._ranker.answer(encoded, question)
        negatives = self._embed(question.negative_texts) if question.negative_texts else None
        texts = self._embed(question.texts or [])
        return answer_text(self.network, encoded, question, texts, negatives, self.text_options)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        return self._words.embed(texts, self.device)

    def _generate(self, encoded: EncodedImage, options: AutomaticOptions | None = None) -> sv.Detections:
        found = generate(
            self.network,
            encoded.pixels,
            options,
            embeddings=encoded.embeddings,
            side=self.image_size,
            pad_to_square=self.pad_to_square,
        )
        data = {
            "predicted_iou": found.predicted_iou,
            "stability_score": found.stability_score,
            "point_coords": found.points_xy,
            "crop_box": found.crop_boxes_xyxy,
        }
        return to_detections(found.masks(), confidence=found.predicted_iou.clip(0, 1), data=data)


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Errors about a photo of a list say which one."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise  # an error type of its own, which may not be made from a mere sentence
        raise type(error)(f"images[{index}]: {error}") from error
