"""Regions of text as upright pictures: what a recogniser wants to see, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from textsam.text_regions.quads import size_of_quad
from textsam.text_regions.regions import TextRegions

# Longest side of a crop, in pixels: a damaged quad must not ask for a picture of any size.
MAX_CROP_SIDE = 4096


@dataclass(frozen=True)
class Rectification:
    """The way from a picture to an upright crop.

    Attributes:
        matrix: (3, 3) float64, homogeneous picture xy to crop xy.
        size_hw: of the crop, each at least 1.
    """

    matrix: np.ndarray
    size_hw: tuple[int, int]

    @classmethod
    def of(cls, quad: np.ndarray, margin: float = 0.1, height: int | None = None) -> Rectification:
        """For a quad.

        Args:
            quad: (4, 2) xy, clockwise from where reading starts.
            margin: added on all sides, as a share of the quad's height.
            height: of the crop without its margin, in pixels; None: the quad's own.
        """
        own_width, own_height = size_of_quad(quad)
        scale = 1.0 if height is None else height / max(own_height, 1e-6)
        scale = min(scale, MAX_CROP_SIDE / max(own_width + 2 * margin * own_height, own_height * (1 + 2 * margin), 1.0))
        width, inner_height = max(own_width * scale, 1.0), max(own_height * scale, 1.0)
        pad = margin * inner_height
        target = np.array([[0, 0], [width, 0], [width, inner_height], [0, inner_height]], np.float32) + pad
        matrix = cv2.getPerspectiveTransform(np.asarray(quad, np.float32), target.astype(np.float32))
        size_hw = (max(round(inner_height + 2 * pad), 1), max(round(width + 2 * pad), 1))
        return cls(matrix, size_hw)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """The crop of an (H, W) or (H, W, C) array; beyond the picture its edge pixels go on."""
        # Pixel centres lie at half pixels here and at whole ones in OpenCV.
        to_centres, from_centres = _shift(0.5), _shift(-0.5)
        height, width = self.size_hw
        return cv2.warpPerspective(
            np.ascontiguousarray(picture),
            from_centres @ self.matrix @ to_centres,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Crop xy (P, 2) to picture xy."""
        return cv2.perspectiveTransform(np.asarray(points, np.float64)[None], np.linalg.inv(self.matrix))[0]


def rectified_crops(
    picture: np.ndarray, regions: TextRegions, margin: float = 0.1, height: int | None = None
) -> list[np.ndarray]:
    """An upright crop (h, w, 3) uint8 of every region, in reading order. Arguments as in `Rectification.of`."""
    return [Rectification.of(quad, margin, height).apply(picture) for quad in regions.quads]


def recognise_regions(
    picture: np.ndarray, regions: TextRegions, recognise: Callable[[np.ndarray], str], margin: float = 0.1
) -> TextRegions:
    """The regions with what a recogniser reads in their upright crops.

    Args:
        recognise: an (h, w, 3) uint8 RGB crop to its transcript.
    Raises:
        TypeError: it returns something else than a text.
    """
    texts = []
    for crop in rectified_crops(picture, regions, margin):
        text = recognise(crop)
        if not isinstance(text, str):
            raise TypeError(f"Expected recognise to return a str, got {type(text).__name__}.")
        texts.append(text)
    return regions.with_texts(texts)


def _shift(by: float) -> np.ndarray:
    return np.array([[1, 0, by], [0, 1, by], [0, 0, 1]], np.float64)
