"""The photo with its masks and prompts, drawn by supervision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import supervision as sv
from PIL import Image
from pycocotools import mask as coco_mask

from app.scene import Found, Prompts, detections_of
from textsam.files.images import RgbImage
from textsam.files.rle import decode_mask
from textsam.prompting.detections import UNNAMED_CLASS

PALETTE = sv.ColorPalette.from_hex(
    ["#3b82f6", "#f97316", "#14b8a6", "#e11d74", "#eab308", "#8b5cf6", "#22c55e", "#ef4444", "#06b6d4", "#a16207"]
)
MARKS = sv.ColorPalette.from_hex(["#16a34a", "#dc2626", "#facc15"])  # on the object, beside it, boxes and brush
POSITIVE, NEGATIVE, AREA = range(3)
THUMBNAIL_SIDE = 360
VIEW_SIDE = 1280  # px, at least, of the longer side of what is shown


def hex_colour(row: Found) -> str:
    """The colour of a mask in the list."""
    return PALETTE.by_idx(row.colour).as_hex()


def view_size(photo: RgbImage) -> tuple[int, int]:
    """Width and height of what the page shows: small photos are enlarged here, because Gradio's clicks are only right
    on pictures that the browser does not enlarge."""
    height, width = photo.shape[:2]
    scale = max(1.0, VIEW_SIDE / max(height, width))
    return round(width * scale), round(height * scale)


def draw_view(photo: RgbImage, rows: Sequence[Found], chosen: int | None, prompts: Prompts) -> RgbImage:
    """The photo in `view_size` with its masks, the chosen one standing out, their names, and the prompts."""
    size_wh = view_size(photo)
    canvas = _tint(photo, rows, chosen, size_wh)
    if canvas.size != size_wh:
        canvas = canvas.resize(size_wh, Image.Resampling.BICUBIC)
    scale = size_wh[0] / photo.shape[1]
    return np.asarray(_mark(_name(canvas, rows, scale), prompts, scale))


def draw_masks(photo: RgbImage, rows: Sequence[Found], names: bool = True) -> RgbImage:
    """The photo in its own size with its masks, and their names: (H, W, 3) uint8 RGB."""
    canvas = _tint(photo, rows, None, (photo.shape[1], photo.shape[0]))
    return np.asarray(_name(canvas, rows, 1.0) if names else canvas)


def _tint(photo: RgbImage, rows: Sequence[Found], chosen: int | None, shown_wh: tuple[int, int]) -> Image.Image:
    """In the photo's own size, with lines as thick as they should be when it is shown in `shown_wh`."""
    canvas = Image.fromarray(photo)  # of arrays supervision would take red for blue
    line = max(1, round(sv.calculate_optimal_line_thickness(shown_wh) * photo.shape[1] / shown_wh[0]))
    groups = [(list(rows), 0.45, line)]
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
    return canvas


def _name(canvas: Image.Image, rows: Sequence[Found], scale: float) -> Image.Image:
    """Names on a picture that is `scale` times as large as the masks' photo; masks without a name get none."""
    named = [row for row in rows if row.name != UNNAMED_CLASS]
    side = min(canvas.size)
    if not named or side < 64:
        return canvas
    annotator = sv.RichLabelAnnotator(
        color=PALETTE, font_size=max(11, round(side / 38)), text_padding=max(3, side // 150), border_radius=4,
        smart_position=True,
    )  # fmt: skip
    boxes = np.array([coco_mask.toBbox(row.rle) for row in named], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    lookup = np.array([row.colour for row in named])
    where = sv.Detections(xyxy=boxes * scale)
    return annotator.annotate(canvas, where, labels=[row.name for row in named], custom_color_lookup=lookup)


def _mark(canvas: Image.Image, prompts: Prompts, scale: float) -> Image.Image:
    """Clicks green and red, box and brush yellow."""
    radius = max(4, round(min(canvas.size) / 80))
    yellow = np.array([AREA])
    if prompts.brush is not None:
        mask = Image.fromarray(decode_mask(prompts.brush)).resize(canvas.size, Image.Resampling.NEAREST)
        line = sv.PolygonAnnotator(color=MARKS, thickness=max(2, radius // 3))
        whole = np.array([[0, 0, *canvas.size]], dtype=np.float32)
        canvas = line.annotate(canvas, sv.Detections(whole, mask=np.asarray(mask)[None]), custom_color_lookup=yellow)
    if prompts.box is not None:
        box = sv.BoxAnnotator(color=MARKS, thickness=max(2, radius // 3))
        where = sv.Detections(xyxy=np.array([prompts.box], dtype=np.float32) * scale)
        canvas = box.annotate(canvas, where, custom_color_lookup=yellow)
    dots = [(point.x, point.y, POSITIVE if point.positive else NEGATIVE) for point in prompts.points]
    if prompts.corner is not None:
        dots.append((*prompts.corner, AREA))
    if dots:
        places = np.array([(x, y, x, y) for x, y, _ in dots], dtype=np.float32) * scale
        dot = sv.DotAnnotator(
            color=MARKS, radius=radius, position=sv.Position.CENTER, outline_thickness=max(2, radius // 3),
            outline_color=sv.Color.WHITE,
        )  # fmt: skip
        colours = np.array([colour for _, _, colour in dots])
        canvas = dot.annotate(canvas, sv.Detections(xyxy=places), custom_color_lookup=colours)
    return canvas


def draw_thumbnail(photo: RgbImage, candidate: Found) -> RgbImage:
    """A small picture of the photo with one mask."""
    drawn = Image.fromarray(draw_masks(photo, [candidate], names=False))
    drawn.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return np.asarray(drawn)
