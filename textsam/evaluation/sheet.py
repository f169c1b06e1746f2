"""The best, median and worst cases of an evaluation as one picture."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from textsam.evaluation.geometry import GeometryScores
from textsam.evaluation.text import SemanticTruth, TextScores
from textsam.files.coco import CocoImage, Region
from textsam.files.export import write_png
from textsam.files.images import read_image
from textsam.files.rle import decode_mask, encode_mask

TILE_WIDTH, TILE_HEIGHT, CAPTION_HEIGHT, HEADING_HEIGHT = 300, 225, 20, 28
PREDICTION_COLOUR = np.array([255, 128, 0])
TARGET_COLOUR = np.array([0, 255, 255])
PROMPT_COLOUR = (255, 0, 255)


@dataclass(frozen=True)
class Case:
    """One prediction beside the truth.

    Attributes:
        iou: in [0, 1].
        caption: where it is from and what was asked.
        path: the picture.
        prediction, target: compressed RLE.
        box: xyxy, or None; point: xy of the first click, or None. Original pixels.
    """

    iou: float
    caption: str
    path: Path
    prediction: dict[str, Any]
    target: dict[str, Any]
    box: tuple[float, ...] | None = None
    point: tuple[float, ...] | None = None


@dataclass
class CaseBook:
    """The best, median and worst of any number of cases, in bounded memory.

    The best and the worst are exact, with one case of an image at most; the median ones are looked for in an even
    subsample of at most `sample_size` cases.
    """

    columns: int = 4
    sample_size: int = 512
    best: list[tuple[float, int, Case]] = field(default_factory=list)
    worst: list[tuple[float, int, Case]] = field(default_factory=list)
    sample: list[Case] = field(default_factory=list)
    seen: int = 0
    stride: int = 1

    def add_image(self, cases: Sequence[Case]) -> None:
        """Takes the cases of one image."""
        if not cases or self.columns == 0:
            return
        top, bottom = max(cases, key=lambda c: c.iou), min(cases, key=lambda c: c.iou)
        insort(self.best, (-top.iou, self.seen, top), key=lambda entry: entry[:2])
        insort(self.worst, (bottom.iou, self.seen, bottom), key=lambda entry: entry[:2])
        del self.best[self.columns :], self.worst[self.columns :]
        for case in cases:
            if self.seen % self.stride == 0:
                self.sample.append(case)
            self.seen += 1
        while len(self.sample) > self.sample_size:
            self.sample = self.sample[::2]
            self.stride *= 2

    def rows(self) -> dict[str, list[Case]]:
        """ "best" (best first), "median" and "worst" (worst first) -> at most `columns` cases."""
        ordered = sorted(self.sample, key=lambda case: case.iou)
        start = max((len(ordered) - self.columns) // 2, 0)
        return {
            "best": [entry[2] for entry in self.best],
            "median": ordered[start : start + self.columns],
            "worst": [entry[2] for entry in self.worst],
        }


def geometry_cases(
    set_name: str, image: CocoImage, regions: Sequence[Region], names: Sequence[str], scores: GeometryScores
) -> dict[str, list[Case]]:
    """Prompt -> cases of one image: the box, the fewest and the most clicks."""
    found: dict[str, list[Case]] = {}
    captions = [f"{name}, {set_name} {image.path.stem}" for name in names]
    shown: list[tuple[str, np.ndarray, list[float]]] = []
    if scores.box_masks is not None:
        shown.append(("box", scores.box_masks, scores.box))
    for count in sorted({min(scores.click_masks), max(scores.click_masks)} if scores.click_masks else ()):
        shown.append((f"{count} click{'s' * (count > 1)}", scores.click_masks[count], scores.click_iou[count]))
    for prompt, masks, ious in shown:
        for i, region in enumerate(regions):
            box = tuple(region.box_xyxy) if prompt == "box" else None
            point = tuple(scores.first_clicks[i]) if scores.first_clicks is not None and box is None else None
            case = Case(ious[i], captions[i], image.path, encode_mask(masks[i]), region.rle, box, point)
            found.setdefault(prompt, []).append(case)
    return found


def text_cases(set_name: str, image: CocoImage, truth: SemanticTruth, scores: TextScores) -> list[Case]:
    """Cases of one image: every name that is in it."""
    cases = []
    for name, intersection, union in zip(scores.names, scores.intersections, scores.unions, strict=True):
        caption = f'"{name}", {set_name} {image.path.stem}'
        prediction, target = encode_mask(scores.union_masks[name]), encode_mask(truth.masks[name])
        cases.append(Case(intersection / max(union, 1), caption, image.path, prediction, target))
    return cases


def draw_sheet(books: dict[str, CaseBook]) -> Image.Image | None:
    """A picture with three rows (best, median, worst) for each prompt; None when there is no case.

    The prediction is orange, the outline of the truth cyan, the prompt magenta.
    """
    blocks = [
        (f"{title}: {row}", cases) for title, book in books.items() for row, cases in book.rows().items() if cases
    ]
    if not blocks:
        return None
    columns = max(len(cases) for _, cases in blocks)
    row_height = HEADING_HEIGHT + TILE_HEIGHT + CAPTION_HEIGHT
    sheet = Image.new("RGB", (columns * TILE_WIDTH, len(blocks) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    heading_font, caption_font = ImageFont.load_default(18), ImageFont.load_default(12)
    for row, (heading, cases) in enumerate(blocks):
        top = row * row_height
        draw.text((6, top + 3), heading, fill="black", font=heading_font)
        for column, case in enumerate(cases):
            left = column * TILE_WIDTH
            sheet.paste(draw_case(case), (left, top + HEADING_HEIGHT))
            caption = f"{case.iou:.2f}  {case.caption}"
            draw.text((left + 4, top + HEADING_HEIGHT + TILE_HEIGHT + 2), caption[:48], fill="black", font=caption_font)
    return sheet


def write_sheet(books: dict[str, CaseBook], path: Path) -> None:
    """`draw_sheet` as a PNG file, whole or not at all; no file, not even a former run's, when there is no case."""
    sheet = draw_sheet(books)
    if sheet is None:
        path.unlink(missing_ok=True)
    else:
        write_png(path, np.asarray(sheet))


def draw_case(case: Case) -> Image.Image:
    """A tile of TILE_WIDTH x TILE_HEIGHT px: the picture around the object and its prediction."""
    picture = read_image(case.path).copy()
    prediction = decode_mask(case.prediction)
    target = decode_mask(case.target)
    x, y, width, height = _window(prediction | target)
    thickness = max(1, round(max(width, height) / 200))
    outline = target & ~binary_erosion(target, iterations=thickness)
    picture[prediction] = (0.5 * picture[prediction] + 0.5 * PREDICTION_COLOUR).astype(np.uint8)
    picture[outline] = TARGET_COLOUR
    scale = min((TILE_WIDTH - 4) / width, TILE_HEIGHT / height)
    view = Image.fromarray(picture[y : y + height, x : x + width])
    view = view.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(view)
    if case.box is not None:
        draw.rectangle([(v - o) * scale for v, o in zip(case.box, (x, y, x, y), strict=True)], outline=PROMPT_COLOUR)
    if case.point is not None:
        centre_x, centre_y = (case.point[0] + 0.5 - x) * scale, (case.point[1] + 0.5 - y) * scale
        draw.ellipse([centre_x - 5, centre_y - 5, centre_x + 5, centre_y + 5], fill=PROMPT_COLOUR, outline="white")
    tile = Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT), "white")
    tile.paste(view, ((TILE_WIDTH - view.width) // 2, (TILE_HEIGHT - view.height) // 2))
    return tile


def _window(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x, y, width, height) around a mask with a margin of a quarter of its size, at least 64 px, inside the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, mask.shape[1], mask.shape[0]
    spans = []
    for positions, size in ((columns, mask.shape[1]), (rows, mask.shape[0])):
        margin = max((positions[-1] - positions[0]) // 4, (64 - (positions[-1] - positions[0])) // 2, 4)
        start = max(int(positions[0] - margin), 0)
        spans.append((start, min(int(positions[-1] + margin + 1), size) - start))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]
