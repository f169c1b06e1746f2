"""Speed beside transformers' `SamModel`: same random weights, same process, outputs compared.

Runs alternate (ours, theirs, ours, ...), so that a busy machine slows both alike; ratios are of the minima. "generate"
is everything after the image encoder. Theirs is the released order of steps on transformers' decoder: all masks are
upscaled to the photo, then scored, filtered, and run-length encoded, then suppressed. GPUs: see `bench_gpu`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from textsam.bench_curves import measure_curves, write_curves
from textsam.bench_gpu import GPU_SIZES, run_gpu
from textsam.bench_jobs import SIZES, build_pair, decoder_job, encoder_job, generate_job, mask_difference
from textsam.bench_memory import peak_mb
from textsam.bench_tiny import measure_tiny, table_of_tiny
from textsam.checkpoints.devices import has_fast_bfloat16
from textsam.native import library


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what was done. dtype: of weights and activations.
        ours_s, theirs_s: seconds of each run. ratio: theirs over ours, of the minima.
        difference: largest difference of the outputs over the largest value; for `generate` 1 minus the mean IoU of
            the masks, each with the one most like it; for bfloat16 RMS of ours against float32 over RMS of float32.
        their_difference: for bfloat16, the same of theirs; else None.
        ours_mb, theirs_mb: peak memory above the weights and inputs in the first run; None where it is not known.
    """

    work: str
    dtype: str
    ours_s: list[float]
    theirs_s: list[float]
    ratio: float
    difference: float
    their_difference: float | None
    ours_mb: float | None
    theirs_mb: float | None


def run(
    size: str = "b",
    rounds: int = 5,
    threads: int = 0,
    device: str = "cpu",
    dtype: str = "all",
    work: str = "all",
    out: Path = Path("bench.json"),
    console: Console | None = None,
    curves: Path | None = None,
    budget: float = 600.0,
) -> None:
    """Measure against transformers' `SamModel` on random weights, print the table, write the figures.

    Args:
        size: "b", "l", "h" or "tiny"; on a GPU also "all", largest first. rounds: timed pairs of runs.
        threads: 0 leaves torch's choice.
        dtype: "float32", "bfloat16" or "all", which is both where the CPU has bfloat16.
        work: "encoder", "decoder", "generate", "tiny" (latency of the embedded model) or "all".
        out: a JSON file.
        curves: measure how time and memory grow on the CPU instead, and write this JSON file and a PNG beside it.
        budget: seconds after which, on a GPU, no further row is begun.
    Raises:
        ValueError: a choice that there is not, or work or dtype picked on a GPU.
    """
    for name, value, known in (
        ("size", size, [*SIZES, "all"] if device.startswith("cuda") else [*SIZES]),
        ("dtype", dtype, ["all", "float32", "bfloat16"]),
        ("work", work, ["all", "encoder", "decoder", "generate", "tiny"]),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, but is {value!r}.")
    if device.startswith("cuda") and (work not in ("all", "tiny") or dtype != "all"):
        raise ValueError(
            f"on a GPU all rows are measured in turn, not work {work!r} in dtype {dtype!r} alone; leave both out, and "
            "give a budget in seconds."
        )
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for {out.name}: make it, or give another --out.")
    if threads:
        torch.set_num_threads(threads)
    console = console or Console()
    os.environ.setdefault("TEXTSAM_NATIVE", "wait")  # what is measured must not change half-way
    console.print(f"Compiled kernels: {library.state()}", soft_wrap=True)
    if curves is not None:
        picture = write_curves(measure_curves(size, rounds, console), curves)
        console.print(f"Curves: {curves}, {picture}")
        return
    if device.startswith("cuda") and work != "tiny":
        run_gpu(GPU_SIZES if size == "all" else [size], rounds, torch.device(device), budget, out, console)
        return
    dtypes = [torch.float32, torch.bfloat16] if dtype == "all" else [getattr(torch, dtype)]
    if dtype == "all" and not has_fast_bfloat16(torch.device(device)):
        # Emulated, both sides take many minutes for one image.
        console.print("bfloat16 is left out: this CPU lacks instructions for it (--dtype bfloat16 measures it anyway).")
        dtypes = [torch.float32]
    rows = measure(size, rounds, torch.device(device), dtypes, work, console) if work != "tiny" else []
    latencies = measure_tiny(rounds) if work == "tiny" or (work == "all" and size != "tiny") else []
    if not rows and not latencies:
        raise ValueError(f"there is nothing to measure of work {work!r} in dtype {dtype!r}: choose another of them.")
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": platform.processor() or device,
        "kernels": library.state(),
    }
    if rows:
        console.print(table_of(rows, f"ViT-{size.upper()}, {machine['device']}, {machine['threads']} threads"))
    if latencies:
        console.print(table_of_tiny(latencies))
    figures = {"rows": [asdict(row) for row in rows], "latencies": [asdict(row) for row in latencies]}
    out.write_text(json.dumps({"size": size, **machine, **figures}, indent=1))
    console.print(f"Figures: {out}")


@torch.inference_mode()
def measure(
    size: str, rounds: int, device: torch.device, dtypes: list[torch.dtype], work: str, console: Console
) -> list[Row]:
    """All rows of the table, largest work first."""
    theirs, ours = build_pair(size)
    theirs.to(device)
    ours.to(device)  # type: ignore[arg-type]  # of transformers' wrapper
    side = ours.config.image_size
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, side, side, generator=generator).to(device)
    rows, reference = [], None
    for dtype in dtypes:
        theirs.to(dtype)
        ours.to(dtype)  # type: ignore[arg-type]
        jobs: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = []
        if work in ("all", "encoder"):
            jobs.append(encoder_job(ours, theirs, pixels.to(dtype)))
        embeddings = torch.randn(1, 256, side // 16, side // 16, generator=generator).to(device, dtype)
        if work in ("all", "decoder"):
            jobs += [decoder_job(ours, theirs, embeddings, count) for count in (1, 64)]
        if work in ("all", "generate") and dtype == torch.float32:
            jobs.append(generate_job(ours, theirs, embeddings, points_per_side=4 if size == "tiny" else 32))
        for name, our_job, their_job in jobs:
            with console.status(f"{name}, {str(dtype).removeprefix('torch.')}"):
                row, output = _measure_row(name, dtype, our_job, their_job, rounds, device, reference)
            reference = output if name == "encoder" and dtype == torch.float32 else reference
            rows.append(row)
    return rows


def _measure_row(
    name: str,
    dtype: torch.dtype,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    rounds: int,
    device: torch.device,
    reference: Any,
) -> tuple[Row, Any]:
    output, ours_mb = peak_mb(ours, device)
    expected, theirs_mb = peak_mb(theirs, device)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for job, seconds in zip((ours, theirs), times, strict=True):
            seconds.append(_seconds(job, device))
    ratio = min(times[1]) / min(times[0])
    their_difference = None
    if dtype == torch.bfloat16 and name == "encoder" and reference is not None:
        difference, their_difference = (_rms_difference(x, reference) for x in (output, expected))
    else:
        difference = _difference(output, expected)
    label = str(dtype).removeprefix("torch.")
    return Row(name, label, *times, ratio, difference, their_difference, ours_mb, theirs_mb), output


def _seconds(job: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _difference(output: Any, expected: Any) -> float:
    if isinstance(output, Tensor):
        return ((output.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
    return mask_difference(output, expected)


def _rms_difference(output: Tensor, reference: Tensor) -> float:
    return ((output.float() - reference).square().mean() / reference.square().mean()).sqrt().item()


def table_of(rows: list[Row], title: str) -> Table:
    """The figures for people."""
    table = Table(title=title, caption="seconds: minimum / median; MB: peak above the weights")
    for column in ("work", "dtype", "TextSAM, s", "transformers, s", "ratio", "difference", "TextSAM, MB", "tr., MB"):
        table.add_column(column, justify="left" if column in ("work", "dtype") else "right", overflow="fold")
    for row in rows:
        seconds = [f"{min(x):.3f} / {statistics.median(x):.3f}" for x in (row.ours_s, row.theirs_s)]
        difference = f"{row.difference:.1e}"
        if row.their_difference is not None:
            difference += f" (theirs {row.their_difference:.1e})"
        memory = ["-" if x is None else f"{x:.0f}" for x in (row.ours_mb, row.theirs_mb)]
        table.add_row(row.work, row.dtype, *seconds, f"{row.ratio:.2f}", difference, *memory)
    return table
