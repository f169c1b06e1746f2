"""`textsam label`: what to do, who does it, how far it is, and what came of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from textsam.commands.options import Adapter, Cache, Clip, Device, Dtype, Model, Out, Slice
from textsam.commands.run import console, count_of, errors, progress_bar

MAX_ERRORS_SHOWN = 10


def label(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder, glob, .txt of addresses, .parquet, a URL of these (s3://...), COCO .json, or datasets:NAME.",
        ),
    ],
    classes: Annotated[
        Path,
        typer.Option(
            "--classes",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="One class per line, such as: dog = dog | puppy @ 0.5",
        ),
    ],
    out: Out = Path("labels"),
    model: Model = None,
    clip: Clip = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: Dtype = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="Least confidence of classes without their own.")
    ] = None,
    max_instances: Annotated[
        int | None, typer.Option("--max-instances", min=1, help="At most so many objects of each class.")
    ] = None,
    slice: Slice = None,
    cache: Cache = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures of a shard, which a kill loses at most.")] = 500,
    coco: Annotated[bool, typer.Option(help="Write annotations.json beside the parquet shards.")] = True,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="This process, or the workers of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Of the cluster: auto, ray://head:10001. Default: a Ray on this machine."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Of Ray. Default: one for each GPU, or one.")
    ] = None,
) -> None:
    """Label very many pictures: sharded parquet and COCO; started again, it goes on where it stopped."""
    if engine == "local" and (address or workers):
        raise typer.BadParameter("go with --engine ray.", param_hint="--address, --workers")
    run_label(
        source,
        classes,
        out,
        shard_size=shard_size,
        coco=coco,
        ray_options=(address, workers) if engine == "ray" else None,
        model=model,
        clip=clip,
        adapter=adapter,
        device=device,
        dtype=dtype,
        threshold=threshold,
        max_instances=max_instances,
        slice=slice,
        cache=None if cache is None else str(cache.resolve()),
    )


def run_label(
    source: str,
    classes: Path,
    out: Path,
    *,
    shard_size: int,
    coco: bool,
    ray_options: tuple[str | None, int | None] | None,
    **options: Any,
) -> None:
    """Labels what is not yet labelled, gathers all, and reports; exit code 1 when a picture could not be labelled.

    Args:
        ray_options: address of the cluster and number of workers; None: this process.
        options: of `LabelSettings`, without the classes.
    """
    from textsam.labelling.engines import RayOptions, run_local, run_ray
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
    left = {shard: folder.left(shard, size) for shard, size in sizes.items()}
    todo = [shard for shard, count in left.items() if count]
    total, before = sum(sizes.values()), sum(sizes.values()) - sum(left.values())
    started = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("", total=total, completed=before)
        done = failed = 0

        def advance(good: int, bad: int) -> None:
            nonlocal done, failed
            done, failed = done + good + bad, failed + bad
            rate = done / (time.perf_counter() - started)
            progress.update(task, completed=before + done, description=f"{rate:.1f} pictures/s, {failed} failed")

        try:
            if todo and ray_options is None:
                for _ in run_local(settings, str(out), todo, lambda good: advance(int(good), int(not good))):
                    pass
            elif todo and ray_options is not None:
                for good, bad in run_ray(settings, str(out.resolve()), todo, RayOptions(*ray_options)):
                    advance(good, bad)
        except Exception:
            folder.forget_settings()
            raise
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
