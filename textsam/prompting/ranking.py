"""Words to objects without a trained text prompt: CLIP ranks automatic proposals.

SAM's own checkpoints understand no words. Their automatic masks are proposals; one dense CLIP pass, pooled inside each
mask, makes a short list for every text; the masked crops of the short list are embedded one by one, and a softmax
against the other texts, the negative texts and generic names gives each mask its agreement with the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.prompting.detections import boxes_of_masks, confidence_score, mask_nms

if TYPE_CHECKING:
    import supervision as sv

# What a mask may show that nobody asked for. A text that equals one of them competes against the others.
BACKGROUND_TEXTS = (
    "background",
    "a texture",
    "a wall",
    "the ground",
    "the sky",
    "grass",
    "water",
    "a shadow",
    "a part of an object",
    "an unknown object",
)


class DenseTower(Protocol):
    """A CLIP's image tower, cell by cell; `CropEncoder` is one."""

    def dense(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (D, hc, wc) of unit length over D, covering the whole photo."""


class MaskEmbedder(DenseTower, Protocol):
    """What ranking needs of a CLIP image tower; `CropEncoder` and `SmallCropEncoder` are two."""

    def encode(self, image: np.ndarray, masks: np.ndarray, *, expand: float, zero_outside: bool) -> Tensor:
        """(H, W, 3) uint8 and (N, H, W) bool, none empty -> (N, D) of unit length."""


@dataclass(frozen=True)
class RankingOptions:
    """Every constant of ranking.

    Attributes:
        logit_scale: cosines are multiplied by it before the softmax; CLIP's own is 100.
        short_list: masks for each text whose crops are embedded.
        confidence_threshold: instances of a lower confidence are dropped, unless the caller gives a threshold.
        expand: side of the square crop relative to the mask's box.
        zero_outside: crops without what surrounds the mask.
        iou_threshold, containment_threshold: see `textsam.prompting.detections.mask_nms`.
        overlap_side: masks are compared at a resolution whose long side is at most this.
        guided: ask for masks where CLIP's dense features see the texts (`guided_proposals`), instead of everywhere.
        guided_least, guided_most: see `guiding_points`.
        guided_iou, guided_stability: lowest predicted IoU and stability score of masks that were asked for there: fewer
            places ask, and whether a mask shows the text is looked at afterwards.
    """

    logit_scale: float = 100.0
    short_list: int = 24
    confidence_threshold: float = 0.4
    expand: float = 1.2
    zero_outside: bool = True
    iou_threshold: float = 0.5
    containment_threshold: float = 0.8
    overlap_side: int = 256
    guided: bool = True
    guided_least: float = 0.5
    guided_most: int = 16
    guided_iou: float = 0.5
    guided_stability: float = 0.7


@dataclass(frozen=True)
class RankedMasks:
    """N instances, those of a text together and best first.

    Attributes:
        proposal_index: (N,) int64, which proposal.
        query_index: (N,) int64, which text.
        confidence, agreement, presence: (N,) float32. Presence is the best agreement that any proposal has with the
            text: there is no other evidence, so it is not part of the confidence.
    """

    proposal_index: np.ndarray
    query_index: np.ndarray
    confidence: np.ndarray
    agreement: np.ndarray
    presence: np.ndarray


def rank_proposals(
    image: np.ndarray,
    proposals: sv.Detections,
    crop_encoder: MaskEmbedder,
    text_embeddings: Tensor,
    other_embeddings: Tensor,
    options: RankingOptions,
    max_instances: int | None = None,
    threshold: float | None = None,
    dense_features: Tensor | None = None,
) -> RankedMasks:
    """The proposals that show what each text names.

    Args:
        image: (H, W, 3) uint8 RGB.
        proposals: automatic masks of this photo with `data["predicted_iou"]`.
        crop_encoder: the image tower of the CLIP that embedded the texts.
        text_embeddings: (Q, D) of unit length.
        other_embeddings: (P, D) of unit length: negative texts and generic names, which may win but are not returned.
        max_instances: for each text, the most confident.
        threshold: on the confidence; None: the one of the options.
        dense_features: (D, hc, wc), `crop_encoder.dense(image)` if it is known already.
    """
    lowest = options.confidence_threshold if threshold is None else threshold
    agreement = proposal_agreement(
        image, proposals, crop_encoder, text_embeddings, other_embeddings, options, dense_features
    )
    empty = np.zeros(0, dtype=np.float32)
    parts = [(empty.astype(np.int64), empty.astype(np.int64), empty, empty, empty)]
    if len(proposals):
        predicted_iou = torch.from_numpy(np.asarray(proposals.data["predicted_iou"], dtype=np.float32))
        small = shrink_masks(proposals.mask, options.overlap_side)
        for query, agreed in enumerate(agreement):
            confidence = confidence_score(predicted_iou, agreement=agreed)
            good = torch.nonzero((confidence >= lowest) & (agreed > 0))[:, 0]
            kept = mask_nms(small[good], confidence[good], options.iou_threshold, options.containment_threshold)
            chosen = good[kept[:max_instances]]
            presence = agreed.max().expand(len(chosen))
            numbers = np.full(len(chosen), query, dtype=np.int64)
            parts.append(
                (chosen.numpy(), numbers, confidence[chosen].numpy(), agreed[chosen].numpy(), presence.numpy())
            )
    return RankedMasks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def proposal_agreement(
    image: np.ndarray,
    proposals: sv.Detections,
    crop_encoder: MaskEmbedder,
    text_embeddings: Tensor,
    other_embeddings: Tensor,
    options: RankingOptions,
    dense_features: Tensor | None = None,
) -> Tensor:
    """(Q, N) float32 in [0, 1] on the CPU: how far each proposal shows what each text names.

    0 for proposals that are not on a text's short list, and where a negative or generic name fits better than the text.
    """
    count, queries = len(proposals), len(text_embeddings)
    agreement = torch.zeros(queries, count)
    if count == 0 or queries == 0:
        return agreement
    texts = torch.cat([text_embeddings, other_embeddings]).float().cpu()
    dense = crop_encoder.dense(image) if dense_features is None else dense_features
    pooled = pool_features(dense.float().cpu(), proposals.mask)
    first = softmax_agreement(pooled, texts, queries, options.logit_scale)
    chosen = torch.unique(first.topk(min(options.short_list, count), dim=1).indices)
    masks = proposals.mask[chosen.numpy()]
    crops = crop_encoder.encode(image, masks, expand=options.expand, zero_outside=options.zero_outside)
    agreement[:, chosen] = softmax_agreement(crops.float().cpu(), texts, queries, options.logit_scale, lose=True)
    return agreement


def softmax_agreement(
    embeddings: Tensor, texts: Tensor, queries: int, logit_scale: float, lose: bool = False
) -> Tensor:
    """Softmax over all texts of the scaled cosines, for the first `queries` of them: (Q, N).

    Args:
        embeddings: (N, D) and texts: (Q + P, D), of unit length.
        lose: a text gets 0 where one of the P others fits better.
    """
    cosines = embeddings @ texts.T
    agreement = (logit_scale * cosines).softmax(dim=1)[:, :queries]
    if lose and texts.shape[0] > queries:
        agreement = agreement * (cosines[:, :queries] > cosines[:, queries:].amax(1, keepdim=True))
    return agreement.T


def pool_features(dense: Tensor, masks: np.ndarray) -> Tensor:
    """Mean of the dense features inside each mask: (D, hc, wc) and (N, H, W) bool -> (N, D) of unit length."""
    grid = tuple(dense.shape[-2:])
    share = torch.cat([F.interpolate(torch.from_numpy(mask)[None, None].float(), grid, mode="area") for mask in masks])
    return F.normalize(share.flatten(1) @ dense.flatten(1).T, dim=-1)


def shrink_masks(masks: np.ndarray, side: int) -> Tensor:
    """(N, H, W) bool -> bool at a long side of at most `side`; masks that would vanish keep the centre of their box."""
    step = max(-(-max(masks.shape[1:]) // side), 1)
    small = torch.from_numpy(np.ascontiguousarray(masks[:, ::step, ::step]))
    lost = np.nonzero(~small.flatten(1).any(1).numpy())[0]
    if step > 1 and len(lost):
        x1, y1, x2, y2 = (boxes_of_masks(masks[lost]) // step).astype(int).T
        small[lost, np.minimum((y1 + y2) // 2, small.shape[1] - 1), np.minimum((x1 + x2) // 2, small.shape[2] - 1)] = (
            True
        )
    return small
