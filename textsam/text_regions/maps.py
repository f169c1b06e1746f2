"""Maps of the levels of written text over a picture of any size: tile by tile, at one scale or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textsam.modeling.fine_masks import FineDrawing
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.encoded_image import EncodedImage
from textsam.prompting.text_reading import read_texts
from textsam.prompting.transforms import LOW_RES_STRIDE, resize_image
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.tiles import OUTSIDE, JoinedMaps, TileGrid

STROKE = "text stroke"


@dataclass(frozen=True)
class TileAnswer:
    """What a model says of one tile.

    Attributes:
        logits: (Q, side / 4, side / 4) float32 of each level asked for.
        presence: (Q,) in [0, 1].
        strokes: (side, side) float32, the ink at full resolution; None where the model has no such answer.
        finish: the last drawing of the ink, from the mean of several views of the tile and how far they are apart; None
            where the mean is the answer.
    """

    logits: np.ndarray
    presence: np.ndarray
    strokes: np.ndarray | None = None
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class LastDrawing:
    """Finishes the ink of one tile: (side, side) mean logits and differences of views -> (side, side) logits."""

    model: TextSamNetwork
    drawing: FineDrawing

    @torch.inference_mode()
    def __call__(self, mean: np.ndarray, difference: np.ndarray) -> np.ndarray:
        maps = (torch.from_numpy(x)[None, None].to(self.drawing.logits.device) for x in (mean, difference))
        return _array(self.model.fine_masks.finish_drawing(self.drawing, *maps)[0, 0])


ReadTile = Callable[[np.ndarray], TileAnswer]
"""A tile (side, side, 3) uint8 RGB to its answer."""


@dataclass(frozen=True)
class LevelMaps:
    """Maps of a whole picture at one scale.

    Attributes:
        scale: of the picture that was read, relative to the original.
        logits: level -> (h, w) float32 logits, of the levels that were read at this scale.
        stride: level -> pixels of the scaled picture per cell: 1 for refined ink, else 4.
        presence: level -> in [0, 1], the highest of any tile.
    """

    scale: float
    logits: dict[str, np.ndarray]
    stride: dict[str, int]
    presence: dict[str, float]


def scales_for(size_hw: tuple[int, int], options: TextReadingOptions) -> list[float]:
    """1, 1/2, 1/4 ... until letters as high as the picture's shorter side are within what the model reads; behind an
    enlarged pass a third of its scale, as most letters are within both."""
    scales = [options.zoom if size_hw[0] * size_hw[1] <= options.zoom_pixels else 1.0]
    while options.largest_letters / scales[-1] < min(size_hw):
        coarser = scales[-1] / (3 if scales[-1] > 1 else 2)
        if coarser < options.min_scale:
            break
        scales.append(coarser)
    return scales


def passes_for(
    size_hw: tuple[int, int], levels: Sequence[str], options: TextReadingOptions
) -> list[tuple[float, list[str]]]:
    """What is read at which scale, finest first. Ink has to follow the picture's own pixels, which an enlarged pass has
    only smoothed: it is read at scale 1 instead."""
    scales = scales_for(size_hw, options)
    if scales[0] <= 1 or STROKE not in levels:
        return [(scale, list(levels)) for scale in scales]
    others = [level for level in levels if level != STROKE]
    enlarged = [(scales[0], others)] if others else []
    return [*enlarged, (1.0, [STROKE]), *((scale, list(levels)) for scale in scales[1:])]


def read_scales(
    picture: np.ndarray,
    levels: Sequence[str],
    read_tile: Callable[[Sequence[str]], ReadTile],
    *,
    tile: int,
    fill: Sequence[float],
    options: TextReadingOptions,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[LevelMaps]:
    """The maps of every pass that the picture needs, see `passes_for`, one of them in memory at a time.

    Args:
        picture: (H, W, 3) uint8 RGB.
        levels: names.
        read_tile: makes the function that answers for one tile, given the levels in the order of its answers.
        tile: side in pixels that the model was trained on.
        fill: colour beyond the picture's edges.
        on_tile: told after each tile how many of how many are done.
    """
    passes = []
    low, high = (int(tile * factor) // 16 * 16 for factor in options.tile_range)
    sides = sorted(range(low, high + 1, 16), key=lambda side: abs(side - tile))
    for scale, read in passes_for((picture.shape[0], picture.shape[1]), levels, options):
        size_hw = (max(round(picture.shape[0] * scale), 1), max(round(picture.shape[1] * scale), 1))
        passes.append((scale, read, TileGrid.cheapest(size_hw, sides, options.overlap)))
    total, done = sum(len(grid) for *_, grid in passes), 0
    finest_ink = next((scale for scale, read, _ in passes if STROKE in read), None)
    for scale, read, grid in passes:
        answer_tile = read_tile(read)
        shifts = options.stroke_shifts if scale == finest_ink and STROKE in read else ()
        read_ink = read_tile([STROKE]) if shifts else answer_tile
        least = np.array([options.least_presence(level) for level in read])
        scaled = resize_image(picture, grid.size_hw)
        joined = JoinedMaps(grid, len(read), LOW_RES_STRIDE)
        strokes: JoinedMaps | None = None
        presence = np.zeros(len(read), np.float32)
        for left, top in grid:
            answer = answer_tile(grid.cut(scaled, left, top, fill))
            counts = answer.presence >= least
            joined.add(answer.logits, left, top, counts)
            presence = np.maximum(presence, answer.presence)
            if answer.strokes is not None:
                strokes = strokes or JoinedMaps(grid, 1, 1)
                counted = counts[[read.index(STROKE)]]
                ink = answer.strokes
                if counted[0] and shifts:
                    moved = {
                        (right, down): read_ink(grid.cut(scaled, left + right, top + down, fill)).strokes
                        for right, down in shifts
                        if left + right < grid.size_hw[1] and top + down < grid.size_hw[0]
                    }
                    mean, difference = join_views(ink, moved)
                    ink = mean if answer.finish is None else answer.finish(mean, difference)
                strokes.add(ink[None], left, top, counted)
            done += 1
            on_tile(done, total)
        logits = dict(zip(read, joined.logits(), strict=True))
        stride = dict.fromkeys(read, LOW_RES_STRIDE)
        if strokes is not None:
            logits[STROKE], stride[STROKE] = strokes.logits()[0], 1
        yield LevelMaps(scale, logits, stride, dict(zip(read, presence.tolist(), strict=True)))


def join_views(
    strokes: np.ndarray, moved: Mapping[tuple[int, int], np.ndarray | None]
) -> tuple[np.ndarray, np.ndarray]:
    """The ink of a tile that was read again in other places.

    Args:
        strokes: (side, side) logits of the tile itself.
        moved: (right, down) px, both >= 0 -> the (side, side) logits of the tile that begins so far from it; None where
            it found nothing. What it does not show of the tile is left as it is.
    Returns:
        (side, side) mean logits, and the differences between the highest and the lowest.
    """
    total = np.clip(strokes, OUTSIDE, -OUTSIDE)
    low, high, count = total.copy(), total.copy(), np.ones_like(total)
    for (right, down), logits in moved.items():
        if logits is not None:
            place = np.s_[down:, right:]
            seen = np.clip(logits[: total.shape[0] - down, : total.shape[1] - right], OUTSIDE, -OUTSIDE)
            total[place] += seen
            count[place] += 1
            low[place], high[place] = np.minimum(low[place], seen), np.maximum(high[place], seen)
    return total / count, high - low


def model_reader(
    model: TextSamNetwork,
    encode: Callable[[np.ndarray], EncodedImage],
    levels: Sequence[str],
    text_embeddings: Tensor,
    least_presence: float = 0.0,
) -> ReadTile:
    """A model as a `ReadTile`: each tile encoded once, all levels decoded together, each by its word alone.

    Args:
        encode: a tile to its embeddings, at the tile's own size.
        text_embeddings: (Q, D) of the levels' names.
        least_presence: of ink in a tile, below which it is not redrawn.
    """

    @torch.inference_mode()
    def read(tile: np.ndarray) -> TileAnswer:
        encoded = encode(tile)
        reading = read_texts(model, encoded.embeddings, encoded.geometry, text_embeddings)
        logits = reading.region_logits
        strokes = finish = None
        row = list(levels).index(STROKE) if STROKE in levels else None
        if row is not None and model.config.fine_masks and reading.presence[row] >= least_presence:
            coarse = logits[[row], None].to(model.dtype)
            drawing = model.draw_masks(encoded.embeddings, coarse)
            strokes = _array(drawing.logits[0, 0])
            if model.config.finish_masks:
                finish = LastDrawing(model, drawing)
        return TileAnswer(_array(logits), _array(reading.presence), strokes, finish)

    return read


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
