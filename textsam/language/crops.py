"""Square crops of masks: what a CLIP image tower is shown of an object.

Source: Kirillov et al. 2023, appendix D.5 (box expanded by 1 to 2x, square crop, pixels outside the mask zeroed).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MAX_EXPAND = 2.0


def validate_image_and_masks(image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check an (H, W, 3) uint8 picture and its (N, H, W) boolean masks, none of them empty.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, or a mask without a pixel, naming its index.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise TypeError(f"image must be a numpy array of uint8, not {getattr(image, 'dtype', type(image).__name__)}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be (H, W, 3) RGB, not {image.shape}")
    masks = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
    if masks.dtype != np.bool_:
        raise TypeError(f"masks must be boolean, not {masks.dtype}: pass logits > 0")
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks must be (N, {image.shape[0]}, {image.shape[1]}) as the image is, not {masks.shape}")
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise ValueError(f"masks[{empty[0]}] is empty: there is nothing to crop; drop empty masks first")
    return image, masks


def mask_window(mask: np.ndarray, expand: float) -> tuple[int, int, int]:
    """The square around a mask's box: (left, top, side) in pixels; it may reach beyond the picture.

    Raises:
        ValueError: expand is not in [1, 2].
    """
    if not 1.0 <= expand <= MAX_EXPAND:
        raise ValueError(f"expand must be between 1 and {MAX_EXPAND:g}, not {expand}")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(1, round(max(bottom - top, right - left) * expand))
    return round((left + right - side) / 2), round((top + bottom - side) / 2), side


def square_crop(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    *,
    expand: float = 1.0,
    zero_outside: bool = False,
    fill: Sequence[float] = (0.0, 0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Crop the square around a mask and resize it to (size, size).

    The square is centred on the mask's box. Where it reaches beyond the picture it is padded, not moved, so that the
    object stays in the middle and keeps its proportions. Pass the tower's mean colour as `fill`: padding, and pixels
    outside the mask if `zero_outside`, are then zero in the tower's normalised input.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        size: side of the result in pixels.
        expand: side of the square relative to the longer side of the mask's box, 1 to 2.
        fill: RGB, 0 to 255.
    Returns:
        crop (size, size, 3) uint8; coverage (size, size) float32 in [0, 1], the mask in the same frame.
    """
    left, top, side = mask_window(mask, expand)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side, mask.shape[1]), min(top + side, mask.shape[0])
    colour = np.round(fill).astype(np.uint8)
    pixels, inside = image[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    if zero_outside:
        pixels = np.where(inside[..., None], pixels, colour)
    # Only the part inside the picture is resized: the square of a large object at 2x may be far larger than that.
    scale = size / side
    right, bottom = (min(size, max(1, round(end * scale))) for end in (x1 - left, y1 - top))
    crop_left, crop_top = min(right - 1, round((x0 - left) * scale)), min(bottom - 1, round((y0 - top) * scale))
    area, target = (slice(crop_top, bottom), slice(crop_left, right)), (right - crop_left, bottom - crop_top)
    crop = np.broadcast_to(colour, (size, size, 3)).copy()
    crop[area] = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(target, Image.Resampling.BICUBIC))
    coverage = np.zeros((size, size), np.float32)
    shrunk = Image.fromarray(inside.astype(np.uint8) * 255).resize(target, Image.Resampling.BOX)
    coverage[area] = np.asarray(shrunk, dtype=np.float32) / 255
    return crop, coverage


def grid_coverage(coverage: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Share of each cell of a feature grid that lies in the mask: (N, S, S) -> (N, h, w), in [0, 1]."""
    return F.adaptive_avg_pool2d(coverage[:, None], grid_hw)[:, 0]


def inside_cells(coverage: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Cells of a feature grid that count as inside the mask: (N, S, S) -> (N, h, w) bool, at least one each.

    A cell counts when it is covered at least half as much as the best covered one, so that a thin object, which fills
    no cell, still has its own.
    """
    covered = grid_coverage(coverage, grid_hw)
    return (covered >= 0.5 * covered.amax(dim=(1, 2), keepdim=True)) & (covered > 0)


def masked_mean(features: Tensor, coverage: Tensor) -> Tensor:
    """Mean of (N, C, h, w) features weighted by the (N, S, S) mask: (N, C)."""
    weights = grid_coverage(coverage, (features.shape[-2], features.shape[-1])).to(features.dtype)
    return torch.einsum("nchw,nhw->nc", features, weights / weights.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6))
