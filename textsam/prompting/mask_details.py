"""Masks on the photo's own pixels, with their details where the model has a part for them.

A mask's crop is a square around it and the prompt, some wider; what lies outside of the crop is outside of the mask.
The encoder looks at the crop, the decoder is asked again there, and `MaskDetail` draws on from both of its answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from textsam.modeling.mask_detail import draw_boxes, draw_clicks
from textsam.modeling.structures import ImageEmbeddings
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.prompts import GeometricPrompts
from textsam.prompting.transforms import LOW_RES_STRIDE, ImageGeometry, masks_at_original_size

DETAIL_SIDE, CLICK_SIDE = 192, 128  # px of a crop; smaller for clicks alone, where somebody waits
MARGIN_PX, LEAST_PX = 8, 24  # a crop's side: the mask's longer side, grown, plus, and at least
BOX_GROWTH, MASK_GROWTH = 1.3, 1.5  # the thing lies inside of a box; a mask may lack half of it
CROPS_AT_A_TIME = 16


@dataclass(frozen=True)
class Asked:
    """The prompts of N masks, in the photo's own pixels.

    Attributes:
        boxes: (N, 4) xyxy, or None. points: (N, K, 2) xy, or None. labels: (N, K): 1 foreground, 0 background,
            -1 padding.
        texts: (N, D) CLIP embeddings of unit length, zeros where there was none; or None.
    """

    boxes: np.ndarray | None = None
    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    texts: Tensor | None = None

    @classmethod
    def of(
        cls, prompts: GeometricPrompts, geometry: ImageGeometry, rows: np.ndarray, texts: Tensor | None = None
    ) -> Asked:
        """The prompts of these rows, from the encoder's input back to the photo."""
        boxes, points, labels = prompts.boxes, prompts.point_coords, prompts.point_labels
        return cls(
            None if boxes is None else geometry.boxes_to_original(boxes[rows]),
            None if points is None else geometry.points_to_original(points[rows]),
            None if labels is None else labels[rows],
            texts,
        )

    @property
    def cells(self) -> int:
        """Along a side of the crops."""
        clicks_alone = self.points is not None and self.boxes is None and self.texts is None
        return CLICK_SIDE if clicks_alone else DETAIL_SIDE

    def row(self, row: int) -> Asked:
        """The prompt of one mask, as N = 1."""
        rows = slice(row, row + 1)
        boxes, points, labels = (
            None if each is None else each[rows] for each in (self.boxes, self.points, self.labels)
        )
        return Asked(boxes, points, labels, None if self.texts is None else self.texts[rows])


@dataclass(frozen=True)
class Crop:
    """A square of the photo, in its pixels; parts of it may lie outside of the photo.

    Attributes:
        left, top, side: px of the photo. cells: S, along a side of what is cut.
    """

    left: float
    top: float
    side: float
    cells: int = DETAIL_SIDE

    @classmethod
    def around(cls, extent: np.ndarray, asked: Asked | None = None, cells: int = DETAIL_SIDE) -> Crop:
        """Around the box of a prompt (N = 1), else around a mask's extent (4,) xyxy and the foreground clicks."""
        corners, growth = extent.reshape(2, 2), MASK_GROWTH
        if asked is not None and asked.boxes is not None:
            corners, growth = asked.boxes[0].reshape(2, 2), BOX_GROWTH
        elif asked is not None and asked.points is not None and asked.labels is not None:
            corners = np.concatenate([corners, asked.points[asked.labels == 1]])
        low, high = corners.min(axis=0), corners.max(axis=0)
        side = max(growth * float((high - low).max()) + MARGIN_PX, LEAST_PX)
        left, top = ((low + high - side) / 2).tolist()
        return cls(left, top, side, cells)

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y in the photo, (S,) each, of the crop's columns and rows."""
        offsets = (np.arange(self.cells) + 0.5) / self.cells * self.side
        return self.left + offsets, self.top + offsets

    def of_picture(self, picture: Image.Image) -> np.ndarray:
        """(S, S) or (S, S, 3) uint8, smoothed when it shrinks; black outside of the photo."""
        scale, size = self.side / self.cells, (self.cells, self.cells)
        if scale <= 1:
            matrix = (scale, 0, self.left, 0, scale, self.top)
            return np.asarray(picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))
        # Only the cells that see the photo: of a panorama's square they are few, and the rest would fill the memory.
        spans = []
        for start, length in ((self.left, picture.width), (self.top, picture.height)):
            ends = np.floor(-start / scale) - 2, np.ceil((length - start) / scale) + 2
            first, last = np.clip(ends, 0, self.cells).astype(int).tolist()
            low, high = start + first * scale, start + last * scale
            spans.append((first, last - first, low, high, int(np.floor(low)), int(np.ceil(high))))
        (column, columns, left, right, x1, x2), (row, rows, top, bottom, y1, y2) = spans
        cut = Image.new(picture.mode, size)
        if columns and rows:
            part = Image.new(picture.mode, (x2 - x1, y2 - y1))  # unlike `crop`, which takes a large one for an attack
            part.paste(picture, (-x1, -y1))
            box = (left - x1, top - y1, right - x1, bottom - y1)
            cut.paste(part.resize((columns, rows), Image.Resampling.BILINEAR, box=box), (column, row))
        return np.asarray(cut)

    def of_logits(self, logits: Tensor, geometry: ImageGeometry) -> Tensor:
        """(4h, 4w) low-resolution logits -> (S, S)."""
        (height, width), (resized_h, resized_w) = geometry.original_size_hw, geometry.resized_size_hw
        x, y = self.centres()
        cells_x = x * (resized_w / width / LOW_RES_STRIDE)
        cells_y = y * (resized_h / height / LOW_RES_STRIDE)
        return _sample(logits, cells_y, cells_x)

    def of_prompt(self, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """A prompt (N = 1) in units of the crop's side, as `draw_boxes` and `draw_clicks` take it: (4,), (K, 2) and
        (K,)."""
        origin = np.array([self.left, self.top])
        box, points, labels = np.full(4, np.nan), np.zeros((0, 2)), np.zeros(0)
        if asked.boxes is not None:
            box = ((asked.boxes[0].reshape(2, 2) - origin) / self.side).ravel()
        if asked.points is not None and asked.labels is not None:
            points, labels = (asked.points[0] - origin) / self.side, asked.labels[0]
        return torch.from_numpy(box).float(), torch.from_numpy(points).float(), torch.from_numpy(labels).float()

    def paste(self, logits: Tensor, mask: np.ndarray) -> bool:
        """Draws into an empty mask (H, W) bool what (S, S) logits of the crop say; false if that is nothing."""
        height, width = mask.shape
        x1, y1 = max(int(np.floor(self.left)), 0), max(int(np.floor(self.top)), 0)
        x2, y2 = min(int(np.ceil(self.left + self.side)), width), min(int(np.ceil(self.top + self.side)), height)
        unit = self.cells / self.side
        y, x = (np.arange(y1, y2) + 0.5 - self.top) * unit, (np.arange(x1, x2) + 0.5 - self.left) * unit
        mask[y1:y2, x1:x2] = (_sample(logits, y, x) > 0).cpu().numpy()
        return bool(mask[y1:y2, x1:x2].any())


def _sample(values: Tensor, y: np.ndarray, x: np.ndarray) -> Tensor:
    """(h, w) float between its cells, bilinearly, at rows y and columns x (the first cell's centre is 0.5): (len y, len
    x). Places beyond the outer centres get what the outer cells have."""
    values = values.float()
    for axis, places in enumerate((y, x)):
        size = values.shape[axis]
        at = (places - 0.5).clip(0, size - 1)
        first = np.minimum(at.astype(np.int64), max(size - 2, 0))
        share = torch.from_numpy((at - first).astype(np.float32)).to(values.device)
        low = torch.from_numpy(first).to(values.device)
        near, far = (values.index_select(axis, each) for each in (low, (low + 1).clamp(max=size - 1)))
        values = torch.lerp(near, far, share if axis else share[:, None])
    return values


def masks_of_photo(
    model: TextSamNetwork,
    pixels: np.ndarray,
    low_res_logits: Tensor,
    geometry: ImageGeometry,
    asked: Asked | None = None,
) -> np.ndarray:
    """Masks on the photo's own pixels.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        low_res_logits: (N, 4h, 4w) float, the decoder's. geometry: the photo's sizes.
        asked: what each of the masks was asked for by; None: neither boxes nor points.
    Returns:
        (N, H, W) bool: as `masks_at_original_size`, redrawn by a model with `mask_detail`.
    """
    if not model.config.mask_detail:
        return masks_at_original_size(low_res_logits, geometry)
    masks = np.zeros((len(low_res_logits), *geometry.original_size_hw), bool)
    picture, asked = Image.fromarray(pixels), asked or Asked()
    cells = asked.cells
    extents = extents_of_logits(low_res_logits, geometry)
    crops = [
        (row, Crop.around(extent, asked.row(row), cells)) for row, extent in enumerate(extents) if extent is not None
    ]
    for start in range(0, len(crops), CROPS_AT_A_TIME):
        part = crops[start : start + CROPS_AT_A_TIME]
        colours = torch.from_numpy(np.stack([crop.of_picture(picture) for _, crop in part])).permute(0, 3, 1, 2)
        logits = torch.stack([crop.of_logits(low_res_logits[row], geometry) for row, crop in part])[:, None]
        boxes, points, labels = map(
            torch.stack, zip(*(crop.of_prompt(asked.row(row)) for row, crop in part), strict=True)
        )
        texts = None if asked.texts is None else asked.texts[[row for row, _ in part]]
        drawn = redraw(model, colours, logits, boxes, points, labels, texts)[:, 0]
        for (row, crop), detail in zip(part, drawn, strict=True):
            if not crop.paste(detail, masks[row]):  # a mask is corrected, not lost
                masks[row] = masks_at_original_size(low_res_logits[row : row + 1], geometry)[0]
    return masks


def extents_of_logits(low_res_logits: Tensor, geometry: ImageGeometry) -> list[np.ndarray | None]:
    """(N, 4h, 4w) logits -> N times (4,) xyxy in the photo's pixels around the cells above 0, or None of an empty mask.

    Far less work than masks of the photo's size, of which only this would be used.
    """
    (height, width), resized = geometry.original_size_hw, geometry.resized_size_hw
    rows, columns = (-(-side // LOW_RES_STRIDE) for side in resized)
    inside = (low_res_logits[:, :rows, :columns] > 0).cpu().numpy()
    scale = np.array([width / resized[1], height / resized[0]] * 2) * LOW_RES_STRIDE
    extents: list[np.ndarray | None] = []
    for each in inside:
        y, x = np.flatnonzero(each.any(axis=1)), np.flatnonzero(each.any(axis=0))
        corners = scale * [x[0], y[0], x[-1] + 1, y[-1] + 1] if len(x) else None
        extents.append(None if corners is None else corners.clip(0, [width, height, width, height]))
    return extents


def redraw(
    model: TextSamNetwork,
    colours: Tensor,
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    labels: Tensor,
    texts: Tensor | None = None,
) -> Tensor:
    """
    Args:
        colours: (N, 3, S, S) uint8 or float, RGB in 0..255. logits: (N, 1, S, S), the decoder's.
        boxes, points, labels: as `draw_boxes` and `draw_clicks` take them.
        texts: (N, D) CLIP embeddings of unit length, zeros where there was none; or None.
    Returns:
        (N, 1, S, S) logits.
    """
    device, config = model.device, model.config
    colours, side = colours.to(device).float(), colours.shape[-1]
    logits, boxes, points, labels = (each.to(device) for each in (logits, boxes, points, labels))
    texts = None if texts is None else texts.to(device)
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (config.pixel_mean, config.pixel_std))
    similarity = None
    with torch.no_grad():
        image = model.encode_image(((colours - mean) / std).to(model.dtype))
        if texts is not None and config.similarity_head:
            said = texts.any(dim=1)[:, None, None, None]
            similarity = torch.where(said, model.similarity_of_pairs(image, texts), 0.0)
        logits = _ask_again(model, image, logits, boxes, points, labels, texts)
    drawn_box, clicks = draw_boxes(boxes, side), draw_clicks(points, labels, side)
    return model.mask_detail(colours, image, logits, drawn_box, clicks, similarity)


def _ask_again(
    model: TextSamNetwork,
    image: ImageEmbeddings,
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    labels: Tensor,
    texts: Tensor | None,
) -> Tensor:
    """The mean of what the decoder said (N, 1, S, S) and of what it says to the same prompt with the crop before its
    eyes and the former answer as a mask prompt. Further clicks are not asked again: somebody waits."""
    by_box, clicks = boxes.isfinite().all(dim=1), (labels >= 0).sum(dim=1)
    by_text = texts.any(dim=1) if texts is not None and model.config.text_trained else torch.zeros_like(by_box)
    kinds = by_box.long() + 2 * (clicks == 1) + 4 * by_text
    kinds = torch.where((clicks > 1) | (kinds == 0), 0, kinds)
    side = logits.shape[-1]
    low = F.interpolate(logits, (side // LOW_RES_STRIDE, side // LOW_RES_STRIDE), mode="area")
    logits = logits.clone()
    for kind in kinds.unique().tolist():
        if not kind:
            continue
        rows = torch.nonzero(kinds == kind)[:, 0]
        near = image if len(rows) == len(logits) else image.take(rows)
        given: dict[str, Any] = {"mask_input": low[rows]}
        if kind & 1:
            given["boxes"] = boxes[rows] * side
        if kind & 2:
            given |= only_click(points[rows] * side, labels[rows])
        if kind & 4 and texts is not None:
            given["text_embeddings"] = texts[rows]
        answer = model.decode_masks(near, model.encode_prompts(near, **given), multimask_output=False)
        again = F.interpolate(answer.low_res_logits.float(), (side, side), mode="bilinear", align_corners=False)
        logits[rows] = (logits[rows] + again) / 2
    return logits


def only_click(points: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """(N, K, 2) px and (N, K), of which one in each row is no padding -> that one, as `encode_prompts` takes it."""
    place = (labels >= 0).long().argmax(dim=1, keepdim=True)
    return {
        "point_coords": points.gather(1, place[..., None].expand(-1, -1, 2)),
        "point_labels": labels.gather(1, place).long(),
    }
