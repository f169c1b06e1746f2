"""Text by ranking, for a whole predictor: proposals, encoders, generic names, and the notice that it happens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from textsam.language.words import Words
from textsam.prompting.answers import names_of
from textsam.prompting.automatic_options import AutomaticOptions
from textsam.prompting.detections import to_detections
from textsam.prompting.encoded_image import EncodedImage
from textsam.prompting.guided_proposals import guiding_points, word_maps
from textsam.prompting.questions import Question
from textsam.prompting.ranking import BACKGROUND_TEXTS, MaskEmbedder, RankingOptions, proposal_agreement, rank_proposals
from textsam.prompting.transforms import mask_to_low_res_logits

if TYPE_CHECKING:
    import supervision as sv

_ADAPTER = "For a trained text prompt give an adapter: textsam.load(..., adapter=...)."
RANKING_NOTICE = (
    "This model's text prompt is not trained: words are found by ranking automatic masks with CLIP, which is slower. "
    + _ADAPTER
)
NAMES_NOTICE = (
    "This model's text prompt is not trained: text beside points, boxes or masks only names the results. " + _ADAPTER
)


class Ranker:
    """Answers texts by ranking automatic masks of a photo: those that points find where CLIP sees the texts, or
    those of everything, which are made once for each photo.

    Args:
        words: embeds texts.
        crop_encoder: the image tower of the same CLIP, or a function that makes it on first use; None: there is none.
        generate: the automatic masks of a photo, with predicted_iou and stability_score; None: the default options.
        options: constants.
    """

    def __init__(
        self,
        words: Words,
        crop_encoder: MaskEmbedder | Callable[[], MaskEmbedder] | None,
        generate: Callable[[EncodedImage, AutomaticOptions | None], sv.Detections],
        options: RankingOptions,
    ) -> None:
        self.words = words
        self.generate = generate
        self.options = options
        self._crop_encoder = crop_encoder
        self._noticed: set[str] = set()

    @property
    def crop_encoder(self) -> MaskEmbedder | None:
        """The encoder of masks, made now if it was to be made on first use."""
        if self._crop_encoder is not None and not hasattr(self._crop_encoder, "encode"):
            self._crop_encoder = self._crop_encoder()
        return self._crop_encoder  # type: ignore[return-value]

    def tower(self, clip_dim: int) -> MaskEmbedder:
        """The image tower of the CLIP that a trained text prompt speaks the space of.

        Raises:
            ValueError: there is none, or one of another width.
        """
        encoder = self.crop_encoder
        if encoder is None:
            raise ValueError(
                "Expected a crop encoder, got none: with dense_text a text is also looked for by its CLIP's image "
                "tower; textsam.load(..., clip=...) brings both."
            )
        width = getattr(encoder, "embed_dim", clip_dim)
        if width != clip_dim:
            raise ValueError(
                f"Expected a crop encoder of width {clip_dim}, that of the model's CLIP, got {width}: load the CLIP "
                "that the model names."
            )
        return encoder

    def notice(self, notice: str, stacklevel: int) -> None:
        """Say once what text cannot do with this model; `stacklevel` leads to the user's own line."""
        if notice not in self._noticed:
            self._noticed.add(notice)
            warnings.warn(notice, UserWarning, stacklevel=stacklevel)

    def check(self) -> MaskEmbedder:
        """The encoder of masks.

        Raises:
            ValueError: there is none.
        """
        encoder = self.crop_encoder
        if encoder is None:
            raise ValueError(
                "Expected a crop encoder or a trained text prompt, got neither: textsam.load(..., clip=...) makes one"
            )
        self.notice(RANKING_NOTICE, stacklevel=7)
        return encoder

    def agreement(self, encoded: EncodedImage, texts: Sequence[str]) -> Tensor:
        """(Q, N) in [0, 1]: how far each proposal shows what each text names."""
        crop_encoder = self.check()
        embeddings, others = self._embed(texts), self.rivals(texts, [])
        proposals = self._proposals(encoded, embeddings, others)
        dense = self._dense(encoded)
        return proposal_agreement(encoded.pixels, proposals, crop_encoder, embeddings, others, self.options, dense)

    def answer(self, encoded: EncodedImage, question: Question) -> sv.Detections:
        """The automatic masks that CLIP finds most like each text, those of a text together and best first."""
        self.check()
        texts = question.texts or []
        proposals = self._proposals(encoded, self._embed(texts), self.rivals(texts, question.negative_texts))
        found = self.rank(encoded.pixels, proposals, question, self._dense(encoded))
        if question.return_logits:  # proposals keep no logits: a mask that was found in a crop has none in this frame
            found.data["low_res_logits"] = mask_to_low_res_logits(found.mask, encoded.geometry)[:, 0].numpy()
        return found

    def rank(
        self,
        pixels: np.ndarray,
        proposals: sv.Detections,
        question: Question,
        dense_features: Tensor | None = None,
    ) -> sv.Detections:
        """The proposals that CLIP finds most like each text.

        Args:
            pixels: (H, W, 3) uint8 RGB, the photo.
            proposals: its automatic masks, with predicted_iou and stability_score.
            dense_features: (D, hc, wc) of the photo; None: made here.
        """
        crop_encoder, texts = self.crop_encoder, question.texts or []
        if crop_encoder is None:
            raise ValueError("Expected a crop encoder, got none: ranking compares crops with texts.")
        ranked = rank_proposals(
            pixels,
            proposals,
            crop_encoder,
            self._embed(texts),
            self.rivals(texts, question.negative_texts),
            self.options,
            question.max_instances,
            question.threshold,
            dense_features,
        )
        return to_detections(
            proposals.mask[ranked.proposal_index],  # type: ignore[index]
            confidence=ranked.confidence,
            class_id=ranked.query_index,
            class_names=names_of(question, ranked.query_index),
            data={
                "predicted_iou": proposals.data["predicted_iou"][ranked.proposal_index],
                "stability_score": proposals.data["stability_score"][ranked.proposal_index],
                "prompt_index": ranked.query_index,
                "mask_index": np.zeros(len(ranked.query_index), dtype=np.int64),
                "presence": ranked.presence,
                "agreement": ranked.agreement,
            },
        )

    def rivals(self, texts: Sequence[str], negatives: Sequence[str]) -> Tensor:
        """Embeddings of what may win against the texts, negative texts first: (P, D)."""
        asked = {text.casefold() for text in texts}
        generic = [text for text in BACKGROUND_TEXTS if text.casefold() not in asked]
        found = [self._embed(negatives)] if negatives else []
        found += self.words.embed_known(generic, torch.device("cpu"))
        return torch.cat(found) if found else self._embed(texts)[:0]

    def _embed(self, texts: Sequence[str]) -> Tensor:
        return self.words.embed(texts, torch.device("cpu"))

    def _dense(self, encoded: EncodedImage) -> Tensor:
        if encoded.dense_features is None:
            encoded.dense_features = self.check().dense(encoded.pixels)
        return encoded.dense_features

    def _proposals(self, encoded: EncodedImage, texts: Tensor, others: Tensor) -> sv.Detections:
        options = self.options
        if options.guided:
            maps = word_maps(self._dense(encoded), texts, others, options.logit_scale)
            points = guiding_points(maps, options.guided_least, options.guided_most)
            asked = AutomaticOptions(
                points_per_side=None,
                point_grids=[points],
                pred_iou_thresh=options.guided_iou,
                stability_score_thresh=options.guided_stability,
            )
            return self.generate(encoded, asked)
        if encoded.proposals is None:
            encoded.proposals = self.generate(encoded, None)
        return encoded.proposals
