"""The arguments of `TextSam.predict` as one checked value, before any photo is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from textsam.prompting.prompts import check_max_instances, check_texts, check_threshold, listed_texts


@dataclass(frozen=True)
class Question:
    """What is asked of a photo, checked as far as that goes without the photo.

    Attributes:
        texts: None without text. negative_texts: empty without any.
        points, point_labels, boxes, mask_input: as the user gave them; None without.
        The rest: as in `TextSam.predict`.
    """

    texts: list[str] | None
    points: Any
    point_labels: Any
    boxes: Any
    mask_input: Any
    negative_texts: list[str]
    multimask_output: bool
    max_instances: int | None
    threshold: float | None
    return_logits: bool


def ask(
    text: Any = None,
    points: Any = None,
    point_labels: Any = None,
    boxes: Any = None,
    mask_input: Any = None,
    negative_text: Any = None,
    multimask_output: bool = False,
    max_instances: Any = None,
    threshold: Any = None,
    return_logits: bool = False,
) -> Question:
    """Check the arguments of `TextSam.predict` against each other.

    Raises:
        ValueError: nothing is asked at all, or arguments that exclude each other.
        TypeError, ValueError: a single argument is wrong; see `textsam.prompting.prompts`.
    """
    has_geometry = any(value is not None for value in (points, boxes, mask_input))
    if text is None and not has_geometry and point_labels is None:
        raise ValueError("Expected a prompt, got none: give text, points, boxes or mask_input, or call generate.")
    texts = None if text is None else check_texts(text)
    negatives = [] if negative_text is None else check_texts(negative_text, "negative_text")
    if negatives and (texts is None or has_geometry):
        raise ValueError(
            "Expected negative_text together with text alone, got it with points, boxes, a mask or no text: "
            "a point with label 0 excludes a place."
        )
    both = {item.casefold() for item in texts or ()} & {item.casefold() for item in negatives}
    if both:
        raise ValueError(f"Expected negative_text to differ from text, got {min(both)!r} in both: drop one of them.")
    if has_geometry and max_instances is not None:
        raise ValueError(
            "Expected max_instances with text alone, got it with points, boxes or a mask, which give one object "
            "for each prompt set: leave it out."
        )
    return Question(
        texts,
        points,
        point_labels,
        boxes,
        mask_input,
        negatives,
        bool(multimask_output),
        check_max_instances(max_instances),
        check_threshold(threshold),
        bool(return_logits),
    )


def spread_prompts(count: int, text: Any, *geometric: Sequence[Any] | None) -> list[tuple[Any, ...]]:
    """The prompts of each of `count` photos: (text, points, point_labels, boxes, mask_input).

    Args:
        text: one text or a list of texts, shared by all photos; or a list with an entry (a text, a list of texts or
            None) for each photo, at least one of which is not a plain text.
        geometric: points, point_labels, boxes and mask_input: lists with an entry for each photo, or None.
    Raises:
        ValueError, TypeError: a list whose length is not that of the photos.
    """
    text = listed_texts(text)
    several = isinstance(text, Sequence) and not isinstance(text, (str, bytes))
    shared = not several or all(isinstance(item, str) for item in text)
    columns = [[text] * count if shared else list(text)]
    names = ("text", "points", "point_labels", "boxes", "mask_input")
    for name, values in zip(names[1:], geometric, strict=True):
        one = hasattr(values, "xyxy")  # a detector's result, which is a sequence, too
        if one or not (values is None or isinstance(values, Iterable)):
            raise TypeError(f"Expected {name} as a list with an entry for each image, got one {type(values).__name__}.")
        columns.append([None] * count if values is None else list(values))
    for name, column in zip(names, columns, strict=True):
        if len(column) != count:
            raise ValueError(
                f"Expected {name} with one entry for each of {count} images, got {len(column)}: "
                "give None for an image without."
            )
    return list(zip(*columns, strict=True))
