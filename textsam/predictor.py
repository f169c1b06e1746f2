"""`TextSam`: pictures and prompts in, `supervision.Detections` out."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from textsam.answers import answer_by_ranking, answer_geometry, answer_text

from textsam.detections import to_numpy
from textsam.encoded_image import EncodedImage, encode_images
from textsam.images import read_image
from textsam.model import TextSamModel
from textsam.prompts import GeometricPrompts, check_geometry, check_texts
from textsam.questions import Question, ask, spread_prompts
from textsam.ranking import BACKGROUND_TEXTS, RankingOptions, proposal_agreement
from textsam.text_prompting import TextPromptOptions, similarity_probability, text_presence
from textsam.transforms import ImageGeometry
from textsam.vocabulary import UnknownNameError

if TYPE_CHECKING:
    import supervision as sv

# Embeddings of this many texts are kept, a few kB each.
_TEXTS_KEPT = 1024
_ADAPTER = "For a trained text prompt give an adapter: textsam.load(..., adapter=...)."
_RANKING_NOTICE = (
    "This model's text prompt is not trained: words are found by ranking automatic masks with CLIP, which takes longer. "
    + _ADAPTER
)
_NAMES_NOTICE = (
    "This model's text prompt is not trained: text beside points, boxes or masks only names the results. " + _ADAPTER
)


class TextSam:
    """Segments what words, points, boxes and masks point at.

    Args:
        model: put into eval mode.
        text_encoder: words to CLIP embeddings (`encode(texts) -> (Q, D)`), or a function that makes one when the first
            word comes; None: no words.
        crop_encoder: masks to CLIP embeddings, or a function that makes it when it is needed; only ranking needs it.
        image_size: side in pixels that photos are resized to; None: the model's own.
        pad_to_square: False encodes photos that are not square without their padding: faster, not bit for bit SAM.
        text_options: constants of text prompting. ranking_options: those of text by ranking.
    """

    def __init__(
        self,
        model: TextSamModel,
        text_encoder: Any = None,
        crop_encoder: Any = None,
        *,
        image_size: int | None = None,
        pad_to_square: bool = True,
        text_options: TextPromptOptions | None = None,
        ranking_options: RankingOptions | None = None,
    ) -> None:
        self.model = model.eval()
        self._text_encoder = text_encoder
        self._crop_encoder = crop_encoder
        self.image_size = model.config.image_size if image_size is None else image_size
        self.pad_to_square = pad_to_square
        self.text_options = text_options or TextPromptOptions()
        self.ranking_options = ranking_options or RankingOptions()
        self._image: EncodedImage | None = None
        self._text_embeddings: OrderedDict[str, Tensor] = OrderedDict()
        self._noticed: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def text_encoder(self) -> Any:
        """The encoder of words, made now if it was to be made on first use; None when there is none."""
        self._text_encoder = _made(self._text_encoder)
        return self._text_encoder

    @property
    def crop_encoder(self) -> Any:
        """The encoder of masks, made now if it was to be made on first use; None when there is none."""
        self._crop_encoder = _made(self._crop_encoder)
        return self._crop_encoder

    @torch.inference_mode()
    def set_image(self, image: Any) -> None:
        """Encode a photo, for any number of `predict` calls without `image`.

        Args:
            image: PIL image, (H, W, 3) uint8 RGB array, path, or tensor; see `textsam.images.read_image`.
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
        negative_text: str | Sequence[str] | None = None,
        multimask_output: bool = False,
        max_instances: int | None = None,
        threshold: float | None = None,
        return_logits: bool = False,
    ) -> sv.Detections:
        """Masks of what is asked for. All coordinates are pixels of the original photo.

        *Text alone*: every instance of every text, those of a text together and best first. *Points, boxes, masks, with
        or without text*: one object for each prompt set, in their order, exactly as SAM.

        Args:
            image: the photo, which does not replace the one that is set; None: the one that is set.
            text: one text or several. With points, boxes or masks: one for all prompt sets, or one for each.
            points: (K, 2) xy for one object, or (N, K, 2).
            point_labels: (K,) or (N, K): 1 foreground, 0 background, -1 fills up a short row; None: all foreground.
            boxes: (4,) xyxy, (N, 4), or the `sv.Detections` of any detector, whose class names are kept.
            mask_input: logits of a former result, (4h, 4w), (N, 4h, 4w) or (N, 1, 4h, 4w); or bool masks of the photo's
                size, (H, W) or (N, H, W).
            negative_text: text alone: what must not be found instead; an instance that fits one of these better goes.
            multimask_output: points, boxes, masks: three masks for each prompt set (whole, part, subpart; N * 3 rows),
                instead of SAM's single mask.
            max_instances: text alone: at most this many for each text, the most confident.
            threshold: lowest confidence, in [0, 1]; None: 0 with points, boxes or masks, the options' for text alone.
            return_logits: also `data["low_res_logits"]`, (N, 4h, 4w) float32.
        Returns:
            xyxy (N, 4) float32; mask (N, H, W) bool; confidence (N,) in [0, 1], see
            `textsam.detections.confidence_score`; class_id (N,), the number of the text, or of the detector's class,
            or 0; data: class_name, predicted_iou (as the model gives it, not clipped), stability_score, prompt_index,
            mask_index, with text presence, and agreement where the text can be compared with the mask.
        Raises:
            ValueError, TypeError: a prompt that cannot be meant, saying what is expected, what came, and the mend;
            or as `read_image`. The photo that is set stays set.
        """
        question = ask(
            text, points, point_labels, boxes, mask_input,
            negative_text, multimask_output, max_instances, threshold, return_logits,
        )  # fmt: skip
        encoded = self._current_image() if image is None else None
        pixels = read_image(image) if encoded is None else encoded.pixels
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
        if isinstance(images, (str, bytes, np.ndarray, Tensor)) or not isinstance(images, Sequence):
            raise TypeError(f"Expected a list of images, got {type(images).__name__}: for one photo call predict.")
        size = (1 if self.device.type == "cpu" else 4) if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"Expected batch_size of at least 1, got {batch_size}: leave it out for the default.")
        per_image = spread_prompts(len(images), text, points, point_labels, boxes, mask_input)
        shared = (negative_text, multimask_output, max_instances, threshold, return_logits)
        questions = []
        for index, prompts in enumerate(per_image):
            with _naming(index):
                questions.append(ask(*prompts, *shared))
        results = []
        for start in range(0, len(images), size):
            group = range(start, min(start + size, len(images)))
            pixels, checked = [], []
            for index in group:
                with _naming(index):
                    pixels.append(read_image(images[index]))
                    checked.append(self._check(questions[index], self._geometry(pixels[-1])))
            for index, encoded, geometric in zip(group, self._encode(pixels), checked, strict=True):
                results.append(self._answer(encoded, questions[index], geometric))
        return results

    @torch.inference_mode()
    def presence(self, image: Any, texts: Sequence[str]) -> np.ndarray:
        """Does each named thing appear in the photo at all?

        Args:
            image: the photo; None: the one that is set.
            texts: Q texts.
        Returns:
            (Q,) float32 in [0, 1].
        Raises:
            As `predict`.
        """
        names = check_texts(texts) if isinstance(texts, str) or len(texts) else []
        encoded = self._current_image() if image is None else self._encode([read_image(image)])[0]
        if not names:
            return np.zeros(0, dtype=np.float32)
        embeddings = self._embed(names)
        if not self.model.config.text_trained:
            return self._ranking_agreement(encoded, names).amax(1).numpy()
        similarity = similarity_probability(self.model, encoded.embeddings, encoded.geometry, embeddings)
        return to_numpy(text_presence(self.model, encoded.embeddings, embeddings, similarity))

    # -- what happens to one photo -------------------------------------------------------------------------------------

    def _current_image(self) -> EncodedImage:
        if self._image is None:
            raise ValueError("Expected an image, got none: pass image=..., or call set_image first.")
        return self._image

    def _geometry(self, pixels: np.ndarray) -> ImageGeometry:
        return ImageGeometry.of(pixels.shape[:2], self.image_size, self.model.config.patch_size, self.pad_to_square)

    def _encode(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        return encode_images(self.model, images, self.image_size, self.pad_to_square)

    def _check(self, question: Question, geometry: ImageGeometry) -> GeometricPrompts | None:
        """The rest of the checks, for which the photo's size is needed; also that all words are known."""
        prompts = check_geometry(geometry, question.points, question.point_labels, question.boxes, question.mask_input)
        if prompts is not None and question.texts is not None and len(question.texts) not in (1, len(prompts)):
            raise ValueError(
                f"Expected one text, or one for each of {len(prompts)} prompt sets, got {len(question.texts)}."
            )
        if question.texts is not None and (prompts is None or self.model.config.text_trained):
            self._embed(question.texts + question.negative_texts)
        return prompts

    def _answer(self, encoded: EncodedImage, question: Question, prompts: GeometricPrompts | None) -> sv.Detections:
        trained = self.model.config.text_trained
        if prompts is not None:
            texts = None
            if question.texts is not None and trained:
                texts = self._embed(question.texts)
            elif question.texts is not None:
                self._notice(_NAMES_NOTICE)
            return answer_geometry(self.model, encoded, question, prompts, texts, self.text_options)
        names = question.texts or []
        if trained:
            negatives = self._embed(question.negative_texts) if question.negative_texts else None
            return answer_text(self.model, encoded, question, self._embed(names), negatives, self.text_options)
        crop_encoder, others = self._ranking_encoder(), self._others(names, question.negative_texts)
        proposals = self._proposals(encoded)
        return answer_by_ranking(
            encoded, question, proposals, crop_encoder, self._embed(names), others, self.ranking_options
        )

    # -- words ---------------------------------------------------------------------------------------------------------

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """(Q, D) of unit length on the model's device; each text is encoded once and remembered."""
        encoder = self.text_encoder
        if encoder is None:
            raise ValueError('Expected a model with a text encoder, got none: textsam.load(clip="ViT-B-32:openai").')
        new = [text for text in dict.fromkeys(texts) if text not in self._text_embeddings]
        if new:
            width = self.model.config.clip_dim
            embeddings = encoder.encode(new)
            if self.model.config.text_trained and embeddings.shape[-1] != width:
                raise ValueError(
                    f"Expected text embeddings of width {width}, got {embeddings.shape[-1]}: "
                    f"this text prompt belongs to {self.model.config.clip_name}."
                )
            self._text_embeddings.update(zip(new, embeddings, strict=True))
        for text in texts:
            self._text_embeddings.move_to_end(text)
        result = torch.stack([self._text_embeddings[text] for text in texts]).to(self.device)
        while len(self._text_embeddings) > _TEXTS_KEPT:
            self._text_embeddings.popitem(last=False)
        return result

    # -- text by ranking -----------------------------------------------------------------------------------------------

    def _notice(self, notice: str) -> None:
        """Say once what text cannot do with this model."""
        if notice not in self._noticed:
            self._noticed.add(notice)
            warnings.warn(notice, UserWarning, stacklevel=5)

    def _ranking_encoder(self) -> Any:
        if self.crop_encoder is None:
            raise ValueError(
                "Expected a crop encoder or a trained text prompt, got neither: textsam.load with clip=... or adapter=..."
            )
        self._notice(_RANKING_NOTICE)
        return self.crop_encoder

    def _proposals(self, encoded: EncodedImage) -> sv.Detections:
        if encoded.proposals is None:
            encoded.proposals = self._generate(encoded)
        return encoded.proposals

    def _others(self, texts: Sequence[str], negatives: Sequence[str]) -> Tensor:
        """Embeddings of what may win against the texts: (P, D)."""
        asked = {text.casefold() for text in texts}
        others = [self._embed(negatives)] if negatives else []
        for text in BACKGROUND_TEXTS:
            if text.casefold() not in asked:
                with suppress(UnknownNameError):  # an encoder of a closed vocabulary may lack a generic name
                    others.append(self._embed([text]))
        return torch.cat(others) if others else self._embed(texts)[:0]

    def _ranking_agreement(self, encoded: EncodedImage, texts: Sequence[str]) -> Tensor:
        return proposal_agreement(
            encoded.pixels,
            self._proposals(encoded),
            self._ranking_encoder(),
            self._embed(texts),
            self._others(texts, []),
            self.ranking_options,
        )


def _made(encoder: Any) -> Any:
    """An encoder, or the result of the function that makes it."""
    return encoder if encoder is None or hasattr(encoder, "encode") else encoder()


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Errors about a photo of a list say which one."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise  # an error type of its own, which may not be made from a mere sentence
        raise type(error)(f"images[{index}]: {error}") from error
