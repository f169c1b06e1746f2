"""`textsam video`: words on every frame of a video, each object with its number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from textsam.commands.options import Adapter, Clip, Device, Dtype, Model, parse_names
from textsam.commands.run import check_words, console, count_of, errors, load

if TYPE_CHECKING:
    from textsam.files.images import RgbImage

Texts = Annotated[list[str], typer.Option("--text", metavar="TEXT", help="What to find; repeatable or with commas.")]


def video(
    source: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")],
    text: Texts,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new video, such as out.mp4.")],
    negative_text: Annotated[
        list[str] | None,
        typer.Option("--negative-text", metavar="TEXT", help="What not to find instead; as --text."),
    ] = None,
    track: Annotated[
        Literal["bytetrack", "mask"],
        typer.Option("--track", help="Ask every frame and join boxes; or let each mask prompt the next frame."),
    ] = "bytetrack",
    ask_every: Annotated[
        int, typer.Option("--ask-every", min=1, help="With --track mask: frames from one asking to the next.")
    ] = 10,
    model: Model = None,
    clip: Clip = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: Dtype = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="Least confidence. Default: the model's own.")
    ] = None,
    sound: Annotated[bool, typer.Option(help="Copy the sound, untouched.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
) -> None:
    """Find words in a video and follow them: tinted, outlined and numbered; the sound stays as it is.

    The new file appears when it is whole; an interrupted run leaves nothing behind.
    """
    from textsam.files.export import draw_overlay
    from textsam.files.video import read_facts, rewrite_video
    from textsam.tracking import ByteTracking, MaskTracking, Tracker

    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; give another name, or --overwrite.", param_hint="--out")
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

    def change(frame: RgbImage) -> RgbImage:
        found = tracker(frame)
        for name, number in zip(found.data["class_name"], found.tracker_id, strict=True):
            followed[str(name)].add(int(number))
        return draw_overlay(frame, found)

    started = time.perf_counter()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("frames"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=facts.frames)
        count = rewrite_video(source, out, change, sound=sound, on_frame=lambda: progress.advance(task))
    rate = count / (time.perf_counter() - started)
    found_names = ", ".join(f"{count_of(len(numbers), name)}" for name, numbers in followed.items())
    console.print(
        f"{found_names} in {count_of(count, 'frame')}, {rate:.2f} frames/s: {out}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
