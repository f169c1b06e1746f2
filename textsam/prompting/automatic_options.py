"""What automatic masks are asked for: thresholds, grids of points, and crops of the photo.

Source: Kirillov et al. 2023, *Segment Anything*, appendix B; the defaults are those of the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WHOLE = ("points_per_side", "points_per_batch", "crop_n_layers")
# A threshold in between was meant in percent: a predicted IoU is not clipped to 1, but comes nowhere near.
_PERCENT = (10.0, 100.0)


@dataclass(frozen=True)
class AutomaticOptions:
    """How automatic masks are searched for and which of them are kept.

    Attributes:
        points_per_side: points on a side of the grid; None: `point_grids` is given.
        points_per_batch: points decoded at a time.
        pred_iou_thresh: lowest predicted IoU.
        stability_score_thresh: lowest stability score.
        stability_score_offset: how far the threshold moves for the stability score, in logits.
        box_nms_thresh: largest box IoU of two masks of one crop.
        crop_n_layers: layers of crops beside the whole photo; layer i has (2^i)^2 of them.
        crop_nms_thresh: largest box IoU of two masks of different crops.
        crop_overlap_ratio: overlap of crops in the first layer, as a share of the photo's short side.
        crop_n_points_downscale_factor: layer i has points_per_side / factor^i points on a side.
        point_grids: for the photo and for each layer of crops, (P, 2) xy in [0, 1]; instead of points_per_side.
        min_mask_region_area: islands and holes smaller than this, in px, are removed; 0: none are.
        redraw: a model with `mask_detail` draws the masks that stay again on the photo's own pixels, as `predict` does.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[np.ndarray] | None = None
    min_mask_region_area: int = 0
    redraw: bool = True

    def __post_init__(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("Expected one of points_per_side and point_grids: set points_per_side=None with grids.")
        lowest = {"points_per_side": 1, "points_per_batch": 1, "crop_n_layers": 0}
        lowest |= {"crop_n_points_downscale_factor": 1, "min_mask_region_area": 0, "stability_score_offset": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, whole=name in _WHOLE)
            if value is not None and not value >= least:
                raise ValueError(f"Expected {name} of at least {least}, got {value!r}.")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
            value = getattr(self, name)
            _check_number(name, value)
            if not math.isfinite(value):
                raise ValueError(f"Expected a finite {name}, got {value!r}.")
            if _PERCENT[0] < value <= _PERCENT[1]:
                raise ValueError(f"Expected {name} as a share, got {value!r}, as if in percent: write {value / 100:g}.")
        _check_number("crop_overlap_ratio", self.crop_overlap_ratio)
        if not 0.0 <= self.crop_overlap_ratio < 1.0:
            raise ValueError(f"Expected crop_overlap_ratio in [0, 1), got {self.crop_overlap_ratio!r}.")
        if self.point_grids is not None:
            self._check_grids(self.point_grids)

    def _check_grids(self, grids: Sequence[np.ndarray]) -> None:
        if len(grids) != self.crop_n_layers + 1:
            raise ValueError(f"Expected {self.crop_n_layers + 1} point_grids, one per layer, got {len(grids)}.")
        for grid in grids:
            points = np.asarray(grid)
            if points.ndim != 2 or points.shape[1] != 2 or not np.all((points >= 0) & (points <= 1)):
                raise ValueError(f"Expected point_grids of shape (P, 2) with values in [0, 1], got {points.shape}.")

    def grid(self, layer: int) -> np.ndarray:
        """(P, 2) float64 xy in [0, 1]: the points of this layer of crops, row by row."""
        if self.point_grids is not None:
            return np.asarray(self.point_grids[layer], dtype=np.float64)
        side = int((self.points_per_side or 0) / self.crop_n_points_downscale_factor**layer)
        if side == 0:
            return np.zeros((0, 2))
        steps = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
        return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)


def _check_number(name: str, value: object, *, whole: bool = False) -> None:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"Expected {name} as a {'whole ' * whole}number, got {value!r}.")


def crop_boxes(
    size_hw: tuple[int, int], n_layers: int, overlap_ratio: float
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """The photo and its crops: boxes xyxy in px, and the layer of each (0: the photo itself)."""
    height, width = size_hw
    boxes, layers = [(0, 0, width, height)], [0]
    for layer in range(1, n_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size_hw) * (2 / count))
        crop_w, crop_h = (math.ceil((overlap * (count - 1) + length) / count) for length in (width, height))
        for left in (int((crop_w - overlap) * i) for i in range(count)):
            for top in (int((crop_h - overlap) * i) for i in range(count)):
                box = (left, top, min(left + crop_w, width), min(top + crop_h, height))
                if box[0] < box[2] and box[1] < box[3]:  # photos of a few pixels have fewer crops
                    boxes.append(box)
                    layers.append(layer)
    return boxes, layers
