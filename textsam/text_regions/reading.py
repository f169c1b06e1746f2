"""From a picture of any size to its written text: regions of the levels asked for, in reading order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from textsam.text_regions.instances import BoxOptions, areas_of_mask, boxes_of_map
from textsam.text_regions.levels import BOX_LEVELS, TextRegionConfig, check_levels
from textsam.text_regions.maps import STROKE, LevelMaps, ReadTile, read_scales
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.order import reading_order
from textsam.text_regions.quads import draw_polygon
from textsam.text_regions.regions import TextRegions
from textsam.text_regions.scales import Boxes, join_areas, join_boxes

# Share of the largest letters that the finer pass reads, from which on a coarser pass has a say.
COARSE_FROM = 0.6


def read_levels(
    picture: np.ndarray,
    levels: Sequence[str],
    read_tile: Callable[[Sequence[str]], ReadTile],
    config: TextRegionConfig,
    options: TextReadingOptions | None = None,
    *,
    fill: Sequence[float] = (127.5, 127.5, 127.5),
    threshold: float | None = None,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, TextRegions], dict[str, np.ndarray]]:
    """Reads the levels of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        levels: some of `LEVELS` that the model knows.
        read_tile: makes the function that answers for one tile, given the levels in the order of its answers.
        config: of the model.
        fill: colour beyond the picture's edges.
        threshold: least score of an instance; None: the options'.
        on_tile: told after each tile how many of how many are done.
    Returns:
        level -> its regions; and for the levels that are areas, level -> logits (H, W) float32 on the picture's pixels.
    Raises:
        ValueError: a level that there is not, or that the model was not trained for.
    """
    options = options or TextReadingOptions()
    check_levels(levels)
    config.check_trained(levels)
    asked = list(dict.fromkeys(levels))
    if STROKE in asked:  # ink is handed out by line
        asked += [level for level in ("text line",) if level in config.levels and level not in asked]
    boxes: dict[str, Boxes] = {}
    areas: dict[str, np.ndarray] = {}
    presence = dict.fromkeys(asked, 0.0)
    lowest = {level: options.least_score(level) if threshold is None else threshold for level in asked}
    maps_of_scales = read_scales(
        picture, asked, read_tile, tile=config.tile, fill=fill, options=options, on_tile=on_tile
    )
    finer = dict.fromkeys(asked, 1.0)
    for maps in maps_of_scales:
        for level in maps.logits:
            min_side = COARSE_FROM * options.largest_letters / finer[level]
            finer[level] = maps.scale
            presence[level] = max(presence[level], maps.presence[level])
            if level in BOX_LEVELS:
                found = _boxes(maps, level, config.growth_of(level), lowest[level], options)
                known = boxes.get(level)
                boxes[level] = found if known is None else join_boxes(known, found, min_side, options.covered)
            else:
                logits = _at_size(maps.logits[level], maps.stride[level], maps.scale, picture.shape[:2])
                known_area = areas.get(level)
                limit = float(np.log(options.threshold / (1 - options.threshold)))
                areas[level] = logits if known_area is None else join_areas(known_area, logits, min_side, limit)
    size_hw = (int(picture.shape[0]), int(picture.shape[1]))
    regions = {}
    for level in dict.fromkeys(levels):
        if level in BOX_LEVELS:
            regions[level] = _box_regions(level, boxes[level], presence[level], size_hw)
        else:
            lines = boxes.get("text line", (np.zeros((0, 4, 2), np.float32),))[0] if level == STROKE else ()
            regions[level] = area_regions(level, areas[level], lines, presence[level], lowest[level], options)
    return regions, {level: areas[level] for level in regions if level in areas}


def area_regions(
    level: str,
    logits: np.ndarray,
    lines: Sequence[np.ndarray] | np.ndarray,
    presence: float,
    min_score: float,
    options: TextReadingOptions,
) -> TextRegions:
    """Instances of an area: its connected parts, the best ones, where parts that touch one line's quad are one.

    Args:
        logits: (H, W) on the picture's pixels.
        lines: quads (4, 2); the ink of a line is one instance.
    """
    size_hw = (logits.shape[0], logits.shape[1])
    threshold = options.stroke_threshold if level == STROKE else options.threshold
    mask = logits > np.log(threshold / (1 - threshold))
    glue = mask.copy()
    for quad in lines:
        glue |= draw_polygon(quad, size_hw)
    least = options.min_stroke_pixels if level == STROKE else options.min_side**2
    found = areas_of_mask(mask, glue, logits, least, min_score)
    found = sorted(found, key=lambda area: -area[1])[: options.max_boxes]
    quads = np.array([quad for quad, _, _ in found], np.float32).reshape(-1, 4, 2)
    order = reading_order(quads, boxes_are_lines=True)
    return TextRegions(
        level,
        size_hw,
        quads[order.order],
        np.array([found[i][1] for i in order.order], np.float32),
        order.line[order.order],
        order.block[order.order],
        presence,
        tuple(found[i][2] for i in order.order),
    )


def _box_regions(level: str, boxes: Boxes, presence: float, size_hw: tuple[int, int]) -> TextRegions:
    quads, scores = boxes
    order = reading_order(quads, boxes_are_lines=level != "word")
    rows = order.order
    return TextRegions(level, size_hw, quads[rows], scores[rows], order.line[rows], order.block[rows], presence)


def _boxes(maps: LevelMaps, level: str, growth: float, min_score: float, options: TextReadingOptions) -> Boxes:
    """Boxes of one level at one scale, in original pixels."""
    box_options = BoxOptions(
        threshold=options.threshold,
        seed=options.word_seed if level == "word" else options.seed,
        growth=growth,
        min_side=options.min_side * maps.scale,
        min_score=min_score,
        max_boxes=options.max_boxes,
    )
    quads, scores = boxes_of_map(maps.logits[level], maps.stride[level], box_options)
    return (quads / maps.scale).astype(np.float32), scores


def _at_size(logits: np.ndarray, stride: int, scale: float, size_hw: Any) -> np.ndarray:
    """A map on the picture's own pixels: (H, W) float32."""
    height, width = int(size_hw[0]), int(size_hw[1])
    if stride == 1 and scale == 1.0:
        return logits[:height, :width]
    # The map may reach beyond the picture by part of a cell: enlarge it whole, then cut.
    factor = stride / scale
    whole = (round(logits.shape[1] * factor), round(logits.shape[0] * factor))
    enlarged = cv2.resize(logits, (max(whole[0], width), max(whole[1], height)), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(enlarged[:height, :width])
