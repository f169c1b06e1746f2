"""The order in which a person would read boxes of text: columns, in them lines, in them words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from textsam.text_regions.quads import direction_of_quad, size_of_quad

# Two boxes are neighbours in a line when their heights differ by less than this factor, ...
MAX_HEIGHT_RATIO = 2.0
# ... this share of the lower one's height lies beside the other, and the gap is at most so many of its heights.
MIN_SIDE_OVERLAP = 0.5
MAX_WORD_GAP = 1.5
# Two lines belong to one block when they are at most so many heights apart and this share of the shorter one's width
# lies above or below the other.
MAX_LINE_GAP = 1.0
MIN_STACK_OVERLAP = 0.5
# Columns: groups side by side that share this part of the higher one's height.
MIN_COLUMN_OVERLAP = 0.5


@dataclass(frozen=True)
class ReadingOrder:
    """How N boxes are read.

    Attributes:
        order: (N,) int64, indices of the boxes in reading order.
        line, block: (N,) int64, the number of the line and of the block of each box (not sorted), counted from 0 in
            reading order.
    """

    order: np.ndarray
    line: np.ndarray
    block: np.ndarray


def reading_order(quads: np.ndarray, boxes_are_lines: bool = False) -> ReadingOrder:
    """Puts boxes in reading order: lines from top to bottom, boxes of a line along its direction.

    Boxes are joined to lines, lines to blocks, and blocks are cut into columns and rows (XY cut, Nagy and Seth 1984):
    where text stands in columns side by side, the left one is read to its end first.

    Args:
        quads: (N, 4, 2) xy; see `textsam.text_regions.quads`.
        boxes_are_lines: each box is a line of its own.
    """
    count = len(quads)
    if count == 0:
        empty = np.zeros(0, np.int64)
        return ReadingOrder(empty, empty, empty)
    frames = [_Frame.of(quad) for quad in quads]
    lines = [[i] for i in range(count)] if boxes_are_lines else _group(_line_links(frames))
    lines = [sorted(line, key=lambda i: _along_line(frames, line, i)) for line in lines]
    outlines = np.stack([_bounds(np.concatenate([quads[i] for i in line])) for line in lines])
    heights = np.array([np.median([frames[i].height for i in line]) for line in lines])
    blocks = _group(_block_links(outlines, heights))
    block_bounds = np.stack([_bounds(outlines[block].reshape(-1, 2)) for block in blocks])

    order, line_of, block_of = [], np.zeros(count, np.int64), np.zeros(count, np.int64)
    line_number = 0
    for block_number, index in enumerate(_cut(block_bounds, list(range(len(blocks))))):
        for line in sorted(blocks[index], key=lambda n: (outlines[n][1] + outlines[n][3], outlines[n][0])):
            for i in lines[line]:
                order.append(i)
                line_of[i], block_of[i] = line_number, block_number
            line_number += 1
    return ReadingOrder(np.array(order, np.int64), line_of, block_of)


@dataclass(frozen=True)
class _Frame:
    """A box by its centre (2,), unit vector of reading (2,), width and height."""

    centre: np.ndarray
    forward: np.ndarray
    width: float
    height: float

    @classmethod
    def of(cls, quad: np.ndarray) -> _Frame:
        width, height = size_of_quad(quad)
        return cls(quad.mean(0).astype(np.float64), direction_of_quad(quad), max(width, 1e-6), max(height, 1e-6))


def _line_links(frames: list[_Frame]) -> np.ndarray:
    """(N, N) bool, symmetric: neighbours in a line, seen from the longer box of the two, whose direction is surer."""
    centres = np.stack([frame.centre for frame in frames])
    forward = np.stack([frame.forward for frame in frames])
    width = np.array([frame.width for frame in frames])
    height = np.array([frame.height for frame in frames])
    down = np.stack([-forward[:, 1], forward[:, 0]], axis=1)
    offset = centres[None] - centres[:, None]
    along = np.abs((offset * forward[:, None]).sum(2))
    across = np.abs((offset * down[:, None]).sum(2))
    lower, higher = np.minimum(height[:, None], height[None]), np.maximum(height[:, None], height[None])
    gap = along - (width[:, None] + width[None]) / 2
    overlap = (height[:, None] + height[None]) / 2 - across
    links = (higher < MAX_HEIGHT_RATIO * lower) & (overlap >= MIN_SIDE_OVERLAP * lower) & (gap <= MAX_WORD_GAP * lower)
    links &= width[:, None] >= width[None]
    return links | links.T


def _block_links(outlines: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """(L, L) bool: lines above each other, close and of like height. outlines: (L, 4) xyxy."""
    low, high = outlines[:, :2], outlines[:, 2:]
    shared = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])  # negative: the gap
    width = np.maximum(high - low, 1e-6)[:, 0]
    lower = np.minimum(heights[:, None], heights[None])
    similar = np.maximum(heights[:, None], heights[None]) < MAX_HEIGHT_RATIO * lower
    above = shared[..., 0] >= MIN_STACK_OVERLAP * np.minimum(width[:, None], width[None])
    links = similar & above & (-shared[..., 1] <= MAX_LINE_GAP * lower)
    # A heading over two columns belongs to neither: it has two lines below that stand beside each other.
    beside = (shared[..., 0] <= 0) & (shared[..., 1] >= MIN_SIDE_OVERLAP * lower)
    spans = (beside.astype(np.float32) @ links.astype(np.float32)) > 0  # BLAS multiplies no integers
    return links & ~(spans | spans.T)


def _group(links: np.ndarray) -> list[list[int]]:
    """Connected components of a graph, (N, N) bool, each sorted, in the order of their first member."""
    groups, seen = [], np.zeros(len(links), bool)
    for start in range(len(links)):
        if seen[start]:
            continue
        members, frontier = [], [start]
        seen[start] = True
        while frontier:
            current = frontier.pop()
            members.append(current)
            found = np.flatnonzero(links[current] & ~seen)
            seen[found] = True
            frontier.extend(found.tolist())
        groups.append(sorted(members))
    return groups


def _along_line(frames: list[_Frame], line: list[int], index: int) -> float:
    """Where a box stands along its line, whose direction is that of its longest box."""
    longest = max(line, key=lambda i: frames[i].width)
    return float(frames[index].centre @ frames[longest].forward)


def _cut(bounds: np.ndarray, indices: list[int]) -> list[int]:
    """Blocks in reading order: columns first where there are any, else rows, else from top to bottom."""
    if len(indices) < 2:
        return indices
    parts = _split(bounds, indices, axis=0)
    if len(parts) > 1 and _are_columns(bounds, parts):
        return [index for part in parts for index in _cut(bounds, part)]
    parts = _split(bounds, indices, axis=1)
    if len(parts) > 1:
        return [index for part in parts for index in _cut(bounds, part)]
    parts = _split(bounds, indices, axis=0)
    if len(parts) > 1:
        return [index for part in parts for index in _cut(bounds, part)]
    return sorted(indices, key=lambda i: (bounds[i][1], bounds[i][0]))


def _split(bounds: np.ndarray, indices: list[int], axis: int) -> list[list[int]]:
    """Groups between which a straight cut across `axis` (0: x, 1: y) meets no block, in order along the axis."""
    ordered = sorted(indices, key=lambda i: bounds[i][axis])
    parts, end = [[ordered[0]]], bounds[ordered[0]][axis + 2]
    for index in ordered[1:]:
        if bounds[index][axis] >= end:
            parts.append([])
        parts[-1].append(index)
        end = max(end, bounds[index][axis + 2])
    return parts


def _are_columns(bounds: np.ndarray, parts: list[list[int]]) -> bool:
    """Whether groups from left to right stand beside each other rather than on steps."""
    spans = [(min(bounds[i][1] for i in part), max(bounds[i][3] for i in part)) for part in parts]
    for (top, bottom), (next_top, next_bottom) in pairwise(spans):
        shared = min(bottom, next_bottom) - max(top, next_top)
        if shared < MIN_COLUMN_OVERLAP * max(bottom - top, next_bottom - next_top):
            return False
    return True


def _bounds(points: np.ndarray) -> np.ndarray:
    """(4,) xyxy around points (P, 2)."""
    return np.concatenate([points.min(0), points.max(0)])
