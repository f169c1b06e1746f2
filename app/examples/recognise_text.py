"""Find text with TextSAM, read it with whatever recogniser you have.

    python recognise_text.py frame.jpg --out read

A recogniser is a function from an upright crop, (h, w, 3) uint8 RGB, to its text. `describe` below only measures the
crop, so that this script runs without one; put yours in its place, for example

    from transformers import pipeline                               # a model of the Hub
    trocr = pipeline("image-to-text", "microsoft/trocr-base-printed")
    recognise = lambda crop: trocr(Image.fromarray(crop))[0]["generated_text"]

    import pytesseract                                              # Tesseract, also for Korean
    recognise = lambda crop: pytesseract.image_to_string(Image.fromarray(crop), lang="kor+eng", config="--psm 7")
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import textsam
from textsam.files.runs import weights_identity
from textsam.files.text_runs import run_crops
from textsam.text_regions.regions import TextRegions

RECOGNISER = "size and shade"  # another name for another recogniser, or what was read before stays


def describe(crop: np.ndarray) -> str:
    """Stands in for a recogniser: the size of the crop and whether its letters may be light or dark."""
    grey = crop.mean(axis=2)
    ground = np.median(np.concatenate([grey[0], grey[-1]]))
    return f"{crop.shape[1]} x {crop.shape[0]} px, {'light' if grey.mean() > ground else 'dark'} letters"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="+")
    parser.add_argument("--model", default="textsam-tiny-ocr")
    parser.add_argument("--level", default="text line", choices=("word", "text line"))
    parser.add_argument("--out", type=Path, default=Path("read"))
    given = parser.parse_args(arguments)
    reader = textsam.load(given.model).text_reader
    if reader is None:
        parser.error(f"{given.model} was not trained to find written text.")

    def read(picture: np.ndarray) -> tuple[TextRegions, None]:
        return reader.read(picture, [given.level])[0][given.level], None

    settings = {"level": given.level, "model": [given.model, *weights_identity(given.model)], "recogniser": RECOGNISER}
    summary = run_crops(given.picture, given.out, read, settings=settings, recognise=describe)
    for record in summary.records:
        for row in record["regions"]:
            print(f"{record['file_name']} {row['order']:3d} {row['quad'][0]} {row['text']}")
    for path, sentence in summary.failures.items():
        print(f"{path}: {sentence}")
    return int(bool(summary.failures))


if __name__ == "__main__":
    raise SystemExit(main())
