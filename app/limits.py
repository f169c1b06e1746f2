"""How much one person, and everybody together, may ask of the page. Each limit is told in the sentence it leads to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from textsam.files.images import RgbImage, read_image
from textsam.predictor import TextSam


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        upload_bytes: of one file.
        photo_pixels: that a file may declare before it is decoded.
        work_side: px; larger photos are scaled down to it when they come in. Masks and downloads have that size.
        words, word_length: names asked for at once, and characters of each.
        points: clicks on one object.
        masks: of one photo, the most confident.
        undo_steps: that are remembered.
        sessions: people whose photo is kept; the one idle for longest goes first.
        session_seconds: a photo that nobody touched for so long is forgotten.
        collected: photos in one person's collection.
        queue: requests that wait; a further one is refused.
    """

    upload_bytes: int = 20_000_000
    photo_pixels: int = 50_000_000
    work_side: int = 1600
    words: int = 24
    word_length: int = 60
    points: int = 32
    masks: int = 64
    undo_steps: int = 30
    sessions: int = 32
    session_seconds: float = 1800
    collected: int = 50
    queue: int = 64


LIMITS = Limits()


def open_photo(path: Path, limits: Limits = LIMITS) -> RgbImage:
    """An uploaded file as (H, W, 3) uint8 RGB, neither side longer than `limits.work_side`.

    Raises:
        ValueError: too large, damaged, or not a picture, in one sentence without the server's paths.
    """
    size = path.stat().st_size
    if size > limits.upload_bytes:
        raise ValueError(f"This file has {size / 1e6:.0f} MB, at most {limits.upload_bytes / 1e6:.0f} MB are taken.")
    try:
        pixels = read_image(path.read_bytes(), max_pixels=limits.photo_pixels)
    except (ValueError, TypeError, MemoryError) as error:
        raise ValueError(str(error).replace("the bytes given", "This file")) from error
    height, width = pixels.shape[:2]
    scale = limits.work_side / max(height, width)
    if scale >= 1:
        return pixels
    smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(smaller, Image.Resampling.LANCZOS, reducing_gap=3.0))


def workers(sam: TextSam) -> tuple[int, int]:
    """Calls of the model at a time, and threads for each.

    A small encoder gains nothing from a second thread, so on a CPU its calls share the cores, four at most. A ViT takes
    all cores for one call, and a GPU one call.
    """
    cores = os.cpu_count() or 1
    if sam.device.type == "cpu" and sam.network.config.encoder_type == "mobile":
        return min(cores, 4), 1
    return 1, cores
