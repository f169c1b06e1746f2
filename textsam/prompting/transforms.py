"""From the pixels of a photo to the encoder's input and back: resize, normalise, pad, coordinates, masks.

Two frames of coordinates exist. *Original*: pixels of the photo as the user has it. *Input*: pixels of what the encoder
sees, that is the photo with its long side resized to the model's side and zeros added at the bottom and at the right.
`ImageGeometry` knows both and takes points, boxes and masks from one to the other.

Source: Kirillov et al. 2023, appendix A; the order of the steps and the rounding are those of the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)

# Low-resolution logits have a quarter of the input's side (the decoder upscales its 1/16 grid four times).
LOW_RES_STRIDE = 4
# Masks upscaled at a time: about this many float32 values live at once (256 MB), however many masks are asked for.
_UPSCALE_BUDGET = 64 * 1024 * 1024


@dataclass(frozen=True)
class ImageGeometry:
    """The sizes (height, width), in pixels, that one photo has on its way into the encoder.

    Attributes:
        original_size_hw: the photo as the user has it.
        resized_size_hw: after its long side was resized to the model's side.
        padded_size_hw: after zeros were added at the bottom and right; the encoder's input.
    """

    original_size_hw: tuple[int, int]
    resized_size_hw: tuple[int, int]
    padded_size_hw: tuple[int, int]

    @classmethod
    def of(cls, original_size_hw: Sequence[int], side: int, patch_size: int = 16, pad: bool = True) -> ImageGeometry:
        """The geometry of a photo of this size for a model of this side.

        Args:
            original_size_hw: (height, width) of the photo in pixels.
            side: length in pixels that the photo's long side gets.
            patch_size: the input's sides must be multiples of it.
            pad: True pads to the square side x side, as SAM was trained; False pads only to the next multiple of
                `patch_size`, which is faster for photos that are not square.
        Raises:
            TypeError: `side` is no whole number.
            ValueError: the photo has no pixels, or `side` is not a positive multiple of `patch_size`.
        """
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)):
            raise TypeError(f"Expected the input side as a whole number of pixels, got {side!r}.")
        if side <= 0 or side % patch_size:
            below = max(side // patch_size, 1) * patch_size
            raise ValueError(f"The input side must be a positive multiple of {patch_size}, got {side}: use {below}.")
        height, width = (int(n) for n in original_size_hw)
        if height < 1 or width < 1:
            raise ValueError(f"An image needs at least one pixel, got height {height} and width {width}.")
        resized = resized_size_hw((height, width), side)
        padded = (side, side) if pad else tuple(math.ceil(n / patch_size) * patch_size for n in resized)
        return cls((height, width), resized, padded)  # type: ignore[arg-type]

    @property
    def low_res_size_hw(self) -> tuple[int, int]:
        """Size of the decoder's logits for this input, padding included."""
        return self.padded_size_hw[0] // LOW_RES_STRIDE, self.padded_size_hw[1] // LOW_RES_STRIDE

    def points_to_input(self, points_xy: ArrayOrTensor) -> ArrayOrTensor:
        """(..., 2) xy in original pixels -> input pixels, as a new float array (float64) or tensor."""
        return _scale_xy(points_xy, self.original_size_hw, self.resized_size_hw)

    def points_to_original(self, points_xy: ArrayOrTensor) -> ArrayOrTensor:
        """(..., 2) xy in input pixels -> original pixels, as a new float array (float64) or tensor."""
        return _scale_xy(points_xy, self.resized_size_hw, self.original_size_hw)

    def boxes_to_input(self, boxes_xyxy: ArrayOrTensor) -> ArrayOrTensor:
        """(..., 4) xyxy in original pixels -> input pixels, as a new float array (float64) or tensor."""
        corners = boxes_xyxy.reshape(*boxes_xyxy.shape[:-1], 2, 2)
        return self.points_to_input(corners).reshape(boxes_xyxy.shape)

    def boxes_to_original(self, boxes_xyxy: ArrayOrTensor) -> ArrayOrTensor:
        """(..., 4) xyxy in input pixels -> original pixels, as a new float array (float64) or tensor."""
        corners = boxes_xyxy.reshape(*boxes_xyxy.shape[:-1], 2, 2)
        return self.points_to_original(corners).reshape(boxes_xyxy.shape)


def resized_size_hw(original_size_hw: Sequence[int], side: int) -> tuple[int, int]:
    """(height, width) after the long side became `side`: SAM's rounding, int(x + 0.5), and at least one pixel.

    The released code rounds the short side of a 20000 x 9 photo to zero and fails; here it keeps one pixel.
    """
    height, width = original_size_hw
    scale = side * 1.0 / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize an (H, W, 3) uint8 photo with PIL's bilinear filter (antialiased when shrinking).

    This is exactly what SAM's released code does (torchvision's `resize` on a PIL image calls the same function);
    a resize of tensors gives slightly other pixels.
    """
    if image.shape[:2] == size_hw:
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized)


def preprocess_image(
    image: np.ndarray,
    *,
    side: int,
    patch_size: int,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    pad: bool = True,
) -> tuple[Tensor, ImageGeometry]:
    """Resize, normalise, then pad with zeros: the encoder's input for one photo.

    Args:
        image: (H, W, 3) uint8 RGB.
        side: length in pixels of the long side after resizing.
        patch_size: the input's sides are multiples of it.
        pixel_mean: three means in units of 0..255, RGB.
        pixel_std: three standard deviations in units of 0..255, RGB.
        pad: see `ImageGeometry.of`.
    Returns:
        pixel_values (1, 3, H', W') float32 on the CPU, and the photo's geometry, whose `padded_size_hw` is (H', W').
    Raises:
        TypeError, ValueError: the image is not (H, W, 3) uint8, naming what was received.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        received = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"Expected an (H, W, 3) uint8 RGB array, got {received}: convert it with textsam.files.images.")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"Expected an (H, W, 3) uint8 RGB array, got shape {image.shape}: convert it to RGB.")
    geometry = ImageGeometry.of(image.shape[:2], side, patch_size, pad)
    resized = np.array(resize_image(image, geometry.resized_size_hw))  # a writable copy, as torch wants it
    pixels = torch.from_numpy(resized).permute(2, 0, 1)[None]
    mean = torch.tensor(pixel_mean, dtype=torch.float32).view(1, 3, 1, 1)
    std = torch.tensor(pixel_std, dtype=torch.float32).view(1, 3, 1, 1)
    normalised = (pixels - mean) / std
    (height, width), (padded_height, padded_width) = geometry.resized_size_hw, geometry.padded_size_hw
    return F.pad(normalised, (0, padded_width - width, 0, padded_height - height)).contiguous(), geometry


def postprocess_masks(low_res_logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """Logits of the decoder -> logits on the photo's own pixels.

    Bilinear to the padded input, crop the padding, bilinear to the original size (align_corners=False both times).
    Values are SAM's to the bit; rows and columns that only concern the padding are not computed.

    Args:
        low_res_logits: (N, M, 4h, 4w) float, covering the padded input.
        geometry: the photo's sizes.
    Returns:
        (N, M, H, W) float32 logits, threshold 0.
    Raises:
        ValueError: the logits' size does not belong to this geometry.
    """
    if low_res_logits.ndim != 4 or tuple(low_res_logits.shape[-2:]) != geometry.low_res_size_hw:
        expected = ", ".join(str(n) for n in geometry.low_res_size_hw)
        received = tuple(low_res_logits.shape)
        raise ValueError(f"Expected low-resolution logits (N, M, {expected}) for this image, got shape {received}.")
    height, width = geometry.resized_size_hw
    # One row and column more than the crop covers, so that the interpolation at its edge sees its true neighbours.
    rows, columns = math.ceil(height / LOW_RES_STRIDE) + 1, math.ceil(width / LOW_RES_STRIDE) + 1
    logits = low_res_logits[..., :rows, :columns].float()
    if logits.shape[0] * logits.shape[1] == 0:
        return logits.new_zeros(*logits.shape[:2], *geometry.original_size_hw)
    upscaled_size = (logits.shape[-2] * LOW_RES_STRIDE, logits.shape[-1] * LOW_RES_STRIDE)
    upscaled = F.interpolate(logits, upscaled_size, mode="bilinear", align_corners=False)[..., :height, :width]
    if geometry.original_size_hw == geometry.resized_size_hw:
        return upscaled.contiguous()
    return F.interpolate(upscaled, geometry.original_size_hw, mode="bilinear", align_corners=False)


def masks_at_original_size(low_res_logits: Tensor, geometry: ImageGeometry) -> np.ndarray:
    """`postprocess_masks`, thresholded, a few masks at a time so that memory does not grow with their number.

    Args:
        low_res_logits: (N, 4h, 4w) float.
        geometry: the photo's sizes.
    Returns:
        (N, H, W) bool array on the CPU.
    """
    height, width = geometry.original_size_hw
    masks = np.zeros((low_res_logits.shape[0], height, width), dtype=bool)
    pixels = max(height * width, geometry.resized_size_hw[0] * geometry.resized_size_hw[1])
    step = max(_UPSCALE_BUDGET // pixels, 1)
    for start in range(0, low_res_logits.shape[0], step):
        logits = postprocess_masks(low_res_logits[start : start + step, None], geometry)
        masks[start : start + step] = (logits[:, 0] > 0).cpu().numpy()
    return masks


def mask_to_low_res_logits(masks: np.ndarray, geometry: ImageGeometry) -> Tensor:
    """Boolean masks of the photo's size -> logits that can be given back as a mask prompt.

    The mask is averaged over the area of each low-resolution pixel, and its share s of foreground becomes the logit
    10 * (2 s - 1). The padding counts as outside, as it does for logits that the decoder drew.

    Args:
        masks: (N, H, W) bool, original pixels.
        geometry: the photo's sizes.
    Returns:
        (N, 1, 4h, 4w) float32 on the CPU.
    """
    rows = max(math.ceil(geometry.resized_size_hw[0] / LOW_RES_STRIDE), 1)
    columns = max(math.ceil(geometry.resized_size_hw[1] / LOW_RES_STRIDE), 1)
    low_height, low_width = geometry.low_res_size_hw
    share = torch.zeros(masks.shape[0], 1, low_height, low_width)
    if masks.shape[0]:
        foreground = torch.from_numpy(masks.astype(np.float32))[:, None]
        share[..., :rows, :columns] = F.interpolate(foreground, (rows, columns), mode="area")
    return 10.0 * (2.0 * share - 1.0)


def features_in_input(features: Tensor, geometry: ImageGeometry, stride: int) -> Tensor:
    """Features that cover the photo, where the photo lies in the encoder's input.

    Args:
        features: (D, hc, wc). stride: px of the input to a cell of the result.
    Returns:
        (1, D, H / stride, W / stride) float32 of unit length over D; zeros in cells whose centre is in the padding.
    """
    (height, width), (rows, columns) = geometry.resized_size_hw, (s // stride for s in geometry.padded_size_hw)
    y, x = (torch.arange(rows) + 0.5) * stride / height, (torch.arange(columns) + 0.5) * stride / width
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].to(features.device)
    found = F.grid_sample(features[None].float(), 2 * grid - 1, padding_mode="border", align_corners=False)
    return F.normalize(found, dim=1) * (grid < 1).all(dim=-1)[:, None]


def _scale_xy(xy: ArrayOrTensor, from_size_hw: tuple[int, int], to_size_hw: tuple[int, int]) -> ArrayOrTensor:
    """Multiply x by the ratio of the widths and y by that of the heights, on a copy."""
    scale = [to_size_hw[1] / from_size_hw[1], to_size_hw[0] / from_size_hw[0]]
    if isinstance(xy, Tensor):
        floating = xy if xy.is_floating_point() else xy.float()
        return floating * torch.tensor(scale, dtype=floating.dtype, device=floating.device)
    return np.asarray(xy, dtype=np.float64) * np.array(scale)
