"""The training loop: accelerate, AdamW, warm-up then constant then decay, EMA, atomic checkpoints, resume.

A step is a function of (seed, step number, rank): a resumed run sees the samples and clicks that it would have seen.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor
from torch.utils.data import DataLoader

from textsam.model import TextSamModel
from train.data import CocoSamples, collate
from train.step import TextSamStep


@dataclass(frozen=True)
class LoopOptions:
    """
    Args:
        steps: optimiser steps in all. batch_size: pictures per process.
        lr: of new parts; trunk_lr: of the pretrained trunk. decay_from: share of the steps after which the rate falls
            linearly to a tenth... to zero at the end.
        frozen: name prefixes that do not train.
        stop_after: save and leave after this step, for sessions shorter than the run.
        ema_decay: of the averaged weights, which are the ones to ship.
    """

    steps: int = 3000
    batch_size: int = 8
    lr: float = 1.5e-3
    trunk_lr: float = 1.5e-4
    weight_decay: float = 0.02
    warmup: int = 60
    decay_from: float = 0.7
    clip_norm: float = 5.0
    ema_decay: float = 0.995
    mixed_precision: str = "bf16"
    frozen: tuple[str, ...] = ()
    trunk: str = "image_encoder.trunk."
    save_every: int = 100
    stop_after: int | None = None
    log_every: int = 20
    workers: int = 1
    seed: int = 0


def train(step_module: TextSamStep, data: CocoSamples, options: LoopOptions, out: Path, resume: bool = False) -> None:
    """Train to the end or to SIGTERM, writing `out/last.pt`, `out/log.jsonl` and the averaged model in `out/model`."""
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=options.mixed_precision,
        # A batch without a click never touches the point embeddings.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    model = step_module.model
    optimizer = build_optimizer(model, options)
    ema = {name: value.detach().clone().float() for name, value in model.state_dict().items()}
    start, seconds = 0, 0.0
    if resume and (out / "last.pt").exists():
        start, seconds = load_checkpoint(out / "last.pt", model, optimizer, ema)
    wrapped, optimizer = accelerator.prepare(step_module, optimizer)
    loader = DataLoader(
        data,
        batch_size=options.batch_size,
        sampler=list(sample_indices(start, options, accelerator.process_index, accelerator.num_processes)),
        collate_fn=collate,
        num_workers=options.workers,
        # A SIGTERM to the whole group must not take the samples away before the checkpoint is written.
        worker_init_fn=_ignore_sigterm,
    )
    stop = _stop_on_sigterm()
    began, sums = time.monotonic() - seconds, _Means()
    wrapped.train()
    for step, samples in enumerate(loader, start=start):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate(step, options)
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step * 101 + accelerator.process_index)
        with accelerator.autocast():
            results = wrapped(samples, generator)
        loss = sum(value for name, value in results.items() if not name.startswith("_"))
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
        if torch.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, model, min(options.ema_decay, (1 + step) / (10 + step)))
        sums.add({"loss": loss, "norm": norm, **results})
        leaving = bool(stop) or step + 1 == options.stop_after
        if accelerator.is_main_process:
            done = step + 1
            elapsed = time.monotonic() - began
            if done % options.log_every == 0:
                write_log(out, {"step": done, "seconds": round(elapsed, 1), **sums.take()})
            if done % options.save_every == 0 or done == options.steps or leaving:
                save_checkpoint(out, model, optimizer, ema, done, elapsed, options)
        if leaving:
            break


def sample_indices(start: int, options: LoopOptions, rank: int, world: int) -> Iterator[int]:
    """The samples of each remaining step for one process."""
    for step in range(start, options.steps):
        first = (step * world + rank) * options.batch_size
        yield from range(first, first + options.batch_size)


def rate(step: int, options: LoopOptions) -> float:
    """Warm-up, constant, linear decay to zero: the share of the base learning rate at a step."""
    falling = options.steps * (1 - options.decay_from)
    return min(1.0, (step + 1) / options.warmup, (options.steps - step) / max(falling, 1))


def build_optimizer(model: TextSamModel, options: LoopOptions) -> torch.optim.Optimizer:
    """AdamW over what is not frozen; no weight decay on vectors; the trunk at its own rate."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(options.frozen) if options.frozen else True)
        if parameter.requires_grad:
            lr = options.trunk_lr if name.startswith(options.trunk) else options.lr
            decay = options.weight_decay if parameter.ndim > 1 and "embed" not in name else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": lr, "base_lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()],
        betas=(0.9, 0.999),
    )


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: TextSamModel, decay: float) -> None:
    state = model.state_dict()
    names = [name for name in ema if state[name].is_floating_point()]
    torch._foreach_lerp_([ema[n] for n in names], [state[n].float() for n in names], 1 - decay)


def save_checkpoint(
    out: Path, model: TextSamModel, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor], step: int,
    seconds: float, options: LoopOptions,
) -> None:  # fmt: skip
    """`last.pt` to go on from, `model/` to use; each replaces the old one in one move."""
    out.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema}
    torch.save({**state, "step": step, "seconds": seconds}, out / "last.pt.part")
    os.replace(out / "last.pt.part", out / "last.pt")
    model.save_pretrained(out / "model.part", state_dict={n: v.to(model.dtype).contiguous() for n, v in ema.items()})
    (out / "model.part" / "training.json").write_text(
        json.dumps({"step": step, "seconds": round(seconds), "options": asdict(options)}, indent=1)
    )
    (out / "model").mkdir(exist_ok=True)
    for file in (out / "model.part").iterdir():
        os.replace(file, out / "model" / file.name)


def load_checkpoint(
    path: Path, model: TextSamModel, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor]
) -> tuple[int, float]:
    """Put a checkpoint back in place; returns the step and the seconds trained."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    rates = [group["base_lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["base_lr"] = lr
    ema.update(state["ema"])
    return state["step"], state["seconds"]


def write_log(out: Path, record: dict[str, float]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    line = json.dumps({name: round(float(value), 4) for name, value in record.items()})
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


class _Means:
    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, results: dict[str, Tensor]) -> None:
        for name, value in results.items():
            self.sums.setdefault(name, []).append(float(torch.as_tensor(value).detach()))

    def take(self) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self.sums.items()}
        self.sums.clear()
        return means


def _ignore_sigterm(_: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop_on_sigterm() -> list[bool]:
    """A list that is no longer empty once SIGTERM came."""
    asked: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    return asked
