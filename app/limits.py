"""How much one person, and everybody together, may ask of the page. Each limit is told in the sentence it leads to."""

from __future__ import annotations

import base64
import binascii
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
        request_bytes: of one request, in which a file may come as a data: URL, a third longer than its bytes.
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
    request_bytes: int = 28_000_000
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


def open_photo(source: str | Path, limits: Limits = LIMITS) -> RgbImage:
    """An uploaded file as (H, W, 3) uint8 RGB, neither side longer than `limits.work_side`.

    Args:
        source: its path, or its content as a data: URL.
    Raises:
        ValueError: too large, damaged, or not a picture, in one sentence without the server's paths.
    """
    content = _content(source, limits)
    try:
        pixels = read_image(content, max_pixels=limits.photo_pixels)
    except (ValueError, TypeError, MemoryError) as error:
        raise ValueError(str(error).replace("the bytes given", "This file")) from error
    height, width = pixels.shape[:2]
    scale = limits.work_side / max(height, width)
    if scale >= 1:
        return pixels
    smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(smaller, Image.Resampling.LANCZOS, reducing_gap=3.0))


def check_bytes(size: int, limits: Limits = LIMITS) -> None:
    """Refuse a file of more bytes than are taken, with ValueError."""
    if size > limits.upload_bytes:
        raise ValueError(f"This file has {size / 1e6:.1f} MB, at most {limits.upload_bytes / 1e6:.0f} MB are taken.")


def check_inline(url: str, limits: Limits = LIMITS) -> None:
    """The same for what a data: URL holds, before it is decoded."""
    check_bytes(len(url.partition(",")[2]) * 3 // 4, limits)


def _content(source: str | Path, limits: Limits) -> bytes:
    """The bytes of a photo that is not too large."""
    if not str(source).startswith("data:"):
        check_bytes(Path(source).stat().st_size, limits)
        return Path(source).read_bytes()
    check_inline(str(source), limits)
    try:
        return base64.b64decode(str(source).partition(",")[2], validate=True)
    except binascii.Error as error:
        raise ValueError("Expected a data: URL with base64, such as data:image/jpeg;base64,/9j/4AAQ.") from error


def workers(sam: TextSam) -> tuple[int, int]:
    """Calls of the model at a time, and threads for each.

    A small encoder gains nothing from a second thread, so on a CPU its calls share the cores, four at most. A ViT takes
    all cores for one call, and a GPU one call.
    """
    cores = os.cpu_count() or 1
    if sam.device.type == "cpu" and sam.network.config.encoder_type == "mobile":
        return min(cores, 4), 1
    return 1, cores
