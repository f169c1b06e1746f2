"""The training loop: accelerate (one process, DDP or FSDP), AdamW, EMA, evaluation, atomic checkpoints, resume.

A step is a function of (seed, step number, rank): a resumed run sees the samples, clicks and dropped paths that it
would have seen.
"""

from __future__ import annotations

import atexit
import copy
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from textsam.model import TextSamModel
from train.optimization import LoopOptions, build_optimizer, rate
from train.packing import pack
from train.run_files import (
    averaged_model,
    load_checkpoint,
    other_options,
    save_checkpoint,
    write_log,
    write_model,
)
from train.sharding import local, prepare_sharding, split, split_like, whole

__all__ = ["LoopOptions", "rate", "train"]

logger = logging.getLogger("train")

Evaluation = Callable[[TextSamModel], dict[str, float]]


def train(
    step_module: nn.Module,
    data: Any,
    options: LoopOptions,
    out: Path,
    resume: bool = False,
    evaluate: Evaluation | None = None,
) -> int:
    """Train to the end or to SIGTERM, writing `out/last.pt`, `out/log.jsonl` and the averaged model in `out/model`.

    Args:
        step_module: holds `model`; its forward takes samples and a generator, and returns losses.
        data: samples by position (a map-style data set), or a stream with `at(start, rank, world)`.
        evaluate: figures of a model by name, larger is better for "score"; the best model is kept in `out/best`.
    Returns:
        The steps done in all: fewer than `options.steps` where the training was stopped.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=options.mixed_precision,
        # A batch without a click never touches the point embeddings.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.FSDP, *_DATA_PARALLEL):
        raise ValueError(f"training runs in one process, with DDP or with FSDP, not with {kind.value}")
    if accelerator.num_processes > 1:  # the threads of a group that still stands can abort a process that leaves
        atexit.register(accelerator.state.destroy_process_group)
    refuse_a_new_start(out, resume)
    model = step_module.model
    optimizer = build_optimizer(model, options)
    checkpoint = load_checkpoint(out / "last.pt", model) if resume and (out / "last.pt").exists() else None
    plain = model
    if kind == DistributedType.FSDP:
        if options.muon:
            raise ValueError("muon takes whole matrices, which FSDP splits: train with one of the two")
        plain = copy.deepcopy(model) if accelerator.is_main_process else model
        step_module = prepare_sharding(accelerator, step_module)
    wrapped, optimizer = accelerator.prepare(step_module, optimizer)
    ema = {name: value.detach().clone().float() for name, value in _averaged(model, options).items()}
    start, seconds, best = 0, 0.0, None
    if resume and checkpoint is None:
        logger.warning("%s holds no training yet: this one begins at the first step", out)
    if checkpoint is not None:
        start, seconds, best = checkpoint["step"], checkpoint["seconds"], checkpoint.get("best")
        try:
            restore(optimizer, ema, checkpoint)
        except (IndexError, KeyError, ValueError) as error:  # of other parameters, or of another optimiser
            raise ValueError(other_options(out / "last.pt")) from error
        del checkpoint
        if start >= options.steps:
            logger.warning("%s has done %d of %d steps: nothing is left to train", out, start, options.steps)
    done = start
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    began, sums = time.monotonic() - seconds, _Means()
    writer = _tensorboard(out, start) if options.tensorboard and main else None
    wrapped.train()
    on_device = getattr(step_module, "samples_on_device", False)
    loader = _loader(data, start, options, rank, world)
    with _stop_on_sigterm() as stop, _batches(loader) as batches, _progress(options, main) as progress:
        task = progress.add_task("training", total=options.steps, completed=start)
        for step in range(start, options.steps):
            spent = (time.monotonic() - began) / 60 / options.minutes if options.minutes else 0.0
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate(step, options, spent)
            # Some steps draw once for all processes, others each for itself.
            offset = rank if getattr(step_module, "random_per_process", True) else 0
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step * 101 + offset)
            for micro in range(options.accumulate):
                samples = next(batches).unpack(accelerator.device if on_device else "cpu")
                last = micro + 1 == options.accumulate
                torch.manual_seed(((options.seed * 1_000_003 + step) * options.accumulate + micro) * 1009 + rank)
                if not getattr(step_module, "random_per_process", True):
                    generator.manual_seed(options.seed * 1_000_003 + step * 101)
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    with accelerator.autocast():
                        results = wrapped(samples, generator)
                    loss = sum(value for name, value in results.items() if not name.startswith("_"))
                    accelerator.backward(loss / options.accumulate)
                sums.add({"loss": loss, **results})
            norm = accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], options.clip_norm)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            # A gradient scaler has to be told of every step, and leaves out those that overflowed by itself.
            if torch.isfinite(norm) or accelerator.scaler is not None:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            update_ema(ema, model, min(options.ema_decay, (1 + step) / (10 + step)))
            sums.add({"norm": norm})
            leaving = _agree(accelerator, bool(stop) or spent >= 1) or step + 1 == options.stop_after
            done, elapsed = step + 1, time.monotonic() - began
            if main and done % options.log_every == 0:
                record = sums.take()
                if record["loss"] == 0:
                    logger.warning("the pictures up to step %d had no mask to learn from: look at the data", done)
                _print(progress, write_log(out, {"step": done, "seconds": round(elapsed, 1), **record}))
                for name, value in record.items() if writer else ():
                    writer.add_scalar(name.replace("_", "figures/", 1) if name[0] == "_" else name, value, done)
            evaluating = evaluate is not None and (done % options.eval_every == 0 or done == options.steps)
            saving = done % options.save_every == 0 or done == options.steps or leaving
            if evaluating or saving:
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema}
                states = whole(states)  # what is split, by all processes; the rest of it is for one
            if main and evaluate is not None and evaluating:
                averaged = averaged_model(plain, states["ema"])
                figures = evaluate(averaged)
                _print(progress, write_log(out, {"step": done, **{f"val_{k}": v for k, v in figures.items()}}))
                if best is None or figures["score"] > best:
                    best = figures["score"]
                    write_model(out / "best", averaged, {"step": done, "figures": figures, "options": asdict(options)})
            if main and saving:
                save_checkpoint(out, averaged_model(plain, states["ema"]), states, done, elapsed, options, best)
            progress.update(task, completed=done)
            if leaving:
                break
        accelerator.wait_for_everyone()  # while one still saves, the others are not to die of a second SIGTERM
    if writer:
        writer.close()
    return done


def refuse_a_new_start(out: Path, resume: bool) -> None:
    """Raises FileExistsError where a training that is not gone on with would be overwritten."""
    if not resume and (out / "last.pt").exists():
        raise FileExistsError(f"{out} holds a training already: go on with it (--resume), or name another folder.")


_DATA_PARALLEL = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def _averaged(model: TextSamModel, options: LoopOptions) -> dict[str, Tensor]:
    """What the moving average follows: all, or what trains where most is frozen."""
    state = model.state_dict()
    if options.train == "all" and not options.lora_rank:
        return state
    return {name: state[name] for name, parameter in model.named_parameters() if parameter.requires_grad}


def _loader(data: Any, start: int, options: LoopOptions, rank: int, world: int) -> DataLoader:
    """Batches of the remaining steps of one process."""
    per_step = options.batch_size * options.accumulate
    stream = data.at(start * per_step, rank, world) if hasattr(data, "at") else None
    return DataLoader(
        data if stream is None else stream,
        batch_size=options.batch_size,
        sampler=None if stream is not None else list(sample_indices(start, options, rank, world)),
        collate_fn=pack,
        pin_memory=torch.cuda.is_available(),
        # A stream is read in order: two workers would both read all of it.
        num_workers=options.workers if stream is None else min(options.workers, 1),
        # A SIGTERM to the whole group must not take the samples away before the checkpoint is written.
        worker_init_fn=_ignore_sigterm,
    )


def sample_indices(start: int, options: LoopOptions, rank: int, world: int) -> Iterator[int]:
    """The samples of each remaining step for one process."""
    for batch in range(start * options.accumulate, options.steps * options.accumulate):
        first = (batch * world + rank) * options.batch_size
        yield from range(first, first + options.batch_size)


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: TextSamModel, decay: float) -> None:
    state = model.state_dict()
    names = [name for name in ema if state[name].is_floating_point()]
    torch._foreach_lerp_([local(ema[n]) for n in names], [local(state[n]).float() for n in names], 1 - decay)


def restore(optimizer: torch.optim.Optimizer, ema: dict[str, Tensor], checkpoint: dict[str, Any]) -> None:
    """Puts a checkpoint's optimiser and averages in place, split as they are. The learning rates are today's."""
    rates = [group["base_lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.load_state_dict(split_like(checkpoint["optimizer"], parameters))
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["base_lr"] = lr
    for name, value in checkpoint["ema"].items():
        ema[name] = split(value, ema[name])


def _agree(accelerator: Accelerator, stop: bool) -> bool:
    """Whether any process was asked to stop: all of them leave after the same step."""
    if accelerator.num_processes == 1:
        return stop
    if stop:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def _tensorboard(out: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('tensorboard is not installed: pip install "textsam[train]"') from error
    return SummaryWriter(str(out / "tensorboard"), purge_step=start)


def _progress(options: LoopOptions, main: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not (options.progress and main))


def _print(progress: Progress, line: str) -> None:
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Means:
    """Of figures that stay on their device until they are asked for: reading one makes the CPU wait for the GPU."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def add(self, results: dict[str, Tensor]) -> None:
        for name, value in results.items():
            self.values.setdefault(name, []).append(torch.as_tensor(value).detach())

    def take(self) -> dict[str, float]:
        means = {name: torch.stack(values).double().mean().item() for name, values in self.values.items()}
        self.values.clear()
        return means


def _ignore_sigterm(_: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _batches(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """Ends the loader's processes also after an error, whose traceback keeps them alive: they ignore SIGTERM, by which
    Python would end them, and then wait for them for ever."""
    batches = iter(loader)
    try:
        yield batches
    finally:
        getattr(batches, "_shutdown_workers", bool)()  # there is none without processes


@contextmanager
def _stop_on_sigterm() -> Iterator[list[bool]]:
    """A list that is no longer empty once SIGTERM came."""
    asked: list[bool] = []
    former = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, former)
