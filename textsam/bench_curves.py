"""How time and memory grow: with the input's side, the images of a batch, prompts, masks of a photo, and queries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from textsam.bench_jobs import build_pair, decoder_job
from textsam.bench_memory import peak_mb
from textsam.checkpoints.loading import load
from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings
from textsam.prompting.mask_scoring import score_masks
from textsam.prompting.transforms import ImageGeometry

_CPU = torch.device("cpu")
# What the embedded model is asked for, one after another.
_NAMES = ("cup", "person", "dog", "cat", "chair", "car", "bird", "bottle")


@dataclass(frozen=True)
class Curve:
    """Attributes:
    work: what was done. grows_with: the unit of `sizes`. sizes: how much of it.
    seconds: minimum of the runs. megabytes: peak above what was held before, in the first run; None: not known.
    exponent: of time over the last doubling of the size; 1 is proportional.
    """

    work: str
    grows_with: str
    sizes: list[int]
    seconds: list[float]
    megabytes: list[float | None]
    exponent: float


@torch.inference_mode()
def measure_curves(size: str, rounds: int, console: Console) -> list[Curve]:
    """All curves: of random weights of this size, those of words of the embedded model; on the CPU, float32.

    "tiny", which only shows that the command works, leaves out the larger sizes.
    """
    theirs, ours = build_pair(size)
    generator = torch.Generator().manual_seed(1)
    side = ours.config.image_size

    def pixels(count: int, px: int) -> Tensor:
        return torch.randn(count, 3, px, px, generator=generator)

    embeddings = torch.randn(1, 256, side // 16, side // 16, generator=generator)
    sides = [side // 4, side // 2, side * 3 // 4, side]
    plan: list[tuple[str, str, Sequence[int], Callable[[int], Callable[[], Any]]]] = [
        ("encoder", "input side, px", sides, lambda n: _encode(ours, pixels(1, n))),
        ("encoder", "images of a batch, half side", [1, 2, 4], lambda n: _encode(ours, pixels(n, side // 2))),
        ("decoder", "prompts", [1, 4, 16, 64], lambda n: decoder_job(ours, theirs, embeddings, n)[1]),
        ("masks of a photo, 1024 x 683", "masks", [16, 64, 256], lambda n: _score(n, (683, 1024))),
        ("masks of a photo, 4000 x 3000", "masks", [1, 4, 16, 64], lambda n: _score(n, (3000, 4000))),
        ("words, textsam-tiny", "queries", [1, 2, 4, 8], _ask()),
    ]
    curves = []
    for work, unit, sizes, make in plan:
        with console.status(f"{work}: {unit}"):
            sizes = sizes[:2] if size == "tiny" else sizes
            found = [_cost(make(n), rounds) for n in sizes]
        seconds, megabytes = [s for s, _ in found], [mb for _, mb in found]
        exponent = float(np.log(seconds[-1] / seconds[-2]) / np.log(sizes[-1] / sizes[-2]))
        curves.append(Curve(work, unit, [*sizes], seconds, megabytes, exponent))
    return curves


def _cost(job: Callable[[], Any], rounds: int) -> tuple[float, float | None]:
    _, megabytes = peak_mb(job, _CPU)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times), megabytes


def _encode(model: TextSamModel, pixel_values: Tensor) -> Callable[[], ImageEmbeddings]:
    return lambda: model.encode_image(pixel_values)


def _score(count: int, size_hw: tuple[int, int]) -> Callable[[], Any]:
    """Blobs of the size of objects, and their run-length codes."""
    coarse = torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(3))
    logits = F.interpolate(coarse, (256, 256), mode="bicubic")[:, 0] * 5
    geometry = ImageGeometry.of(size_hw, 1024)
    return lambda: [mask.rle() for mask in score_masks(logits, geometry, 0.0, 1.0)]


def _ask() -> Callable[[int], Callable[[], Any]]:
    sam = load(device="cpu")
    ramp = np.linspace(0, 255, 640, dtype=np.uint8)
    sam.set_image(np.stack([np.broadcast_to(ramp, (480, 640))] * 3, axis=-1))
    return lambda n: lambda: sam.predict(text=[*_NAMES[:n]], threshold=0.0)


def write_curves(curves: list[Curve], out: Path) -> Path:
    """`out` (JSON), and beside it a PNG of the same name, which is returned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out.write_text(json.dumps([asdict(curve) for curve in curves], indent=1))
    figure = Figure(figsize=(3.6 * len(curves), 6.4), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False)
    for (above, below), curve in zip(axes.T, curves, strict=True):
        above.plot(curve.sizes, curve.seconds, "o-", color="tab:blue")
        above.set_title(f"{curve.work}\ntime ~ size^{curve.exponent:.2f}", fontsize=10)
        known = [(n, mb) for n, mb in zip(curve.sizes, curve.megabytes, strict=True) if mb is not None]
        below.plot([n for n, _ in known], [mb for _, mb in known], "s-", color="tab:orange")
        for axis, label in ((above, "seconds"), (below, "peak MB")):
            axis.set(ylabel=label, xlabel=curve.grows_with, xlim=(0, None), ylim=(0, None))
            axis.grid(alpha=0.3)
    picture = out.with_suffix(".png")
    FigureCanvasAgg(figure).print_png(picture)
    return picture
