"""A block of text drawn on a transparent layer: several lines of words, filled, outlined, shadowed, glowing.

The layer knows which pixels are glyphs and where each word stands; `train.synthetic_text` lays it over a photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[float, float, float]  # RGB in 0..255
Box = tuple[float, float, float, float]  # x1 y1 x2 y2 px


@dataclass(frozen=True)
class Style:
    """How a block is written. Lengths are shares of the font size."""

    fills: tuple[Colour, ...]  # one for all words, or each word takes one
    gradient: Colour | None = None  # what the fill becomes at the bottom of a line
    outline: float = 0.0
    outline_colour: Colour = (0, 0, 0)
    second_outline: float = 0.0  # around the first
    second_colour: Colour = (255, 255, 255)
    shadow: tuple[float, float] | None = None  # offset to the right and down
    shadow_blur: float = 0.0
    shadow_colour: Colour = (0, 0, 0)
    glow: float = 0.0  # radius
    glow_colour: Colour = (255, 255, 255)
    panel: Colour | None = None
    panel_opacity: float = 1.0
    panel_margin: float = 0.4
    line_height: float = 1.3
    spacing: float = 0.0  # between letters
    align: str = "left"


@dataclass(frozen=True)
class WordBox:
    """A word on its layer: its ink's box in px, and which line it stands in."""

    text: str
    line: int
    box: Box


@dataclass(frozen=True)
class Layer:
    """A drawn block."""

    colour: np.ndarray  # (H, W, 3) float32 in 0..255, multiplied by alpha
    alpha: np.ndarray  # (H, W) float32 in [0, 1]
    glyphs: np.ndarray  # (H, W) float32 in [0, 1], the share of each pixel that is the face of a glyph
    words: tuple[WordBox, ...]


def draw_layer(
    lines: list[list[str]], font: ImageFont.FreeTypeFont, style: Style, rng: np.random.Generator
) -> Layer | None:
    """Draw lines of words; None when a word leaves no ink (a font without the glyph)."""
    size = font.size
    margin = int(np.ceil(size * (0.35 + style.outline + style.second_outline + style.glow + style.panel_margin)))
    placed, width, height = _place(lines, font, style, margin)
    ink = np.zeros((height, width), np.uint8)
    fill = np.zeros((height, width, 3), np.float32)
    words = []
    for text, line, letters, end in placed:
        drawn = _draw_word(letters, end, font, (width, height))
        if drawn is None:
            return None
        mask, box = drawn
        words.append(WordBox(text, line, box))
        colour = style.fills[int(rng.integers(len(style.fills)))]
        x1, y1, x2, y2 = box
        fill[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = colour
        np.maximum(ink[y1:y2, x1:x2], mask, out=ink[y1:y2, x1:x2])
    glyphs = ink.astype(np.float32) / 255
    if style.gradient is not None:
        _apply_gradient(fill, words, style.gradient)
    return Layer(*_compose(glyphs, fill, style, size), glyphs, tuple(words))


Letters = list[tuple[str, float, float]]
Placed = list[tuple[str, int, Letters, float]]


def _draw_word(
    letters: Letters, end: float, font: ImageFont.FreeTypeFont, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int, int, int]] | None:
    """A word's ink, (h, w) uint8, and its box (x1, y1, x2, y2) on a layer of `size`; None when it leaves no ink.

    Drawn on a canvas around the word, not on the whole layer: a page of print has a hundred words. The canvas starts
    at a whole pixel, so that the letters fall on the same fractions of pixels.
    """
    reach = int(np.ceil(font.size))
    _, x, y = letters[0]
    left, top = max(int(x) - 2 * reach, 0), max(int(y) - reach, 0)
    right, bottom = min(int(end) + 2 * reach, size[0]), min(int(y) + 3 * reach, size[1])
    canvas = Image.new("L", (right - left, bottom - top))
    pen = ImageDraw.Draw(canvas)
    for letter, x, y in letters:
        pen.text((x - left, y - top), letter, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    x1, y1, x2, y2 = box
    return np.asarray(canvas)[y1:y2, x1:x2], (x1 + left, y1 + top, x2 + left, y2 + top)


def _place(lines: list[list[str]], font: ImageFont.FreeTypeFont, style: Style, margin: int) -> tuple[Placed, int, int]:
    """Where letters stand: (word, line, [(letters, x, y)], x at the end), and the layer's width and height."""
    size, gap = font.size, font.getlength(" ") + style.spacing * font.size
    lengths, widths = [], []
    for line in lines:
        lengths.append([font.getlength(word) + style.spacing * size * len(word) for word in line])
        widths.append(sum(lengths[-1]) + gap * (len(line) - 1))
    inner = max(widths)
    placed: Placed = []
    for number, line in enumerate(lines):
        share = {"left": 0.0, "centre": 0.5, "right": 1.0}[style.align]
        x = margin + share * (inner - widths[number])
        y = margin + number * style.line_height * size
        for word, length in zip(line, lengths[number], strict=True):
            if style.spacing:
                letters = []
                for letter in word:
                    letters.append((letter, x, y))
                    x += font.getlength(letter) + style.spacing * size
            else:
                letters = [(word, x, y)]
                x += length
            placed.append((word, number, letters, x))
            x += gap
    height = int(2 * margin + (style.line_height * (len(lines) - 1) + 1.35) * size)
    return placed, int(np.ceil(inner)) + 2 * margin, height


def _apply_gradient(fill: np.ndarray, words: list[WordBox], bottom: Colour) -> None:
    for line in {word.line for word in words}:
        boxes = [word.box for word in words if word.line == line]
        y1, y2 = min(box[1] for box in boxes), max(box[3] for box in boxes)
        x1, x2 = min(box[0] for box in boxes), max(box[2] for box in boxes)
        share = np.linspace(0, 1, max(int(y2 - y1), 1), dtype=np.float32)[:, None, None]
        part = fill[int(y1) : int(y2), int(x1) : int(x2)]
        part += share[: len(part)] * (np.asarray(bottom, np.float32) - part)


def _compose(glyphs: np.ndarray, fill: np.ndarray, style: Style, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Panel, glow, shadow, outlines, glyphs, from the bottom to the top: colour times alpha, and alpha."""
    colour = np.zeros((*glyphs.shape, 3), np.float32)
    alpha = np.zeros(glyphs.shape, np.float32)

    def add(mask: np.ndarray, paint: np.ndarray | Colour) -> None:
        at = extent(mask)  # margins take most of a layer
        part, paint = mask[at], np.asarray(paint, np.float32)
        above = paint[at] * cv2.merge([part] * 3) if paint.ndim == 3 else cv2.merge([part * tone for tone in paint])
        rest = 1 - part
        colour[at] *= cv2.merge([rest] * 3)
        colour[at] += above
        alpha[at] *= rest
        alpha[at] += part

    if style.panel is not None:
        ys, xs = np.nonzero(glyphs)
        reach = int(size * style.panel_margin)
        panel = np.zeros(glyphs.shape, np.float32)
        panel[max(ys.min() - reach, 0) : ys.max() + reach + 1, max(xs.min() - reach, 0) : xs.max() + reach + 1] = 1
        add(panel * style.panel_opacity, style.panel)
    inner = grow(glyphs, style.outline * size) if style.outline else glyphs
    outer = grow(glyphs, (style.outline + style.second_outline) * size) if style.second_outline else inner
    if style.glow:
        blurred = cv2.GaussianBlur(grow(outer, style.glow * size / 3), (0, 0), max(style.glow * size / 2, 0.8))
        add(np.clip(1.4 * blurred, 0, 1), style.glow_colour)
    if style.shadow is not None:
        moved = np.float32([[1, 0, style.shadow[0] * size], [0, 1, style.shadow[1] * size]])
        shadow = cv2.warpAffine(outer, moved, outer.shape[::-1])
        if style.shadow_blur:
            shadow = cv2.GaussianBlur(shadow, (0, 0), max(style.shadow_blur * size, 0.5))
        add(shadow * 0.8, style.shadow_colour)
    if style.second_outline:
        add(outer, style.second_colour)
    if style.outline:
        add(inner, style.outline_colour)
    add(glyphs, fill)
    return colour, alpha


def extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a mask (H, W) that hold all that is not zero."""
    rows = np.flatnonzero(mask.any(1))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def grow(mask: np.ndarray, radius: float) -> np.ndarray:
    """A soft mask, wider by `radius` px all around."""
    if radius < 0.3:
        return mask
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return cv2.dilate(mask, (x**2 + y**2 <= (radius + 0.3) ** 2).astype(np.uint8))
