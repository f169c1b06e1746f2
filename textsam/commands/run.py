"""What the commands that go over pictures do between the options and the results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import supervision as sv

    from textsam.files.images import RgbImage
    from textsam.files.runs import RunSummary
    from textsam.files.text_runs import TextRunSummary
    from textsam.predictor import TextSam

# Consoles write to whatever sys.stdout and sys.stderr are at that time.
console = Console()
errors = Console(stderr=True)

MAX_ROWS = 30  # of the table of objects


def one_sentence(error: BaseException) -> str:
    """An error as one line for a person."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."


def load(model: str | None, **options: Any) -> TextSam:
    from textsam.checkpoints import loading

    with errors.status("Loading the model"):
        return loading.load(model, **options)


def pictures(source: Path) -> list[Path]:
    """The picture files meant by the argument; one that cannot be read is found out when its turn comes."""
    from textsam.files.images import list_images

    if source.is_dir():
        return list_images(source)
    if not source.exists():
        raise typer.BadParameter(f"there is no file or folder {source}.", param_hint="IMAGE|FOLDER")
    return [source]


def check_words(names: list[str], sam: TextSam, option: str = "--text") -> None:
    """Finds a word that the model does not know before the first picture, rather than once for each."""
    if names and sam.text_encoder is not None:
        try:
            sam.text_encoder.encode(names)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error


def check_question(sam: TextSam, options: dict[str, Any], in_slices: bool = False) -> None:
    """Finds options that do not go together before the first picture, rather than once for each."""
    from textsam.prompting.questions import ask
    from textsam.slicing import refuse_levels

    try:
        question = ask(**options)
        if sam.text_reader is not None:
            sam.text_reader.levels_asked(question.texts, question.negative_texts)
        if in_slices:
            refuse_levels(sam, question.texts or [])
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="segment") from error


def file_stamp(path: Path | None) -> list[Any] | None:
    return None if path is None else [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]


def progress_bar(text: str = "{task.description}") -> Progress:
    """On stderr, where somebody looks; gone when all is done."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(text, markup=False))
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


def run(paths: list[Path], out: Path, predict: Callable[[RgbImage], sv.Detections], **options: Any) -> None:
    """Runs over the pictures under a progress bar and reports; exit code 1 when any failed."""
    from textsam.files.runs import run_images

    with picture_progress(len(paths)) as advance:
        summary = run_images(paths, out, predict, on_picture=advance, **options)
    objects = [annotation for record in summary.records for annotation in record.objects]
    if objects and len(summary.records) == 1:
        console.print(object_table(objects))
    report(count_of(len(objects), "object"), summary, out)


@contextmanager
def picture_progress(total: int) -> Iterator[Callable[[Path, str], None]]:
    """A progress bar over pictures; what it gives is told each one and its outcome."""
    with progress_bar() as progress:
        task = progress.add_task("", total=total)
        yield lambda path, outcome: progress.update(task, advance=1, description=f"{path.name} {outcome}")


def report(found: str, summary: RunSummary | TextRunSummary, out: Path) -> None:
    """What was found; then the failures, one sentence each on stderr, and exit code 1 when there are any."""
    counts = [f"{found} in {count_of(len(summary.records), 'picture')}"]
    counts += [f"{summary.skipped} done before"] * bool(summary.skipped)
    counts += [f"{len(summary.failures)} failed"] * bool(summary.failures)
    console.print(f"{', '.join(counts)}: {out / 'annotations.json'}", markup=False, highlight=False, soft_wrap=True)
    for path, sentence in summary.failures.items():
        errors.print(f"textsam: {path}: {sentence}", markup=False, highlight=False, soft_wrap=True)
    if summary.failures:
        raise typer.Exit(1)


def object_table(annotations: list[dict[str, Any]]) -> Table:
    """Name, confidence, box and area of each object."""
    table = Table("object", "confidence", "box x, y, w, h", "area px")
    for annotation in annotations[:MAX_ROWS]:
        box = ", ".join(f"{value:.0f}" for value in annotation["bbox"])
        score = annotation.get("score")
        table.add_row(
            escape(annotation["category_name"]), "" if score is None else f"{score:.2f}", box, f"{annotation['area']:,}"
        )
    if len(annotations) > MAX_ROWS:
        table.add_row(f"... and {len(annotations) - MAX_ROWS} more", "", "", "")
    return table


def count_of(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
