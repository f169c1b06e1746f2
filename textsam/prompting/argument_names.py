"""Arguments by the names that other tools give them: an error that says what they are called here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# What other tools call the arguments of `predict`.
NAMES_ELSEWHERE = {
    "point_coords": "points",
    "input_points": "points",
    "input_labels": "point_labels",
    "labels": "point_labels",
    "bboxes": "boxes",
    "box": "boxes",
    "input_boxes": "boxes",
    "masks": "mask_input",
    "mask": "mask_input",
    "input_masks": "mask_input",
    "texts": "text",
    "prompt": "text",
    "box_threshold": "threshold",
}


def refuse_names(function: Callable[..., Any], given: Iterable[str], known: Sequence[str] | None = None) -> None:
    """
    Args:
        given: names of arguments that `function` was called with. known: None: those of its signature.
    Raises:
        TypeError: one is not known, naming the one that is meant, or all.
    """
    if known is None:
        every = inspect.signature(function).parameters.values()
        known = [each.name for each in every if each.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in given:
        if name not in known:
            meant = NAMES_ELSEWHERE.get(name)
            close = [meant] if meant in known else difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            raise TypeError(f"{function.__name__} has no option {name!r}: {hint}")
