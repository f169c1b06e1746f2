"""`textsam video`: words on every frame of a video, each object with its number."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from textsam.commands.options import Adapter, Clip, Device, Dtype, Model, NegativeText, Threshold, parse_names
from textsam.commands.run import check_words, console, count_of, load, progress_bar

if TYPE_CHECKING:
    from textsam.files.images import RgbImage

Texts = Annotated[list[str], typer.Option("--text", metavar="TEXT", help="What to find; repeatable or with commas.")]


def video(
    source: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")],
    text: Texts,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new video, such as out.mp4.")],
    negative_text: NegativeText = None,
    track: Annotated[
        Literal["bytetrack", "mask"],
        typer.Option("--track", help="Ask every frame and join boxes; or let each mask prompt the next frame."),
    ] = "bytetrack",
    ask_every: Annotated[
        int,
        typer.Option(
            "--ask-every",
            min=1,
            help="With --track mask: frames from one asking to the next, while anything is followed.",
        ),
    ] = 10,
    model: Model = None,
    clip: Clip = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: Dtype = None,
    threshold: Threshold = None,
    sound: Annotated[bool, typer.Option(help="Copy the sound, untouched.")] = True,
    records: Annotated[
        Path | None,
        typer.Option(
            "--records",
            metavar="JSONL",
            help="Also write the objects of each frame, a line a frame; an interrupted run goes on from them.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE, and the records, if there.")] = False,
) -> None:
    """Find words in a video and follow them: tinted, outlined and numbered; the sound stays as it is.

    The new file appears when it is whole; an interrupted run leaves nothing behind but the records, where there are
    any: with them, the same command looks only at the frames that are missing, and draws all of them.
    """
    from textsam.files.export import draw_overlay
    from textsam.files.frame_records import FrameRecords
    from textsam.files.runs import file_identity, weights_identity
    from textsam.files.video import read_facts, rewrite_video
    from textsam.tracking import ByteTracking, MaskTracking, Tracker

    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; give another name, or --overwrite.", param_hint="--out")
    if not out.parent.is_dir():  # before --overwrite removes the records
        raise typer.BadParameter(f"There is no folder {out.parent} for {out.name}.", param_hint="--out")
    if records is not None and records.resolve() in (source.resolve(), out.resolve()):
        raise typer.BadParameter(f"{records} is one of the videos; give another name.", param_hint="--records")
    names, negatives = parse_names(text, "--text"), parse_names(negative_text, "--negative-text")
    facts = read_facts(source)
    sam = load(model, clip=clip, adapter=adapter, device=device, dtype=dtype)
    check_words([*names, *negatives], sam)
    shared: dict[str, Any] = {"threshold": threshold, "negative_texts": negatives}
    if track == "mask":
        tracker: Tracker = MaskTracking(sam, names, ask_every=ask_every, **shared)
    else:
        tracker = ByteTracking(sam, names, frame_rate=facts.frame_rate, **shared)
    followed: dict[str, set[int]] = {name: set() for name in names}
    journal = None
    if records is not None:
        if overwrite:
            records.unlink(missing_ok=True)
        settings: dict[str, Any] = {"texts": names, "negative_texts": negatives, "threshold": threshold, "track": track}
        weights = [str(sam.network.dtype), *weights_identity(model, adapter)]
        settings |= {"ask_every": ask_every, "model": [model, clip, adapter, *weights]}
        journal = FrameRecords(records, {"settings": settings, "source": file_identity(source)})
    before = journal.replayed() if journal is not None else iter(())
    places = itertools.count()

    def change(frame: RgbImage) -> RgbImage:
        place, found = next(places), next(before, None)
        if found is not None:
            tracker.replay(found)
        else:
            found = tracker(frame)
            if journal is not None:
                journal.add(frame, place, found)
        for name, number in zip(found.data["class_name"], found.tracker_id, strict=True):
            followed[str(name)].add(int(number))
        return draw_overlay(frame, found)

    started = time.perf_counter()
    with progress_bar("frames") as progress:
        task = progress.add_task("", total=facts.frames)
        try:
            count = rewrite_video(source, out, change, sound=sound, on_frame=lambda: progress.advance(task))
        finally:
            if journal is not None:
                journal.close()
    rate = count / (time.perf_counter() - started)
    if journal is not None and journal.count:
        console.print(f"{count_of(journal.count, 'frame')} of a former run taken from {records}", highlight=False)
    found_names = ", ".join(f"{count_of(len(numbers), name)}" for name, numbers in followed.items())
    console.print(
        f"{found_names} in {count_of(count, 'frame')}, {rate:.2f} frames/s: {out}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
