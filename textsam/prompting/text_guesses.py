"""Where to ask for what a text names: points and boxes from its similarity map, or a regular grid of points."""

from __future__ import annotations

import numpy as np

from textsam.prompting.text_options import TextPromptOptions
from textsam.prompting.transforms import ImageGeometry


def guess_prompts(
    probability: np.ndarray, geometry: ImageGeometry, options: TextPromptOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Points and boxes, in input pixels, that one text's similarity map suggests.

    Args:
        probability: (hc, wc) in [0, 1], covering the padded input.
    Returns:
        points (P, 2) xy: the peaks, then grid points inside the region, P at most `max_points`; boxes (R, 4) xyxy of
        the connected regions.
    """
    from scipy import ndimage  # on first use: importing it takes longer than loading the model

    height, width = geometry.resized_size_hw
    cell_y, cell_x = (n / cells for n, cells in zip(geometry.padded_size_hw, probability.shape, strict=True))
    rows, columns = find_peaks(probability, options.peak_threshold, options.peak_radius)
    rows, columns = rows[: options.max_points], columns[: options.max_points]
    peaks = np.stack([(columns + 0.5) * cell_x, (rows + 0.5) * cell_y], axis=1)
    peaks = np.minimum(peaks, (width, height))  # the last cell may reach into the padding

    grid = grid_points(geometry, options.points_per_side)
    at_grid = probability[(grid[:, 1] / cell_y).astype(int), (grid[:, 0] / cell_x).astype(int)]
    order = np.argsort(-at_grid, kind="stable")
    order = order[at_grid[order] >= options.region_threshold][: options.max_points - len(peaks)]
    points = np.concatenate([peaks, grid[order]])

    boxes = []
    if options.use_boxes:
        labels, _ = ndimage.label(probability >= options.region_threshold, structure=np.ones((3, 3)))
        for number, (rows_slice, columns_slice) in enumerate(ndimage.find_objects(labels), start=1):
            if (labels[rows_slice, columns_slice] == number).sum() >= options.min_region:
                left, right = columns_slice.start * cell_x, columns_slice.stop * cell_x
                boxes.append([left, rows_slice.start * cell_y, right, rows_slice.stop * cell_y])
    return points, np.minimum(np.array(boxes).reshape(-1, 4), (width, height, width, height))


def find_peaks(probability: np.ndarray, threshold: float, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the local maxima of a map, highest first; a plateau counts once, by its middle.

    The highest maximum counts even below the threshold: whoever asks for instances of low confidence gets one.
    """
    from scipy import ndimage  # on first use: importing it takes longer than loading the model

    is_peak = ndimage.maximum_filter(probability, size=2 * radius + 1) == probability
    is_peak &= probability >= min(threshold, probability.max())
    labels, count = ndimage.label(is_peak, structure=np.ones((3, 3)))
    middles = []
    for number in range(1, count + 1):
        places = np.argwhere(labels == number)
        middles.append(places[((places - places.mean(0)) ** 2).sum(1).argmin()])
    rows, columns = np.array(middles).T
    order = np.argsort(-probability[rows, columns], kind="stable")
    return rows[order], columns[order]


def grid_points(geometry: ImageGeometry, points_per_side: int) -> np.ndarray:
    """A regular grid of points over the photo: (P, 2) xy in input pixels, `points_per_side` along the long side."""
    height, width = geometry.resized_size_hw
    step = max(height, width) / points_per_side
    count_y, count_x = max(round(height / step), 1), max(round(width / step), 1)
    x, y = (np.arange(count_x) + 0.5) * width / count_x, (np.arange(count_y) + 0.5) * height / count_y
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
