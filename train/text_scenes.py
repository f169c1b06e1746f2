"""Text over a photo, with the truth about it: glyph pixels, and a strip around every word, line and block.

A strip is a polygon of two rows of K points, along the upper and along the lower edge in reading direction: with K = 2
a quadrilateral (top left, top right; bottom left, bottom right), with more the outline of curved text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

import cv2
import numpy as np
from PIL import Image

from train.fonts import faces_for
from train.text_layers import Box, Layer, WordBox, draw_layer, extent
from train.text_looks import KINDS, SCRIPTS, Look, draw_look
from train.text_words import draw_word

STRIP_POINTS = 9  # along a curved edge
MIN_LEGIBLE_PX = 6.0  # short side of a word


@dataclass(frozen=True)
class Written:
    """A word, a line or a block in a scene."""

    text: str
    script: str
    strip: np.ndarray  # (2, K, 2) float64 xy px, edges of pixels at whole numbers
    line: int  # number in the scene; -1 of a block
    block: int  # number in the scene
    legible: bool = True

    @property
    def polygon(self) -> np.ndarray:
        """(2 K, 2), clockwise from the top left."""
        return np.concatenate([self.strip[0], self.strip[1][::-1]])


@dataclass
class Scene:
    """A picture of H x W px and what is written in it."""

    pixels: np.ndarray  # (H, W, 3) uint8
    strokes: np.ndarray  # (H, W) bool, faces of glyphs, without outline, shadow and glow
    words: list[Written] = field(default_factory=list)
    lines: list[Written] = field(default_factory=list)
    blocks: list[Written] = field(default_factory=list)


@dataclass(frozen=True)
class SceneOptions:
    """
    Args:
        size: (width, height) px.
        blocks: most blocks in a scene.
        textless: share of scenes without text.
        held_out: fonts and words of validation (True) or of training (False).
        scripts: shares of the scripts; one alone to measure it.
        scale: of the font sizes.
        cut: share of the blocks that may stand across the picture's border, as in tiles.
    """

    size: tuple[int, int] = (448, 448)
    blocks: int = 4
    textless: float = 0.2
    held_out: bool = False
    scripts: tuple[tuple[str, float], ...] = tuple(SCRIPTS.items())
    scale: float = 1.0
    cut: float = 0.35


def draw_scene(photo: np.ndarray, options: SceneOptions, rng: np.random.Generator) -> Scene:
    """Write on a photo.

    Args:
        photo: (H, W, 3) uint8 of `options.size`.
    """
    canvas = photo.astype(np.float32)
    scene = Scene(photo, np.zeros(photo.shape[:2], bool))
    free = np.ones(photo.shape[:2], bool)
    if rng.random() >= options.textless:
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        for _ in range(int(rng.integers(1, options.blocks + 1))):
            if rng.random() < 0.3:
                kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
            _add_block(scene, canvas, free, kind, options, rng)
    scene.pixels = degrade(np.clip(canvas, 0, 255).astype(np.uint8), rng)
    return scene


def _add_block(
    scene: Scene, canvas: np.ndarray, free: np.ndarray, kind: str, options: SceneOptions, rng: np.random.Generator
) -> None:
    """Draw a block where there is room; leave it out where there is none."""
    height, width = free.shape
    where = (int(rng.integers(height)), int(rng.integers(width)))
    near = canvas[max(where[0] - 40, 0) : where[0] + 40, max(where[1] - 60, 0) : where[1] + 60]
    look = draw_look(rng, kind, tuple(near.mean((0, 1))), options.scale)
    written = _draw_text(look, options, rng, 0.92 * width)
    if written is None:
        return
    layer, script = written
    seen = layer.alpha > 0.02
    whole, seen = np.count_nonzero(seen), seen.astype(np.float32)
    for _ in range(6):
        warp = Warp.draw(layer, look, (width, height), options.cut, rng)
        place = warp.apply(seen, (width, height)) > 0.01
        inside = np.count_nonzero(place) / max(whole * warp.area_scale, 1)
        if inside > 0.5 and not (place & ~free).any():
            break
    else:
        return
    alpha = warp.apply(layer.alpha, (width, height))
    at = extent(alpha)
    canvas[at] *= cv2.merge([1 - alpha[at]] * 3)
    canvas[at] += warp.apply(layer.colour, (width, height))[at]
    scene.strokes |= warp.apply(layer.glyphs, (width, height)) > 0.5
    reach = np.ones((9, 9), np.uint8)
    free &= cv2.dilate(place.astype(np.uint8), reach) == 0
    _describe(scene, layer, script, warp)


def _draw_text(
    look: Look, options: SceneOptions, rng: np.random.Generator, max_width: float
) -> tuple[Layer, str] | None:
    """Words of one script in one face, as many as fit."""
    names, shares = zip(*options.scripts, strict=True)
    script = str(rng.choice(names, p=np.asarray(shares) / sum(shares)))
    faces = faces_for("latin" if script == "digits" else script, options.held_out)
    families = sorted({face.family for face in faces})
    family = families[int(rng.integers(len(families)))]
    faces = [face for face in faces if face.family == family]
    font = faces[int(rng.integers(len(faces)))].at(max(8, round(look.font_size)))
    lines: list[list[str]] = []
    for _ in range(look.max_lines):
        line: list[str] = []
        for _ in range(look.words_per_line):
            mixed = "digits" if rng.random() < 0.08 else script
            word = draw_word(rng, mixed, options.held_out)
            room = font.getlength(" ".join([*line, word])) + look.style.spacing * font.size * len("".join(line) + word)
            if room > max_width and (line or rng.random() < 0.7):
                break
            line.append(word)
        if line:
            lines.append(line)
    layer = draw_layer(lines, font, look.style, rng) if lines else None
    return None if layer is None or max(layer.alpha.shape) > 4000 else (layer, script)


@dataclass(frozen=True)
class Warp:
    """From a layer to the scene: lines sag by a parabola, then a homography. Works on pixel indices."""

    matrix: np.ndarray  # (3, 3)
    sag: float  # px, of the middle
    width: int  # of the layer
    area_scale: float = 1.0
    _maps: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def draw(cls, layer: Layer, look: Look, size: tuple[int, int], cut: float, rng: np.random.Generator) -> Warp:
        height, width = layer.alpha.shape
        angle = np.deg2rad(look.rotation)
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
        turned = (corners - corners.mean(0)) @ np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        turned += rng.uniform(-1, 1, (4, 2)) * look.perspective * np.array([min(width, 3 * height), height])
        low, high = turned.min(0), turned.max(0)
        spare = np.asarray(size) - (high - low)
        slack = 0.45 * (high - low) if rng.random() < cut else np.zeros(2)
        first, last = np.minimum(-slack, spare + slack), np.maximum(-slack, spare + slack)
        turned += rng.uniform(first, last) - low
        matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), turned.astype(np.float32))
        area = cv2.contourArea(turned.astype(np.float32)) / max(width * height, 1)
        return cls(matrix, look.curve * look.font_size, width, area)

    def _bend(self, x: np.ndarray) -> np.ndarray:
        return self.sag * (1 - (2 * x / self.width - 1) ** 2)

    def apply(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(H, W) or (H, W, 3) float32 of the layer -> the scene, zero outside."""
        if not self.sag:
            return cv2.warpPerspective(image, self.matrix, size, flags=cv2.INTER_LINEAR)
        if size not in self._maps:  # the same for the four images of a layer
            y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
            u, v = _project(np.linalg.inv(self.matrix), x, y)
            self._maps[size] = u.astype(np.float32), (v - self._bend(u)).astype(np.float32)
        return cv2.remap(image, *self._maps[size], cv2.INTER_LINEAR)

    def strips(self, boxes: Sequence[Box]) -> np.ndarray:
        """N boxes of the layer -> (N, 2, K, 2) in the scene."""
        x1, y1, x2, y2 = np.asarray(boxes, np.float64).T
        x = np.linspace(x1, x2, STRIP_POINTS if self.sag else 2, axis=-1)[:, None] - 0.5
        edges = np.stack([y1, y2], -1)[..., None]
        return np.stack(_project(self.matrix, x, edges - 0.5 + self._bend(x)), -1) + 0.5


def _project(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    depth = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
    return (
        (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]) / depth,
        (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]) / depth,
    )


def _describe(scene: Scene, layer: Layer, script: str, warp: Warp) -> None:
    """Append the words, lines and block of a layer; what lies outside the picture altogether is left out."""
    height, width = scene.strokes.shape
    block, first_line = len(scene.blocks), 1 + max((line.line for line in scene.lines), default=-1)
    strips = warp.strips([word.box for word in layer.words])
    visible, legible = _visible_shares(strips, width, height) > 0.3, short_side(strips) >= MIN_LEGIBLE_PX
    rows: dict[int, list[WordBox]] = {}
    for i in np.flatnonzero(visible):
        word = layer.words[i]
        rows.setdefault(word.line, []).append(word)
        scene.words.append(Written(word.text, script, strips[i], first_line + word.line, block, bool(legible[i])))
    if not rows:
        return
    boxes = {number: _union([word.box for word in row]) for number, row in rows.items()}
    texts = {number: " ".join(word.text for word in row) for number, row in rows.items()}
    *line_strips, strip = warp.strips([*boxes.values(), _union(list(boxes.values()))])
    for number, line_strip in zip(rows, line_strips, strict=True):
        enough = bool(short_side(line_strip) >= MIN_LEGIBLE_PX)
        scene.lines.append(Written(texts[number], script, line_strip, first_line + number, block, enough))
    scene.blocks.append(Written("\n".join(texts.values()), script, strip, -1, block))


def _union(boxes: Sequence[Box]) -> Box:
    every = np.asarray(boxes)
    return (*every[:, :2].min(0), *every[:, 2:].max(0))


def _visible_shares(strips: np.ndarray, width: int, height: int) -> np.ndarray:
    """Shares (N,) of the strips' (N, 2, K, 2) boxes that lie in the picture; 0 of what is no larger than a pixel."""
    polygons = np.concatenate([strips[:, 0], strips[:, 1, ::-1]], axis=1).astype(np.float32)
    low, high = polygons.min(1), polygons.max(1)
    seen = np.clip(np.minimum(high, [width, height]) - np.maximum(low, 0), 0, None).prod(-1)
    large = np.array([abs(cv2.contourArea(polygon)) > 1 for polygon in polygons])
    return np.where(large, seen / np.maximum((high - low).prod(-1), 1e-6), 0)


def short_side(strips: np.ndarray) -> np.ndarray:
    """The shorter of the mean height and the mean length of strips (..., 2, K, 2): (...) px."""
    tall = np.linalg.norm(strips[..., 1, :, :] - strips[..., 0, :, :], axis=-1).mean(-1)
    long = np.linalg.norm(np.diff(strips.mean(-3), axis=-2), axis=-1).sum(-1)
    return np.minimum(tall, long)


def degrade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur, a smaller size and back, noise, and compression, each at times."""
    height, width = pixels.shape[:2]
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.15:
        share = float(rng.uniform(0.6, 0.95))
        small = cv2.resize(pixels, (int(width * share), int(height * share)), interpolation=cv2.INTER_AREA)
        pixels = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.2:
        noise = rng.normal(0, rng.uniform(2, 9), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(35, 95)))
        pixels = np.asarray(Image.open(file))
    return pixels
