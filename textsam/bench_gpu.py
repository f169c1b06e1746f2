"""Speed on a GPU beside transformers' `SamModel` with its SDPA: eager and compiled, same weights, same process.

Rows are in order of interest and the figures are written after each, so that a run that is cut short loses only what
it had not begun; what fails is written down and passed over. Samples of the two sides alternate, and each waits for the
GPU. In float32 the outputs are compared with each other; in bfloat16 each side's with float32.

Compiled means `torch.compile` of each block of the encoder, which takes seconds and fuses all but the seams of blocks;
"compiled whole" is the encoder in one piece. "CUDA graph" is ours, compiled, as one launch; theirs copies indices from
the CPU on the way and cannot be captured.
"""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from textsam.bench_jobs import build_pair, decoder_job, encoder_job, generate_job, mask_difference
from textsam.bench_memory import peak_mb

GPU_SIZES = ("h", "l", "b")
_BATCH = 8
# Calls of a sample: together they take at least this long, so that waiting for the GPU does not count.
_SAMPLE_SECONDS = 0.03
Job = Callable[[], Any]


@dataclass(frozen=True)
class GpuRow:
    """One line of the table.

    Attributes:
        size, work, dtype: what was done. way: "eager", "compiled", ... count: images or prompts of a call.
        ours_s, theirs_s: seconds of a call, one per sample; empty where a side was left out or only compared.
        ours_per_s, theirs_per_s: images or prompts per second, by the fastest sample.
        ratio: theirs over ours, of the fastest samples.
        difference, their_difference: float32: largest difference of the two outputs over the largest value, or for
            `generate` 1 - the mean IoU of masks; bfloat16: RMS of the difference from float32 over RMS of float32.
        ours_mb, theirs_mb: peak memory above weights and inputs.
        ready_s: seconds until the first results, compiling included.
    """

    size: str
    work: str
    way: str
    dtype: str
    count: int
    ours_s: list[float]
    theirs_s: list[float]
    ours_per_s: float | None
    theirs_per_s: float | None
    ratio: float | None
    difference: float | None
    their_difference: float | None
    ours_mb: float | None
    theirs_mb: float | None
    ready_s: float


class Record:
    """Rows and failures, written after each; knows when to stop.

    Args:
        out: a JSON file. budget: seconds from now after which nothing new begins.
    """

    def __init__(self, device: torch.device, out: Path, budget: float, rounds: int, console: Console) -> None:
        self.device, self.out, self.rounds, self.console = device, out, rounds, console
        self.rows: list[GpuRow] = []
        self.failures: list[dict[str, str]] = []
        self._start, self._budget = time.perf_counter(), budget
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.machine = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": name}

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """What goes wrong inside is written down, and the next row may begin."""
        try:
            yield
        except Exception:  # noqa: BLE001 (whatever it is, the other rows count)
            self.failures.append({"row": name, "traceback": traceback.format_exc()})
            self.console.print(f"{name}: failed\n{traceback.format_exc()[-1500:]}", markup=False, soft_wrap=True)
        self.write()

    def has_time(self, name: str) -> bool:
        """Whether another row may begin; says so if not."""
        left = time.perf_counter() - self._start < self._budget
        if not left:
            self.failures.append({"row": name, "traceback": "left out: the time is over"})
            self.write()
        return left

    def add(self, row: GpuRow) -> None:
        self.rows.append(row)
        seconds = [f"{1e3 * min(x):.2f} ms" if x else "-" for x in (row.ours_s, row.theirs_s)]
        elapsed = time.perf_counter() - self._start
        self.console.print(
            f"{elapsed:5.0f} s  {_label(row)}: {seconds[0]}, theirs {seconds[1]}, ratio {row.ratio}, "
            f"difference {row.difference} (theirs {row.their_difference}), ready in {row.ready_s:.1f} s",
            markup=False,
            soft_wrap=True,
        )
        self.write()

    def write(self) -> None:
        figures = {"rows": [asdict(row) for row in self.rows], "failures": self.failures}
        self.out.write_text(json.dumps({**self.machine, **figures}, indent=1))


def _label(row: GpuRow) -> str:
    return f"ViT-{row.size.upper()} {row.work}, {row.way}, {row.dtype}, x {row.count}"


def run_gpu(
    sizes: Sequence[str], rounds: int, device: torch.device, budget: float, out: Path, console: Console
) -> None:
    """All rows of these sizes, the table, and the figures as JSON.

    Args:
        rounds: timed samples of each side. budget: seconds after which no further row is begun.
    """
    torch.backends.cudnn.allow_tf32 = False  # what is called float32 is float32, on both sides
    torch._dynamo.config.cache_size_limit = 64  # sizes and batches are many; at the limit blocks would run eagerly
    record = Record(device, out, budget, rounds, console)
    stages = (_measure_first, _measure_later)
    for stage in stages:
        for number, size in enumerate(sizes):
            name = f"ViT-{size.upper()}{', compiled' if stage is _measure_later else ''}"
            if record.has_time(name):
                with record.guard(name), torch.inference_mode():
                    stage(record, size, number == 0)
                _forget(device)
    console.print(table_of_gpu(record.rows, record.machine["device"] or ""))
    console.print(f"Figures: {out}")


class _Pair:
    """Both models and their inputs on the device, and the float32 outputs that bfloat16 is compared with."""

    def __init__(self, size: str, device: torch.device) -> None:
        self.size, self.device = size, device
        self.theirs, self.ours = build_pair(size, device)
        self.theirs.requires_grad_(False)
        self.ours.requires_grad_(False)
        side = self.ours.config.image_size
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(_BATCH, 3, side, side, generator=generator).to(device)
        self.embeddings = torch.randn(1, 256, side // 16, side // 16, generator=generator).to(device)
        self.points_per_side = 4 if size == "tiny" else 32
        self.references: dict[str, Tensor] = {}

    def to(self, dtype: torch.dtype) -> None:
        self.theirs.to(dtype)
        self.ours.to(dtype)  # type: ignore[arg-type]  # of transformers' wrapper
        self.pixels, self.embeddings = self.pixels.to(dtype), self.embeddings.to(dtype)

    def encoder(self, count: int) -> tuple[Job, Job]:
        return encoder_job(self.ours, self.theirs, self.pixels[:count])[1:]

    def decoder(self, count: int) -> tuple[Job, Job]:
        return decoder_job(self.ours, self.theirs, self.embeddings, count)[1:]

    def generate(self) -> tuple[Job, Job]:
        return generate_job(self.ours, self.theirs, self.embeddings, self.points_per_side)[1:]

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return list(self.ours.image_encoder.blocks), list(self.theirs.vision_encoder.layers)  # type: ignore[arg-type]


def _measure_first(record: Record, size: str, full: bool) -> None:
    """What is asked for first of one size; `full`: also what does not depend on the size, and the compiled encoder."""
    pair = _Pair(size, record.device)
    _row(record, pair, "encoder", "eager", 1, pair.encoder(1), samples=1)
    _row(record, pair, "decoder", "eager", 64, pair.decoder(64), samples=1)
    if full:
        _row(record, pair, "generate", "eager", 1, pair.generate, samples=0)
    pair.to(torch.bfloat16)
    _row(record, pair, "encoder", "eager", 1, pair.encoder(1))
    _row(record, pair, "encoder", "eager", _BATCH, pair.encoder(_BATCH))
    if full:
        _row(record, pair, "generate", "eager", 1, pair.generate, samples=1)
    for count in (64, 1):
        _row(record, pair, "decoder", "eager", count, pair.decoder(count))
    if full:
        _measure_compiled(record, pair)


def _measure_later(record: Record, size: str, full: bool) -> None:
    """What takes long to compile: other sizes, the batch, and for the first size the encoder in one piece."""
    pair = _Pair(size, record.device)
    pair.to(torch.bfloat16)
    if not full:
        _measure_compiled(record, pair)
    _compile(pair.blocks())
    _row(record, pair, "encoder", "compiled", _BATCH, pair.encoder(_BATCH))
    if full:
        for blocks in pair.blocks():
            for block in blocks:
                block._compiled_call_impl = None
        _compile(([pair.ours.image_encoder], [pair.theirs.vision_encoder]))
        _row(record, pair, "encoder", "compiled whole", 1, pair.encoder(1))


def _measure_compiled(record: Record, pair: _Pair) -> None:
    _compile(pair.blocks())
    _row(record, pair, "encoder", "compiled", 1, pair.encoder(1))
    _row(record, pair, "encoder", "CUDA graph", 1, lambda: (_captured(pair.encoder(1)[0], record.device), None))


def _compile(modules: tuple[list[nn.Module], list[nn.Module]]) -> None:
    for module in modules[0] + modules[1]:
        module.compile(dynamic=False)


def _forget(device: torch.device) -> None:
    """Models, what was compiled for them, and their memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _row(
    record: Record,
    pair: _Pair,
    work: str,
    way: str,
    count: int,
    jobs: tuple[Job, Job | None] | Callable[[], tuple[Job, Job | None]],
    samples: int | None = None,
) -> None:
    """Warm up, compare, then time. A function of jobs is called inside the guard."""
    dtype = str(pair.ours.dtype).removeprefix("torch.")
    name = f"ViT-{pair.size.upper()} {work}, {way}, {dtype}, x {count}"
    if not record.has_time(name):
        return
    with record.guard(name):
        start = time.perf_counter()
        ours, theirs = jobs() if callable(jobs) else jobs
        both = [job for job in (ours, theirs) if job is not None]
        outputs = [job() for job in both]
        _wait(record.device)
        ready = time.perf_counter() - start
        differences = _differences(pair, f"{work} {count}", dtype, outputs)
        del outputs
        megabytes, times = _cost(both, record.rounds if samples is None else samples, record.device)
        if theirs is None:
            times.append([])
            megabytes.append(None)
        per_s = [count / min(x) if x else None for x in times]
        ratio = min(times[1]) / min(times[0]) if times[0] and times[1] else None
        record.add(
            GpuRow(pair.size, work, way, dtype, count, *times, *per_s, ratio, *differences, *megabytes, ready)  # type: ignore[arg-type, call-arg]
        )


def _differences(pair: _Pair, key: str, dtype: str, outputs: list[Any]) -> tuple[float | None, float | None]:
    """See `GpuRow`; remembers their float32 outputs."""
    if isinstance(outputs[0], list):
        return (mask_difference(*outputs), None) if len(outputs) == 2 else (None, None)
    ours = outputs[0].float()
    if dtype == "float32" and len(outputs) == 2:
        expected = outputs[1].float()
        pair.references[key] = expected.clone()
        return ((ours - expected).abs().max() / expected.abs().max()).item(), None
    reference = pair.references.get(key)
    if reference is None:
        if len(outputs) == 1:
            return None, None
        expected = outputs[1].float()  # of each other, where float32 was not computed
        return ((ours - expected).square().mean() / expected.square().mean()).sqrt().item(), None
    rms = [((x.float() - reference).square().mean() / reference.square().mean()).sqrt().item() for x in outputs]
    return rms[0], rms[1] if len(rms) == 2 else None


def _cost(jobs: list[Job], samples: int, device: torch.device) -> tuple[list[float | None], list[list[float]]]:
    """Peak megabytes, and seconds of a call, of each job that has run before; samples of the jobs in turn."""
    megabytes: list[float | None] = []
    calls = []
    for job in jobs if samples else []:
        start = time.perf_counter()
        megabytes.append(peak_mb(job, device)[1])
        calls.append(max(round(_SAMPLE_SECONDS / (time.perf_counter() - start)), 1))
    seconds: list[list[float]] = [[] for _ in jobs]
    for _ in range(samples):
        for job, repeats, found in zip(jobs, calls, seconds, strict=True):
            _wait(device)
            start = time.perf_counter()
            for _ in range(repeats):
                job()
            _wait(device)
            found.append((time.perf_counter() - start) / repeats)
    return megabytes or [None] * len(jobs), seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _captured(job: Job, device: torch.device) -> Job:
    """The job as a CUDA graph: its kernels in one launch, on the same input, into the same output."""
    if device.type != "cuda":
        return job
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            job()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = job()

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def table_of_gpu(rows: list[GpuRow], device: str) -> Table:
    """The figures for people."""
    table = Table(title=device, caption="per second: images or prompts; MB: peak above the weights")
    left = ("size", "work", "way", "dtype")
    for column in (*left, "of a call", "TextSAM / s", "transformers / s", "ratio", "difference", "MB", "tr., MB"):
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        per_s = ["-" if x is None else f"{x:.1f}" for x in (row.ours_per_s, row.theirs_per_s)]
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        difference = "-" if row.difference is None else f"{row.difference:.1e}"
        if row.their_difference is not None:
            difference += f" (theirs {row.their_difference:.1e})"
        memory = ["-" if x is None else f"{x:.0f}" for x in (row.ours_mb, row.theirs_mb)]
        table.add_row(row.size, row.work, row.way, row.dtype, str(row.count), *per_s, ratio, difference, *memory)
    return table
