"""The commands about written text: `textsam evaluate --ocr` and `textsam crops`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textsam.commands.run import console

if TYPE_CHECKING:
    from textsam.predictor import TextSam
    from textsam.text_regions.reader import TextRegionReader


def text_reader(sam: TextSam, model: str | None) -> TextRegionReader:
    """The model's reader of written text.

    Raises:
        ValueError: it has none.
    """
    if sam.text_reader is None:
        raise ValueError(
            f"{model or 'The embedded model'} was not trained to find written text: name one that was, such as "
            "--model textsam-tiny-ocr."
        )
    return sam.text_reader


def run_evaluation(
    data: list[Path],
    sam: TextSam,
    *,
    model_name: str | None,
    images: Path | None,
    out: Path | None,
    limit: int | None,
) -> None:
    """Scores a text-region model beside two classical finders."""
    from textsam.evaluation.ocr_scoring import run_ocr

    reader = text_reader(sam, model_name)
    name = Path(model_name or "model").name
    run_ocr(data, reader, model_name=name, images=images, out=out, limit=limit, console=console)
