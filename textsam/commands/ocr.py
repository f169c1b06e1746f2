"""The commands about written text: `textsam evaluate --ocr` and `textsam crops`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsam.commands.run import console, count_of, picture_progress, report

if TYPE_CHECKING:
    import numpy as np

    from textsam.files.images import RgbImage
    from textsam.predictor import TextSam
    from textsam.text_regions.reader import TextRegionReader
    from textsam.text_regions.regions import TextRegions


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


def run_crops_command(
    paths: list[Path],
    out: Path,
    sam: TextSam,
    *,
    model: str | None,
    level: str,
    threshold: float | None,
    plate: bool,
    overwrite: bool,
    settings: dict[str, Any],
) -> None:
    """Writes crops, glyphs and plates under a progress bar and reports; exit code 1 when a picture failed."""
    from textsam.files.text_runs import run_crops
    from textsam.text_regions.maps import STROKE

    reader = text_reader(sam, model)
    levels = [level, *([STROKE] if STROKE in reader.config.levels else [])]

    def read(picture: RgbImage) -> tuple[TextRegions, np.ndarray | None]:
        regions, areas = reader.read(picture, levels, threshold)
        return regions[level], areas.get(STROKE)

    with picture_progress(len(paths)) as advance:
        options: dict[str, Any] = {"plate": plate, "overwrite": overwrite, "on_picture": advance}
        summary = run_crops(paths, out, read, settings=settings, **options)
    report(count_of(sum(len(record["regions"]) for record in summary.records), level), summary, out)
