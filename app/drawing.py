"""The photo with its masks and prompts, drawn by supervision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import supervision as sv
from PIL import Image

from app.scene import Found, Prompts, detections_of
from textsam.files.images import RgbImage
from textsam.prompting.detections import UNNAMED_CLASS

PALETTE = sv.ColorPalette.from_hex(
    ["#3b82f6", "#f97316", "#14b8a6", "#e11d74", "#eab308", "#8b5cf6", "#22c55e", "#ef4444", "#06b6d4", "#a16207"]
)
MARKS = sv.ColorPalette.from_hex(["#16a34a", "#dc2626", "#facc15"])  # on the object, beside it, boxes and brush
POSITIVE, NEGATIVE, AREA = range(3)
THUMBNAIL_SIDE = 360


def hex_colour(row: Found) -> str:
    """The colour of a mask in the list."""
    return PALETTE.by_idx(row.colour).as_hex()


def draw_masks(photo: RgbImage, rows: Sequence[Found], chosen: int | None = None, labels: bool = True) -> RgbImage:
    """Masks tinted and outlined in their colours, and named; the chosen one stands out.

    Args:
        photo: (H, W, 3) uint8 RGB, not changed. chosen: id of a row.
    """
    if not rows:
        return photo.copy()
    canvas = Image.fromarray(photo)  # with arrays supervision would take red for blue
    size_wh = (photo.shape[1], photo.shape[0])
    line = max(2, sv.calculate_optimal_line_thickness(size_wh))
    groups = [(rows, 0.45, line)]
    if any(row.id == chosen for row in rows):
        others = [row for row in rows if row.id != chosen]
        groups = [(others, 0.15, max(1, line // 2)), ([row for row in rows if row.id == chosen], 0.6, line + 1)]
    for group, opacity, thickness in groups:
        if not group:
            continue
        detections, lookup = detections_of(group, photo.shape[:2]), np.array([row.colour for row in group])
        tint = sv.MaskAnnotator(color=PALETTE, opacity=opacity)
        canvas = tint.annotate(canvas, detections, custom_color_lookup=lookup)
        outline = sv.PolygonAnnotator(color=PALETTE, thickness=thickness)
        canvas = outline.annotate(canvas, detections, custom_color_lookup=lookup)
    named = [row for row in rows if row.name != UNNAMED_CLASS]
    if not labels or not named or min(size_wh) < 64:
        return np.asarray(canvas)
    annotator = sv.RichLabelAnnotator(
        color=PALETTE, font_size=max(11, round(min(size_wh) / 38)), text_padding=max(3, min(size_wh) // 150),
        border_radius=4, smart_position=True,
    )  # fmt: skip
    lookup = np.array([row.colour for row in named])
    texts = [row.name for row in named]
    where = detections_of(named, photo.shape[:2])
    return np.asarray(annotator.annotate(canvas, where, labels=texts, custom_color_lookup=lookup))


def draw_prompts(picture: RgbImage, prompts: Prompts) -> RgbImage:
    """Clicks green and red, box and brush yellow, on a copy."""
    canvas = Image.fromarray(picture)
    width, height = canvas.size
    radius = max(4, round(min(width, height) / 75))
    if prompts.brush is not None:
        brush = Found(0, "", prompts.brush, 1.0, AREA)
        line = sv.PolygonAnnotator(color=MARKS, thickness=max(2, radius // 3))
        canvas = line.annotate(canvas, detections_of([brush], (height, width)), custom_color_lookup=np.array([AREA]))
    if prompts.box is not None:
        box = sv.BoxAnnotator(color=MARKS, thickness=max(2, radius // 3))
        where = sv.Detections(xyxy=np.array([prompts.box], dtype=np.float32))
        canvas = box.annotate(canvas, where, custom_color_lookup=np.array([AREA]))
    dots = [(point.x, point.y, POSITIVE if point.positive else NEGATIVE) for point in prompts.points]
    if prompts.corner is not None:
        dots.append((*prompts.corner, AREA))
    if dots:
        places = np.array([(x, y, x, y) for x, y, _ in dots], dtype=np.float32)
        dot = sv.DotAnnotator(
            color=MARKS, radius=radius, position=sv.Position.CENTER, outline_thickness=max(2, radius // 3),
            outline_color=sv.Color.WHITE,
        )  # fmt: skip
        colours = np.array([colour for _, _, colour in dots])
        canvas = dot.annotate(canvas, sv.Detections(xyxy=places), custom_color_lookup=colours)
    return np.asarray(canvas)


def draw_thumbnail(photo: RgbImage, candidate: Found) -> RgbImage:
    """A small picture of the photo with one mask."""
    drawn = Image.fromarray(draw_masks(photo, [candidate], labels=False))
    drawn.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return np.asarray(drawn)
