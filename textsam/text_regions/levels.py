"""The levels of written text that a text-region model is asked for, and what its configuration says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from textsam.language.vocabulary import Vocabulary

LEVELS = ("text", "text stroke", "word", "text line", "text block")
"""Area of text; the ink itself; boxes of words, lines and blocks."""

# Levels whose instances are boxes; the other two are areas of any shape.
BOX_LEVELS = ("word", "text line", "text block")

# Other names, as textsam-tiny-ocr's text encoder has them: what it embeds as a level is read as one.
ALIASES = {
    "writing": "text", "lettering": "text", "written text": "text", "stroke": "text stroke", "glyph": "text stroke",
    "text pixels": "text stroke", "line of text": "text line", "paragraph": "text block", "block of text": "text block",
}  # fmt: skip
_NAMES = Vocabulary(LEVELS, ALIASES)


@dataclass(frozen=True)
class TextRegionConfig:
    """What the checkpoint of a text-region model says of its reading.

    Attributes:
        levels: those that it was trained for.
        tile: side in pixels of the part of a picture that it sees at once, at the scale it was trained at.
        shrink: level -> s: the model draws boxes of that level moved in by s times their shorter side on all sides, so
            that neighbours stay apart; they are grown back when they are read. Levels without s are drawn whole.
        growth: level -> share of a core's shorter side by which it is grown on all sides; where it is not given, what
            undoes the shrinking exactly, s / (1 - 2 s). A model whose cores come out too large needs less.
        presence_threshold: a tile in which a level's presence is below it holds nothing of that level.
    """

    levels: tuple[str, ...]
    tile: int = 448
    shrink: dict[str, float] = field(default_factory=dict)
    growth: dict[str, float] = field(default_factory=dict)
    presence_threshold: float = 0.2

    @classmethod
    def of(cls, config: Any) -> TextRegionConfig | None:
        """From a `NetworkConfig`; None for a model that was not trained for text regions.

        Raises:
            ValueError: what is wrong with it.
        """
        content = getattr(config, "text_regions", None)
        if content is None:
            return None
        known = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or not content.get("levels") or set(content) - known:
            raise ValueError(f"Expected text_regions with levels and some of {sorted(known)}, got {content!r}.")
        parsed = cls(**{**content, "levels": tuple(content["levels"])})
        check_levels(parsed.levels)
        check_levels((*parsed.shrink, *parsed.growth))
        if not all(0 <= value < 0.5 for value in parsed.shrink.values()):
            raise ValueError(f"Expected shrink values in [0, 0.5), got {parsed.shrink}.")
        if not all(-0.5 < value < 10 for value in parsed.growth.values()):
            raise ValueError(f"Expected growth values in (-0.5, 10), got {parsed.growth}.")
        return parsed

    def growth_of(self, level: str) -> float:
        """The share of a core's shorter side by which it is grown on all sides."""
        shrink = self.shrink.get(level, 0.0)
        return self.growth.get(level, shrink / (1 - 2 * shrink))

    def check_trained(self, levels: Sequence[str]) -> None:
        """Raises ValueError for a level that the model was not trained for."""
        untrained = [level for level in levels if level not in self.levels]
        if untrained:
            raise ValueError(
                f"This model reads {', '.join(self.levels)}, not {untrained[0]!r}: train it for that level."
            )


def level_of(text: str) -> str | None:
    """The level that a text asks for by the rules of `Vocabulary.find` ("Words", "a text-line"); None: another word."""
    return _NAMES.find(text) if text in _NAMES else None


def check_levels(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is no level, listing those that are."""
    unknown = [name for name in names if name not in LEVELS]
    if unknown:
        raise ValueError(f"Expected levels of text among {', '.join(LEVELS)}, got {unknown[0]!r}.")
