"""Prompts to `TextSam` calls, and its detections to the page's masks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from app.limits import LIMITS
from app.scene import Found, Prompts
from textsam.files.rle import encode_mask
from textsam.language.queries import clean_text
from textsam.language.vocabulary import UnknownNameError
from textsam.predictor import TextSam
from textsam.prompting.detections import UNNAMED_CLASS, best_of_group

if TYPE_CHECKING:
    import supervision as sv

BETWEEN_WORDS = r"[,;\n，、；]"  # the last three: how a Chinese or Japanese keyboard writes the first two
LOWEST_CONFIDENCE = 0.25  # found at all, and shown when the threshold is moved down


def for_photo(sam: TextSam, pixels: np.ndarray) -> TextSam:
    """The same model with a photo of its own, encoded here and now; nobody else's photo is touched."""
    own = copy.copy(sam)
    own.set_image(pixels)
    return own


def warm_up(sam: TextSam) -> None:
    """Ask for something once, so that the first person does not wait for what is made or imported on first use."""
    for_photo(sam, np.full((64, 64, 3), 128, dtype=np.uint8)).predict(points=[[32, 32]])


def default_threshold(sam: TextSam) -> float:
    """The least confidence of `TextSam.predict`."""
    options = sam.text_options if sam.network.config.text_trained else sam.ranking_options
    return options.confidence_threshold


def parse_words(text: str) -> tuple[str, ...]:
    """ "cat, collar" to ("cat", "collar"), each once.

    Raises:
        ValueError: too many, or too long a word.
    """
    parts = [part.strip() for part in re.split(BETWEEN_WORDS, text) if part.strip()]
    long = next((part for part in parts if len(part) > LIMITS.word_length), None)
    if long is not None:
        raise ValueError(f"A word has at most {LIMITS.word_length} characters: “{long[:20]}…” has {len(long)}.")
    words = {word.casefold(): word for word in map(clean_text, parts)}
    if len(words) > LIMITS.words:
        raise ValueError(f"At most {LIMITS.words} words are looked for at once, these are {len(words)}.")
    return tuple(words.values())


def known_words(sam: TextSam, words: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """The words that the model knows, and a sentence for each other; a public CLIP knows all."""
    known, sentences = [], []
    for word in words:
        try:
            if sam.text_encoder is not None:
                sam.text_encoder.encode([word])
            known.append(word)
        except UnknownNameError as error:
            alike = ", ".join(error.suggestions[:3])
            sentences.append(f"This model does not know “{word}”." + (f" Spelled alike: {alike}." if alike else ""))
    return tuple(known), sentences


def find_words(sam: TextSam, prompts: Prompts, new_id: Callable[[], int]) -> tuple[Found, ...]:
    """Every instance of every word, also the less confident ones."""
    detections = sam.predict(
        text=list(prompts.words),
        negative_text=list(prompts.negative_words) or None,
        threshold=LOWEST_CONFIDENCE,
        return_logits=True,
    )
    detections.data["shown_from"] = _shown_from(sam, detections)
    return _masks(detections, new_id, "words")


def _shown_from(sam: TextSam, detections: sv.Detections) -> np.ndarray:
    """(N,) the threshold from which down each instance is shown.

    At the default threshold that is what `TextSam.predict` gives: nothing that is faint beside the best of its word.
    The further the threshold is moved down, the less that counts.
    """
    if not sam.network.config.text_trained:
        return detections.confidence
    options = sam.text_options
    wanted = options.share_of_best * best_of_group(detections.confidence, detections.class_id)
    faint = detections.confidence < wanted
    lowered = options.confidence_threshold * detections.confidence / wanted
    return np.where(faint, np.minimum(lowered, detections.confidence), detections.confidence)


def find_everything(sam: TextSam, new_id: Callable[[], int]) -> tuple[Found, ...]:
    """Automatic masks, the best first."""
    return _masks(sam.generate(**everything_options(sam)), new_id, "everything")


def everything_options(sam: TextSam) -> dict[str, Any]:
    """Of `TextSam.generate`: SAM's own for its ViTs, less strict ones for a small model; a coarser grid on a CPU."""
    side = 12 if sam.device.type == "cpu" else 32
    if sam.network.config.encoder_type == "vit":
        return {"points_per_side": side}
    return {"points_per_side": side, "pred_iou_thresh": LOWEST_CONFIDENCE, "stability_score_thresh": 0.5}


def find_object(sam: TextSam, prompts: Prompts, id: int, colour: int) -> tuple[Found, ...]:
    """One object from all its prompts, words among them, in one call: three candidates for a lone click, else one mask.

    A target lends its name, and where it is refined its mask. Several words without a target are asked side by side in
    that call, and the one that fits best is taken.
    """
    target = prompts.target
    words = [target.name] if target is not None and target.name in prompts.words else list(prompts.words)
    count = max(1, len(words))
    asked: dict[str, Any] = {"text": words or None}
    if prompts.points:
        asked["points"] = [[[point.x, point.y] for point in prompts.points]] * count
        asked["point_labels"] = [[int(point.positive) for point in prompts.points]] * count
    if prompts.box is not None:
        asked["boxes"] = [prompts.box] * count
    start = _start(prompts)
    if start is not None:
        asked["mask_input"] = np.repeat(start[None], count, axis=0)
    ambiguous = len(prompts.points) == 1 and prompts.box is None and start is None
    found = sam.predict(**asked, multimask_output=ambiguous, return_logits=True)
    best = found.data["prompt_index"] == found.data["prompt_index"][int(found.confidence.argmax())]
    name = None if target is None or target.name in prompts.words else target.name
    masks = [
        Found(id, name or each.name, each.rle, each.confidence, colour, each.logits)
        for each in _masks(found[best], lambda: id, "object")
    ]
    return tuple(sorted(masks, key=lambda mask: -mask.confidence))


def _start(prompts: Prompts) -> np.ndarray | None:
    """The mask that the object starts from: painted, or the target's, as logits where there are any."""
    if prompts.brush is not None:
        return Found(0, "", prompts.brush, 1.0, 0).mask()
    if prompts.target is None or not prompts.refine:
        return None
    return prompts.target.mask() if prompts.target.logits is None else prompts.target.logits


def _masks(detections: sv.Detections, new_id: Callable[[], int], origin: Any) -> tuple[Found, ...]:
    if len(detections) > LIMITS.masks:
        best = np.argsort(-detections.confidence, kind="stable")[: LIMITS.masks]
        detections = detections[np.sort(best)]
    logits = detections.data.get("low_res_logits")
    shown_from = detections.data.get("shown_from", detections.confidence)
    names = detections.data.get("class_name", [UNNAMED_CLASS] * len(detections))
    return tuple(
        Found(
            id=new_id(),
            name=str(names[i]),
            rle=encode_mask(detections.mask[i]),
            confidence=float(detections.confidence[i]),
            colour=i,
            logits=None if logits is None else logits[i],
            origin=origin,
            shown_from=float(shown_from[i]),
        )
        for i in range(len(detections))
        if detections.mask[i].any()
    )
