"""Scores of any model on COCO-format data: boxes, simulated clicks, words, words with a click, absence.

    textsam evaluate DATA/val.json MORE/val.json --prompts all

Words are scored against `NAME_semantic.json` beside `NAME.json` where there is one (unions by class); what its
`void_rle` marks counts for no prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from textsam import __version__
from textsam.evaluation.geometry import choose, score_geometry
from textsam.evaluation.options import DECODER_BATCH, EvaluationOptions, Promptable
from textsam.evaluation.report import MAX_PROBLEMS, Report, Tally, add_up, mean_of_sets, summarise
from textsam.evaluation.sheet import Case, CaseBook, geometry_cases, text_cases, write_sheet
from textsam.evaluation.text import known_names, score_text, semantic_truth
from textsam.files.coco import CocoDataset, CocoImage, Problem, load_coco


@dataclass
class _State:
    """What a run gathers beside the scores."""

    problems: list[Problem] = field(default_factory=list)
    books: dict[str, CaseBook] = field(default_factory=dict)


def run(
    datasets: str | Path | Sequence[str | Path],
    model: Promptable | str | Path | None = None,
    *,
    images: str | Path | None = None,
    out: str | Path | None = None,
    model_name: str | None = None,
    options: EvaluationOptions | None = None,
    console: Console | None = None,
) -> Report:
    """Scores a model on COCO instances files.

    Args:
        datasets: one file or several.
        model: a loaded model, or what `textsam.load` takes; None for the embedded model.
        images: the folder of the pictures; by default `images/` beside each file, else its own folder.
        out: folder for `scores.json` and `cases.png`; None writes nothing.
        model_name: of a loaded model, for the report.
        options: what to score.
        console: where the progress bar and the table go; None for no output.
    Raises:
        FileNotFoundError, ValueError: a file, folder or option is wrong, or too much of a file is bad.
    """
    options = options or EvaluationOptions()
    started = time.perf_counter()
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # a wrong one is told now, and not after all the work
    paths = [datasets] if isinstance(datasets, str | Path) else list(datasets)
    if not paths:
        raise ValueError("no data set given: name at least one COCO instances file")
    loaded = [load_coco(path, images, max_bad_share=options.max_bad_share) for path in paths]
    truths = [_semantic_file(dataset, images, options.max_bad_share) for dataset in loaded]
    name = model_name or _model_name(model)
    if model is None or isinstance(model, str | Path):
        from textsam.checkpoints.loading import load

        model = load(model)
    state = _State()
    tallies = []
    with _progress(console) as progress:
        task = progress.add_task("", total=sum(len(d.select(options.limit)) for d in loaded))
        for dataset, truth in zip(loaded, truths, strict=True):
            progress.update(task, description=dataset.name)
            state.problems += dataset.problems + (truth.problems if truth else [])
            tallies.append(_evaluate_set(model, dataset, truth, options, state, lambda: progress.advance(task)))
    summaries = [summarise(tally) for tally in tallies]
    report = Report(
        model=name,
        version=__version__,
        options=asdict(options),
        sets=summaries,
        overall=add_up(tallies),
        mean_of_sets=mean_of_sets(summaries),
        problem_count=len(state.problems),
        problems=[str(problem) for problem in state.problems[:MAX_PROBLEMS]],
        seconds=round(time.perf_counter() - started, 1),
    )
    if out is not None:
        report.write(Path(out) / "scores.json")
        write_sheet(state.books, Path(out) / "cases.png")
    if console is not None:
        report.print(console)
    return report


def _evaluate_set(
    model: Promptable,
    dataset: CocoDataset,
    truth: CocoDataset | None,
    options: EvaluationOptions,
    state: _State,
    advance: Callable[[], None],
) -> Tally:
    tally = Tally(name=dataset.name, truth=(truth or dataset).path.name if options.asks("text") else None)
    semantic = {image.id: image for image in truth} if truth else {}
    selected = dataset.select(options.limit)
    wants_words = any(options.asks(prompt) for prompt in ("text", "text+point", "text+box"))
    for image in selected:
        advance()
        try:
            picture = image.read()
        except (OSError, ValueError) as error:
            state.problems.append(Problem(dataset.path.name, "image", str(image.id), str(error)))
            tally.images_left_out += 1
            if tally.images_left_out > options.max_bad_share * len(selected):
                raise ValueError(
                    f"{dataset.path}: {tally.images_left_out} of {len(selected)} images are bad (at most "
                    f"{options.max_bad_share:.0%} allowed). Last: {state.problems[-1]}"
                ) from error
            continue
        tally.images += 1
        model.set_image(picture)
        if wants_words and not tally.names and not tally.unknown_names:
            tally.names, tally.unknown_names = known_names(model, list(dataset.categories.values()))
        if any(options.asks(prompt) for prompt in ("box", "point", "text+point", "text+box")):
            # What one of the two files leaves open, the other cannot tell either.
            ignore = image.ignore_mask() | semantic.get(image.id, image).ignore_mask()
            _evaluate_geometry(model, dataset, image, ignore, options, tally, state)
        if options.asks("text"):
            present = semantic_truth(semantic[image.id], truth) if truth and image.id in semantic else None
            present = present or semantic_truth(image, dataset)
            scores = score_text(model, image, dataset, present, tally.names, tally.images)
            tally.text.extend(scores)
            cases = text_cases(dataset.name, image, present, scores)
            state.books.setdefault("text", CaseBook(options.columns)).add_image(cases)
    return tally


def _evaluate_geometry(
    model: Promptable,
    dataset: CocoDataset,
    image: CocoImage,
    ignore: np.ndarray,
    options: EvaluationOptions,
    tally: Tally,
    state: _State,
) -> None:
    regions = [r for r in image.instances if not ignore.any() or (r.mask() & ~ignore).any()]
    chosen = choose(regions, options.max_instances, f"{options.seed} {image.id}")
    tally.instances += len(chosen)
    tally.instances_left_out += len(regions) - len(chosen)
    known = set(tally.names)
    cases: dict[str, list[Case]] = {}
    for start in range(0, len(chosen), DECODER_BATCH):
        batch = chosen[start : start + DECODER_BATCH]
        targets = np.stack([region.mask() for region in batch])
        names = [str(dataset.name_of(region)) for region in batch]
        asked = [name if name in known else None for name in names]
        scores = score_geometry(model, targets, asked, ignore, options)
        tally.geometry.extend(scores)
        for prompt, found in geometry_cases(dataset.name, image, batch, names, scores).items():
            cases.setdefault(prompt, []).extend(found)
    for prompt, found in cases.items():
        state.books.setdefault(prompt, CaseBook(options.columns)).add_image(found)


def _semantic_file(dataset: CocoDataset, images: str | Path | None, max_bad_share: float) -> CocoDataset | None:
    """`NAME_semantic.json` beside NAME.json, when it is there; it speaks of the same images."""
    path = dataset.path.with_name(f"{dataset.path.stem}_semantic.json")
    return load_coco(path, images, max_bad_share=max_bad_share) if path.is_file() else None


def _model_name(model: object) -> str:
    if model is None or isinstance(model, str | Path):
        return "textsam-tiny" if model is None else str(model)
    config = getattr(getattr(model, "model", None), "config", None)
    name = str(getattr(config, "name_or_path", "")) or type(model).__name__
    return Path(name).name if Path(name).is_absolute() else name


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=console is None)
