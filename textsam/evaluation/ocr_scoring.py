"""`textsam evaluate --ocr`: a text-region model and two classical finders on the same pictures.

    textsam evaluate --ocr synthetic/instances.json icdar2015/val.json --model textsam-tiny-ocr --out scores

Words and lines: precision, recall and F at IoU 0.5 by the protocol of ICDAR 2015, and panoptic quality; ink: fgIoU and
F on pixels; photos without text: the share of their pixels that is marked; words also by script. See `ocr_metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from textsam import __version__
from textsam.evaluation.ocr_baselines import BASELINES, FoundText
from textsam.evaluation.ocr_metrics import (
    PixelCounts,
    RegionCounts,
    count_by_script,
    count_matches,
    match_polygons,
    script_of,
)
from textsam.evaluation.ocr_report import FinderScores, OcrReport
from textsam.evaluation.ocr_truth import TextDataset, TrueText, load_text_dataset
from textsam.evaluation.sheet import Case, CaseBook, write_sheet
from textsam.files.coco import MAX_BAD_SHARE, CocoImage
from textsam.files.rle import encode_mask
from textsam.text_regions.quads import draw_polygon
from textsam.text_regions.reader import TextRegionReader

Finder = Callable[[np.ndarray], FoundText]


def run_ocr(
    datasets: Sequence[str | Path],
    finder: Finder | TextRegionReader,
    *,
    model_name: str,
    images: str | Path | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
    console: Console | None = None,
) -> OcrReport:
    """Scores a model and the two baselines.

    Args:
        datasets: COCO files of text regions; see `ocr_truth`.
        finder: a text-region model's reader, or any function from (H, W, 3) uint8 RGB to `FoundText`.
        images: the folder of the pictures; by default where `image_folder` finds them.
        out: folder for `ocr_scores.json` and `ocr_cases.png`; None writes nothing.
        limit: pictures of each set, evenly spaced; None: all.
        max_bad_share: of a set's pictures, or of its annotations; more is an error.
        console: where the progress bar and the tables go; None for no output.
    Raises:
        FileNotFoundError, ValueError: a file or folder is wrong, or too much of a file is bad.
    """
    started = time.perf_counter()
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # a wrong one is told now, and not after all the work
    if not datasets:
        raise ValueError("no data set given: name at least one COCO file of text regions")
    loaded = [load_text_dataset(path, images, max_bad_share=max_bad_share) for path in datasets]
    ours = model_finder(finder) if isinstance(finder, TextRegionReader) else finder
    finders: dict[str, Finder] = {model_name: ours} | {n: f for n, f in BASELINES.items() if n != model_name}
    report = OcrReport(model=model_name, version=__version__, limit=limit)
    books: dict[str, CaseBook] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=console is None) as progress:
        task = progress.add_task("", total=sum(len(dataset.coco.select(limit)) for dataset in loaded))
        for number, dataset in enumerate(loaded):
            progress.update(task, description=dataset.coco.name)
            tallies, bad, first_problem = {name: OcrTally() for name in finders}, 0, len(report.problems)
            for image in dataset.coco.select(limit):
                progress.advance(task)
                try:
                    picture, truth = image.read(), dataset.truth(image)
                except (OSError, ValueError) as error:
                    report.problems.append(f"{dataset.coco.path.name}: image {image.id}: {error}")
                    bad += 1
                    continue
                for name, find in finders.items():
                    begin = time.perf_counter()
                    found = find(picture)
                    tallies[name].seconds.append(time.perf_counter() - begin)
                    counts = tallies[name].add(found, truth)
                    if name == model_name:
                        _keep_cases(books, dataset, image, found, truth, counts)
            report.problems += [str(problem) for problem in dataset.coco.problems]
            total = bad + tallies[model_name].images
            if bad > max_bad_share * total:
                raise ValueError(
                    f"{dataset.coco.path}: {bad} of {total} pictures cannot be used (at most {max_bad_share:.0%} "
                    f"allowed). First: {report.problems[first_problem]}"
                )
            name, others = dataset.coco.name, sum(other.coco.name == dataset.coco.name for other in loaded[:number])
            name = f"{name} ({others + 1})" if others else name  # two exports of a tool have the same folder and file
            report.sets[name] = {finder: tally.summary() for finder, tally in tallies.items()}
    report.seconds = round(time.perf_counter() - started, 1)
    if out is not None:
        report.write(Path(out) / "ocr_scores.json")
        write_sheet(books, Path(out) / "ocr_cases.png")
    if console is not None:
        report.print(console)
    return report


def model_finder(reader: TextRegionReader) -> Finder:
    """A text-region model as a finder: everything that it knows, read in one pass."""
    levels = reader.config.levels

    def find(picture: np.ndarray) -> FoundText:
        regions, _ = reader.read(picture, levels)
        empty = np.zeros((0, 4, 2), np.float32)
        words = regions["word"].quads if "word" in regions else empty
        lines = regions["text line"].quads if "text line" in regions else empty
        marked = np.zeros(picture.shape[:2], bool)
        for level in ("word", "text line", "text", "text stroke"):
            if level in regions:
                marked |= regions[level].union_mask()
        strokes = regions["text stroke"].union_mask() if "text stroke" in regions else None
        return FoundText(words, lines, strokes, marked)

    return find


@dataclass
class OcrTally:
    """One finder's scores on one set, as they come in."""

    images: int = 0
    words: RegionCounts = field(default_factory=RegionCounts)
    lines: RegionCounts = field(default_factory=RegionCounts)
    scripts: dict[str, RegionCounts] = field(default_factory=dict)
    strokes: PixelCounts | None = None
    stroke_scripts: dict[str, PixelCounts] = field(default_factory=dict)
    marked: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, found: FoundText, truth: TrueText) -> RegionCounts:
        """Adds a picture; returns its counts of words."""
        self.images += 1
        if truth.is_text_free:
            self.marked.append(float(found.marked.mean()))
        matching = match_polygons(truth.words, truth.ignored_words, list(found.words))
        counts = count_matches(matching, len(truth.words))
        self.words.add(counts)
        scripts = [script_of(text) for text in truth.word_texts]
        for script, part in count_by_script(matching, scripts).items():
            self.scripts.setdefault(script, RegionCounts()).add(part)
        lines = match_polygons(truth.lines, truth.ignored_lines, list(found.lines))
        self.lines.add(count_matches(lines, len(truth.lines)))
        if truth.strokes is not None and found.strokes is not None:
            ignore = np.zeros(found.marked.shape, bool) if truth.ignored_pixels is None else truth.ignored_pixels
            self._add_strokes(found.strokes, truth.strokes, ignore, truth.words, scripts)
        return counts

    def _add_strokes(
        self, found: np.ndarray, true: np.ndarray, ignore: np.ndarray, words: list[np.ndarray], scripts: list[str]
    ) -> None:
        """Ink of a picture, and the same inside the words of each script."""
        self.strokes = self.strokes or PixelCounts()
        self.strokes.add(PixelCounts.of(found, true, ignore))
        for script in set(scripts):
            inside = np.zeros(found.shape, bool)
            for polygon, other in zip(words, scripts, strict=True):
                if other == script:
                    inside |= draw_polygon(polygon, (found.shape[0], found.shape[1]))
            part = PixelCounts.of(found, true, ignore | ~inside)
            self.stroke_scripts.setdefault(script, PixelCounts()).add(part)

    def summary(self) -> FinderScores:
        return FinderScores.of(
            images=self.images,
            words=self.words,
            lines=self.lines,
            scripts=self.scripts,
            strokes=self.strokes,
            stroke_scripts=self.stroke_scripts,
            marked=self.marked,
            seconds=self.seconds,
        )


def _keep_cases(
    books: dict[str, CaseBook],
    dataset: TextDataset,
    image: CocoImage,
    found: FoundText,
    truth: TrueText,
    counts: RegionCounts,
) -> None:
    """The picture's words (by its F) and ink (by its IoU) for the sheet."""
    size_hw = (image.height, image.width)
    caption = f"{dataset.coco.name} {image.path.stem}"

    def keep(title: str, score: float, prediction: np.ndarray, target: np.ndarray) -> None:
        case = Case(score, caption, image.path, encode_mask(prediction), encode_mask(target))
        books.setdefault(title, CaseBook()).add_image([case])

    score: Any = counts.scores()["f"]
    if truth.words and score is not None:
        keep("words, F of the picture", score, _fill(found.words, size_hw), _fill(truth.words, size_hw))
    if truth.strokes is not None and truth.strokes.any() and found.strokes is not None:
        iou: Any = PixelCounts.of(found.strokes, truth.strokes, truth.ignored_pixels).scores()["fgiou"]
        keep("ink, IoU", iou or 0.0, found.strokes, truth.strokes)


def _fill(polygons: Sequence[np.ndarray] | np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    for polygon in polygons:
        mask |= draw_polygon(polygon, size_hw)
    return mask
