"""A question for levels of written text, answered as `supervision.Detections`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from textsam.prompting.questions import Question

if TYPE_CHECKING:
    import supervision as sv


def answer_levels(reader: Any, picture: np.ndarray, levels: list[str], question: Question) -> sv.Detections:
    """Every region of every level, those of a level together and in reading order, named by the text as it was asked.

    Args:
        reader: a `TextRegionReader`.
        picture: (H, W, 3) uint8 RGB.
        levels: as `reader.levels_asked` found them.
        question: its threshold and max_instances (of a level, the best, still in reading order).
    Raises:
        ValueError: logits are asked for, which reading does not have.
    """
    import supervision as sv

    if question.return_logits:
        raise ValueError(
            "Expected return_logits=False with levels of written text, whose maps cover tiles, got True: "
            "TextSam.text_reader.read gives the logits on the photo's pixels."
        )
    regions, _ = reader.read(picture, levels, question.threshold)
    texts = question.texts or levels
    parts = []
    for number, level in enumerate(levels):
        if level in levels[:number]:  # in another spelling
            continue
        found = regions[level]
        if question.max_instances is not None:
            found = found.select(np.sort(np.argsort(-found.scores, kind="stable")[: question.max_instances]))
        part = found.to_detections(class_id=number)
        part.data["class_name"] = np.full(len(part), texts[number])
        parts.append(part)
    parts = [part for part in parts if len(part)] or parts[:1]  # merged empty ones would lose their axes and keys
    return parts[0] if len(parts) == 1 else sv.Detections.merge(parts)
