"""Training samples of written text: what a sample is, those of synthetic scenes, and several sets in turn.

A sample is a function of (seed, index) alone, so a run can be repeated and continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from train.synthetic_text import SyntheticText
from train.text_targets import fill, level_masks, unknown


@dataclass
class TextSample:
    """One picture, S px square, and what is written in it. Masks at stride 4."""

    pixels: Tensor  # (3, S, S) uint8
    levels: dict[str, Tensor]  # level -> (S/4, S/4) float in [0, 1]; a level that nobody knows is missing
    weights: Tensor  # (S/4, S/4): 0 where nothing is known
    strokes: Tensor | None = None  # (S, S) float, 1 on glyphs; None where nobody knows
    boxes: Tensor | None = None  # (G, 4) xyxy px of words
    masks: Tensor | None = None  # (G, S/4, S/4) of these words, whole
    texts: tuple[str, ...] = ()  # their transcripts


class SyntheticSamples(Dataset):
    """Scenes as samples. words: G at most of each scene, to be asked for by box and click."""

    def __init__(self, scenes: SyntheticText, length: int, words: int = 1) -> None:
        self.scenes, self.length, self.words = scenes, length, words

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TextSample:
        scene = self.scenes[index]
        height, width = scene.strokes.shape
        levels = {name: torch.from_numpy(mask) for name, mask in level_masks(scene).items()}
        small = [written.strip for written in scene.words if not written.legible]
        rng = np.random.default_rng((self.scenes.seed, index, 1))
        written = [(word.strip, word.text) for word in scene.words if word.legible]
        boxes, masks, texts = draw_words(written, (width, height), self.words, rng)
        return TextSample(
            torch.from_numpy(scene.pixels.copy()).permute(2, 0, 1),
            levels,
            torch.from_numpy(unknown(small, (width, height))),
            torch.from_numpy(scene.strokes.astype(np.float32)),
            boxes,
            masks,
            texts,
        )


def draw_words(
    written: list[tuple[np.ndarray, str]], size: tuple[int, int], count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Some of the words (strip, transcript): boxes (G, 4) inside the picture, masks (G, H/4, W/4), transcripts."""
    boxes, masks, texts = [], [], []
    for i in rng.permutation(len(written)):
        if len(boxes) == count:
            break
        strip, text = written[i]
        points = strip.reshape(-1, 2).clip(0, size)
        box, mask = np.concatenate([points.min(0), points.max(0)]), fill([strip], size)
        if mask.sum() > 3:
            boxes.append(box)
            masks.append(mask)
            texts.append(text)
    cells = (size[1] // 4, size[0] // 4)
    return (
        torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
        torch.from_numpy(np.array(masks, np.float32).reshape(-1, *cells)),
        tuple(texts),
    )


class MixedSamples(Dataset):
    """Batches of several data sets in turn: sample i is of the set that its batch is of.

    Args:
        sets: data sets, and how many batches of each come in a row. batch_size: of the loop.
    """

    def __init__(self, sets: Sequence[tuple[Dataset, int]], batch_size: int, length: int) -> None:
        self.turns = [data for data, count in sets for _ in range(count)]
        self.batch_size, self.length = batch_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
        return self.turns[index // self.batch_size % len(self.turns)][index]
