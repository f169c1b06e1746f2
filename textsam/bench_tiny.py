"""Latency of the embedded model: from import to masks, on a photo of 640 x 480 px."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from textsam.checkpoints.loading import load

_START = (
    "import time; t = time.perf_counter(); import textsam; textsam.load(); print(time.perf_counter() - t, {marker!r})"
)


@dataclass(frozen=True)
class Latency:
    """One line of the table.

    Attributes:
        work: what was done. seconds: of each run.
    """

    work: str
    seconds: list[float]


def measure_tiny(rounds: int) -> list[Latency]:
    """Import and load in a fresh process; then, after one warm-up each, words, a first and a further click, and one
    that corrects a mask.

    Raises:
        ImportError: scikit-image, whose photo is asked, is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError('This measures on a photo of scikit-image: pip install "textsam[demo]".') from error
    photo = np.asarray(Image.fromarray(data.coffee()).resize((640, 480)))
    sam = load(device="cpu")

    def words() -> None:
        if not len(sam.predict(photo, text="cup")):
            raise RuntimeError("Expected the cup to be found: its time would mean nothing otherwise.")

    def first_click() -> None:
        sam.set_image(photo)
        click()

    def click() -> None:
        sam.predict(points=[[320, 220]], point_labels=[1])

    def correction() -> None:
        sam.predict(points=[[320, 220], [360, 180]], point_labels=[1, 1], mask_input=former)

    rows = [Latency("import and load, new process", [_start_up() for _ in range(min(rounds, 3))])]
    jobs: list[tuple[str, Callable[[], None]]] = [
        ("words to masks, photo included", words),
        ("photo and first click", first_click),
        ("further click", click),
        ("click that corrects a mask", correction),
    ]
    sam.set_image(photo)
    former = sam.predict(points=[[320, 220]], return_logits=True).data["low_res_logits"]
    for name, job in jobs:
        job()
        rows.append(Latency(name, [_seconds(job) for _ in range(rounds)]))
    return rows


def _seconds(job: Callable[[], None]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _start_up() -> float:
    """Seconds, without those in which Python itself starts."""
    marker = "seconds"
    command = [sys.executable, "-c", _START.format(marker=marker)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    line = next(line for line in done.stdout.splitlines() if line.endswith(marker))
    return float(line.split()[0])


def table_of_tiny(rows: list[Latency]) -> Table:
    """The figures for people."""
    table = Table(title=f"textsam-tiny, 640 x 480 px, {torch.get_num_threads()} threads", caption="seconds")
    for column in ("work", "minimum", "median"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for row in rows:
        table.add_row(row.work, f"{min(row.seconds):.3f}", f"{statistics.median(row.seconds):.3f}")
    return table
