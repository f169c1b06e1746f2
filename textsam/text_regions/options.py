"""The constants of reading text regions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextReadingOptions:
    """Every constant of reading text regions. Pixels are those of the original picture unless said otherwise.

    Attributes:
        overlap: pixels that neighbouring tiles share, at least.
        tile_range: tiles may have any side of the model's own tile times these two factors, whichever covers the
            picture with the fewest pixels.
        zoom: scale of the finest pass over pictures of at most `zoom_pixels`: small print is read better enlarged.
        largest_letters: height in pixels, at the scale of a pass, of the largest letters that the model reads.
        min_scale: the coarsest pass; 1 switches off passes at reduced scale.
        presence_threshold: a tile whose presence of a level is below it says nothing of that level.
        stroke_presence: the same of ink, where it is lower.
        stroke_shifts: where ink was found it is read again with the tile moved by these (right, down) pixels, and the
            mean of the logits counts, or what a model with `finish_masks` draws from it: how a letter lies on the
            model's rasters, of 2 to 32 px, is chance. Coarser passes read once.
        threshold, stroke_threshold: probability above which a place belongs to a level, and to ink.
        seed, word_seed: probability that a core of a line or block, and of a word, must reach; cores that are apart
            there are taken apart. Words stand so close that their cores touch at the threshold.
        min_score, word_score, stroke_score: regions (words, ink) whose mean probability inside their core is below it
            are dropped, unless the caller gives a threshold.
        min_side: boxes whose shorter side is below it are dropped.
        min_stroke_pixels: patches of ink of fewer pixels are dropped.
        covered: a box of a coarser pass gives way to those of the finer ones that cover this share of it.
        max_boxes: at most so many boxes, or areas, of a level, the best: those of a page full of specks would not fit
            into memory.
    """

    overlap: int = 64
    tile_range: tuple[float, float] = (0.85, 1.1)
    zoom: float = 1.5
    zoom_pixels: int = 2_100_000
    largest_letters: float = 120.0
    min_scale: float = 1 / 8
    presence_threshold: float = 0.5
    stroke_presence: float = 0.5
    stroke_shifts: tuple[tuple[int, int], ...] = ((7, 11),)
    threshold: float = 0.5
    stroke_threshold: float = 0.42
    seed: float = 0.6
    word_seed: float = 0.5
    min_score: float = 0.8
    word_score: float = 0.77
    stroke_score: float = 0.65
    min_side: float = 5.0
    min_stroke_pixels: int = 8
    covered: float = 0.5
    max_boxes: int = 3000

    def least_presence(self, level: str) -> float:
        """The presence below which a tile says nothing of a level."""
        own = self.stroke_presence if level == "text stroke" else 1.0
        return min(self.presence_threshold, own)

    def least_score(self, level: str) -> float:
        """The score below which regions of a level are dropped."""
        return {"word": self.word_score, "text stroke": self.stroke_score}.get(level, self.min_score)
