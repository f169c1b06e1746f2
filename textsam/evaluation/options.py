"""What an evaluation asks, and of whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from textsam.files.coco import MAX_BAD_SHARE

if TYPE_CHECKING:
    import supervision as sv

DECODER_BATCH = 32
"""Prompts of one decoder call: bounds the memory (M masks of H x W each), whatever the number of instances."""

PROMPTS = ("box", "point", "text", "text+point", "text+box", "all")


@dataclass(frozen=True)
class EvaluationOptions:
    """What to score.

    Attributes:
        prompts: some of PROMPTS.
        limit: images of each set, evenly spaced; None for all.
        max_instances: of each image, chosen at random but always alike, so that crowded pictures do not take all the
            time; the others are counted as left out. Words are always scored on all.
        clicks: numbers of clicks that are scored.
        seed: of the choice of instances.
        max_bad_share: share of bad images or annotations of a set above which it is refused.
        columns: cases in a row of the picture sheet; 0 for no sheet.
    """

    prompts: tuple[str, ...] = ("all",)
    limit: int | None = None
    max_instances: int = 32
    clicks: tuple[int, ...] = (1, 3, 5, 9)
    seed: int = 0
    max_bad_share: float = MAX_BAD_SHARE
    columns: int = 4

    def __post_init__(self) -> None:
        unknown = sorted(set(self.prompts) - set(PROMPTS))
        if unknown or not self.prompts:
            raise ValueError(f"unknown prompts {unknown or '(none)'}: choose from {', '.join(PROMPTS)}")
        if not self.clicks or min(self.clicks) < 1:
            raise ValueError(f"clicks must be counts of at least 1, got {self.clicks}")
        if self.max_instances < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"max_instances and limit must be at least 1, got {self.max_instances} and {self.limit}")

    def asks(self, prompt: str) -> bool:
        """Whether this prompt is to be scored."""
        return prompt in self.prompts or "all" in self.prompts


class Promptable(Protocol):
    """What evaluation needs of a model; `textsam.TextSam` is one."""

    def set_image(self, image: np.ndarray) -> object:
        """Encodes an (H, W, 3) uint8 RGB picture for the calls that follow."""

    def predict(
        self,
        image: None = None,
        text: str | list[str] | None = None,
        points: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        *,
        multimask_output: bool = False,
        threshold: float | None = None,
        return_logits: bool = False,
    ) -> sv.Detections:
        """As `TextSam.predict`: geometry gives one detection (with multimask_output M of them) per prompt, in order."""

    def presence(self, image: None, texts: list[str]) -> np.ndarray:
        """(Q,) in [0, 1]: does each named thing appear in the image that was set?"""
