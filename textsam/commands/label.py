"""`textsam label`: what to do, who does it, how far it is, and what came of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from textsam.commands.run import console, count_of, errors

MAX_ERRORS_SHOWN = 10


def run_label(
    source: str,
    classes: Path,
    out: Path,
    *,
    shard_size: int,
    coco: bool,
    **options: Any,
) -> None:
    """Labels what is not yet labelled, gathers all, and reports; exit code 1 when a picture could not be labelled.

    Args:
        options: of `LabelSettings`, without the classes.
    """
    from textsam.labelling.engines import run_local
    from textsam.labelling.shards import RunFolder
    from textsam.labelling.sources import list_pictures
    from textsam.labelling.step import LabelSettings
    from textsam.language.queries import QueryList

    names = QueryList.read(classes).names
    settings = LabelSettings(tuple(classes.read_text("utf-8-sig").splitlines()), **options)
    with errors.status("Listing the pictures"):
        references = list_pictures(source)
    folder = RunFolder(out)
    folder.check_settings(settings.identity())
    sizes = folder.plan(references, shard_size)
    todo = [shard for shard in sizes if not folder.is_done(shard)]
    total, before = sum(sizes.values()), sum(sizes.values()) - sum(sizes[shard] for shard in todo)
    started = time.perf_counter()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=before)
        done = failed = 0

        def advance(good: int, bad: int) -> None:
            nonlocal done, failed
            done, failed = done + good + bad, failed + bad
            rate = done / (time.perf_counter() - started)
            progress.update(task, completed=before + done, description=f"{rate:.1f} pictures/s, {failed} failed")

        if todo:
            for _ in run_local(settings, str(out), todo, lambda good: advance(int(good), int(not good))):
                pass
    seconds = time.perf_counter() - started
    pictures, objects, bad_rows = folder.gather(list(sizes), names, coco=coco)
    stored = sum(folder.shard_path(shard).stat().st_size for shard in sizes)
    counts = [f"{count_of(objects, 'object')} in {count_of(pictures, 'picture')}"]
    counts += [f"{before} done before"] * bool(before)
    counts += [f"{done / seconds:.2f} pictures/s with loading"] * bool(done)
    counts += [f"{stored / max(total, 1):,.0f} bytes for each"]
    counts += [f"{len(bad_rows)} failed, see errors.parquet"] * bool(bad_rows)
    console.print(f"{', '.join(counts)}: {out}", markup=False, highlight=False, soft_wrap=True)
    for row in bad_rows[:MAX_ERRORS_SHOWN]:
        errors.print(f"textsam: {row['key']}: {row['error']}", markup=False, highlight=False, soft_wrap=True)
    if bad_rows:
        raise typer.Exit(1)
