"""`textsam demo`: the embedded model is asked for an object by its name in three photos that scikit-image ships."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from textsam.files.export import (
    category_list,
    coco_document,
    draw_overlay,
    image_record,
    write_json,
    write_masks,
    write_png,
)

ABSENT = "zebra"  # is in none of the photos


def demo_photos() -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    """Name of the photo, the word to ask for, and the function that gives the (H, W, 3) uint8 RGB pixels.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError('The demo needs the photos of scikit-image: pip install "textsam[demo]".') from error
    return [("astronaut", "person", data.astronaut), ("coffee", "cup", data.coffee), ("chelsea", "cat", data.chelsea)]


def run_demo(out: Path, console: Console, model: str | None = None) -> None:
    """Writes overlays, masks and `annotations.json` of the surest object of each word under `out`, and prints it.

    Args:
        out: may hold a former demo, which is replaced.
        model: anything that `textsam.load` takes; None for the embedded model.
    Raises:
        FileExistsError: `out` holds other files under the names to be written.
    """
    from textsam.checkpoints.loading import load

    photos = demo_photos()
    places = [f"{folder}/{name}" for name, _, _ in photos for folder in ("photos", "overlays", "masks")]
    places = ["annotations.json", *(place if "masks" in place else f"{place}.png" for place in places)]
    there = [out / place for place in places if (out / place).exists()]
    if there and out / "photos" / f"{photos[0][0]}.png" not in there:  # which a demo writes first
        raise FileExistsError(f"{there[0]} exists, and is of no demo: give another --out.")
    started = time.perf_counter()
    sam = load(model)
    loading = time.perf_counter() - started
    table = Table("photo", "asked for", "found", "confidence", "presence", "share of photo", "seconds")
    records = []
    for name, word, read in photos:
        pixels = read()
        words = [word, ABSENT]
        started = time.perf_counter()
        sam.set_image(pixels)
        detections = sam.predict(text=words, max_instances=1)  # of the one cup it finds the spoon's handle, too
        seconds = time.perf_counter() - started
        presence = sam.presence(None, words)
        write_png(out / "photos" / f"{name}.png", pixels)
        write_png(out / "overlays" / f"{name}.png", draw_overlay(pixels, detections))
        write_masks(out / "masks" / name, detections)
        records.append(image_record(f"{name}.png", pixels, detections))
        for asked, probability in zip(words, presence, strict=True):
            found = [a for a in records[-1].annotations if a["category_name"] == asked]
            table.add_row(
                name if asked == word else "",
                asked,
                str(len(found)),
                ", ".join(f"{a['score']:.2f}" for a in found),
                f"{probability:.2f}",
                f"{sum(a['area'] for a in found) / pixels[:, :, 0].size:.0%}",
                f"{seconds:.2f}" if asked == word else "",
            )
    write_json(out / "annotations.json", coco_document(records, category_list(records, [w for _, w, _ in photos])))
    console.print(table)
    console.print(f"Loaded in {loading:.1f} s. Pictures, masks and annotations.json are in {out}/", soft_wrap=True)
