"""Masks on the photo's own pixels, with their details where the model has a part for them.

A mask's crop is a square around it, some wider than the mask; what lies outside of the crop is outside of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from textsam.modeling.mask_detail import DETAIL_SIDE
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.transforms import LOW_RES_STRIDE, ImageGeometry, masks_at_original_size

GROWTH, MARGIN_PX, LEAST_PX = 1.3, 8, 24  # a crop's side: the mask's longer side times, plus, and at least
CROPS_AT_A_TIME = 16
QUICK_SIDE = 96  # px of a crop where somebody waits for the answer to a click


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
    def around(cls, mask: np.ndarray, cells: int = DETAIL_SIDE) -> Crop | None:
        """Of a mask (H, W) bool; None of an empty one."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        side = max(GROWTH * max(x2 - x1, y2 - y1) + MARGIN_PX, LEAST_PX)
        return cls((x1 + x2 - side) / 2, (y1 + y2 - side) / 2, float(side), cells)

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y in the photo, (S,) each, of the crop's columns and rows."""
        offsets = (np.arange(self.cells) + 0.5) / self.cells * self.side
        return self.left + offsets, self.top + offsets

    def of_picture(self, picture: Image.Image) -> np.ndarray:
        """(S, S) or (S, S, 3) uint8, smoothed when it shrinks; black outside of the photo."""
        size = (self.cells, self.cells)
        scale = self.side / self.cells
        if scale <= 1:
            matrix = (scale, 0, self.left, 0, scale, self.top)
            cut = picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        else:
            x1, y1 = int(np.floor(self.left)), int(np.floor(self.top))
            x2, y2 = int(np.ceil(self.left + self.side)), int(np.ceil(self.top + self.side))
            left, top = self.left - x1, self.top - y1
            box = (left, top, left + self.side, top + self.side)
            cut = picture.crop((x1, y1, x2, y2)).resize(size, Image.Resampling.BILINEAR, box=box)
        return np.asarray(cut)

    def of_logits(self, logits: Tensor, geometry: ImageGeometry) -> Tensor:
        """(4h, 4w) low-resolution logits -> (S, S)."""
        (height, width), (resized_h, resized_w) = geometry.original_size_hw, geometry.resized_size_hw
        x, y = self.centres()
        cells_x = x * (resized_w / width / LOW_RES_STRIDE)
        cells_y = y * (resized_h / height / LOW_RES_STRIDE)
        return _sample(logits, cells_y, cells_x)

    def of_box(self, box: np.ndarray) -> np.ndarray:
        """(S, S) float32 in [0, 1]: the share of each place inside a box (4,) xyxy of the photo."""
        unit = self.side / self.cells
        inside = [
            ((centres - low) / unit + 0.5).clip(0, 1) * ((high - centres) / unit + 0.5).clip(0, 1)
            for centres, low, high in zip(self.centres(), box[:2], box[2:], strict=True)
        ]
        return (inside[1][:, None] * inside[0]).astype(np.float32)

    def paste(self, logits: Tensor, mask: np.ndarray) -> None:
        """Replaces a mask (H, W) bool by what (S, S) logits of the crop say, unless nothing would be left of it."""
        height, width = mask.shape
        x1, y1 = max(int(np.floor(self.left)), 0), max(int(np.floor(self.top)), 0)
        x2, y2 = min(int(np.ceil(self.left + self.side)), width), min(int(np.ceil(self.top + self.side)), height)
        unit = self.cells / self.side
        y, x = (np.arange(y1, y2) + 0.5 - self.top) * unit, (np.arange(x1, x2) + 0.5 - self.left) * unit
        inside = (_sample(logits, y, x) > 0).cpu().numpy()
        if inside.any():
            mask[:] = False
            mask[y1:y2, x1:x2] = inside


def _sample(values: Tensor, y: np.ndarray, x: np.ndarray) -> Tensor:
    """(h, w) float between its cells, bilinearly, at rows y and columns x (the first cell's centre is 0.5): (len y, len
    x). Places beyond the outer centres get what the outer cells have."""
    rows, columns = (_weights(each, size) for each, size in zip((y, x), values.shape, strict=True))
    return rows.to(values.device) @ values.float() @ columns.to(values.device).T


def _weights(places: np.ndarray, size: int) -> Tensor:
    """(len places, size) of linear interpolation."""
    centres = (places - 0.5).clip(0, size - 1)
    return torch.from_numpy((1 - np.abs(centres[:, None] - np.arange(size))).clip(0).astype(np.float32))


def masks_of_photo(
    model: TextSamNetwork,
    pixels: np.ndarray,
    low_res_logits: Tensor,
    geometry: ImageGeometry,
    boxes: np.ndarray | None = None,
    cells: int = DETAIL_SIDE,
) -> np.ndarray:
    """Masks on the photo's own pixels.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        low_res_logits: (N, 4h, 4w) float, the decoder's. geometry: the photo's sizes.
        boxes: (N, 4) xyxy in the photo's pixels that the masks were asked for by; None: there were none.
        cells: along a side of the crops; a multiple of 16.
    Returns:
        (N, H, W) bool: as `masks_at_original_size`, redrawn by a model with `mask_detail`.
    """
    masks = masks_at_original_size(low_res_logits, geometry)
    if not model.config.mask_detail:
        return masks
    picture = Image.fromarray(pixels)
    crops = [(row, crop) for row, mask in enumerate(masks) if (crop := Crop.around(mask, cells)) is not None]
    for start in range(0, len(crops), CROPS_AT_A_TIME):
        part = crops[start : start + CROPS_AT_A_TIME]
        colours = np.stack([crop.of_picture(picture) for _, crop in part])
        logits = torch.stack([crop.of_logits(low_res_logits[row], geometry) for row, crop in part])
        asked = np.full((len(part), cells, cells), 0.5, np.float32)
        if boxes is not None:
            asked = np.stack([crop.of_box(boxes[row]) for row, crop in part])
        given = torch.from_numpy(colours).permute(0, 3, 1, 2), logits[:, None], torch.from_numpy(asked)[:, None]
        drawn = model.mask_detail(*(each.to(low_res_logits.device) for each in given))[:, 0]
        for (row, crop), detail in zip(part, drawn, strict=True):
            crop.paste(detail, masks[row])
    return masks
