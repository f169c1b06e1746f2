"""What trains, how fast, and for how long: parts and LoRA, learning rates by layer, schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from textsam.model import TextSamModel

Schedule = Literal["linear", "step", "cosine"]
LORA_TARGETS = r"image_encoder\.blocks\.\d+\.attn\.(qkv|proj)"


@dataclass(frozen=True)
class LoopOptions:
    """
    Args:
        steps: optimiser steps in all. batch_size: pictures per process and backward pass; accumulate: of those in one
            optimiser step.
        lr: of new parts; trunk_lr: of the pretrained trunk.
        muon: matrices outside the trunk by Muon, whose steps are scaled so that `lr` means what it means for AdamW.
        train: "all"; "text": the text prompt alone; "text+decoder": prompt encoder and decoder.
        frozen: name prefixes that do not train. only: name prefixes beside which nothing trains; none: no such limit.
        faster: name prefix -> factor on the rate, for parts that start from nothing beside trained ones.
        lora_rank: of adapters on the ViT's attention, which then trains through them alone; 0: none.
        layer_decay: a ViT block's rate relative to that of the block after it; 1: all alike.
        drop_path: of the ViT's last block, falling linearly to 0 at the first.
        schedule: after the warm-up: "linear": constant, from the share `decay_from` of the steps on linearly to zero.
            "step": a tenth from each of `milestones` (shares of the steps) on. "cosine": to zero.
        minutes: to train for, where that is less than the steps take: the schedule then follows the clock, a resumed
            run has what is left of them, and no two runs are alike.
        stop_after: save and leave after this step, for sessions shorter than the run.
        ema_decay: of the averaged weights, which are the ones to ship; 0: the last weights.
        eval_every: steps between evaluations, where there is one.
    """

    steps: int = 3000
    batch_size: int = 8
    accumulate: int = 1
    lr: float = 1.5e-3
    trunk_lr: float = 1.5e-4
    muon: bool = False
    weight_decay: float = 0.02
    train: Literal["all", "text", "text+decoder"] = "all"
    frozen: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    faster: tuple[tuple[str, float], ...] = ()
    lora_rank: int = 0
    trunk: str = "image_encoder.trunk."
    layer_decay: float = 1.0
    drop_path: float = 0.0
    warmup: int = 60
    schedule: Schedule = "linear"
    decay_from: float = 0.7
    milestones: tuple[float, ...] = ()
    clip_norm: float = 5.0
    ema_decay: float = 0.995
    mixed_precision: str = "bf16"
    save_every: int = 100
    eval_every: int = 1000
    minutes: float | None = None
    stop_after: int | None = None
    log_every: int = 20
    workers: int = 1
    tensorboard: bool = False
    progress: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "save_every", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name in ("minutes", "stop_after"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, but is {value}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, but is {self.workers}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, but is {self.schedule!r}")


def rate(step: int, options: LoopOptions, spent: float = 0.0) -> float:
    """The share of the base learning rate at a step, counted from 0.

    Args:
        spent: share of the time that there is, in [0, 1], where there is a limit.
    """
    warm = min(1.0, (step + 1) / max(options.warmup, 1))
    done = max(step / options.steps, spent)
    if options.schedule == "step":
        return warm * 0.1 ** sum(done >= share for share in options.milestones)
    if options.schedule == "cosine":
        warmup = options.warmup / options.steps
        progress = max(0.0, done - warmup) / max(1 - warmup, 1 / options.steps)
        return warm * (1 + torch.cos(torch.tensor(progress * torch.pi)).item()) / 2
    return min(warm, max(1 - done, 0.0) / max(1 - options.decay_from, 1 / options.steps))


def prepare_parts(model: TextSamModel, options: LoopOptions) -> None:
    """Adds LoRA, sets drop path, and lets gradients reach what is to train and nothing else."""
    blocks = getattr(model.image_encoder, "blocks", ())
    if (options.lora_rank or options.drop_path) and not len(blocks):
        raise ValueError("lora_rank and drop_path are for the ViT encoder, and this model has another one")
    if options.lora_rank:
        add_lora(model, options.lora_rank)
    for number, block in enumerate(blocks):
        block.drop_path_rate = options.drop_path * number / max(len(blocks) - 1, 1)
    trains = trained_part(model, options.train)
    for name, parameter in model.named_parameters():
        kept = not (options.frozen and name.startswith(options.frozen)) and trains(name)
        kept = kept and (not options.only or name.startswith(options.only))
        if options.lora_rank and name.startswith("image_encoder."):
            kept = "lora_" in name
        parameter.requires_grad_(kept)


def trained_part(model: TextSamModel, part: str) -> Callable[[str], bool]:
    """Whether a parameter of this name belongs to the part that trains.

    Raises:
        ValueError: an unknown part.
    """
    if part == "text":
        return set(model.text_parameter_names()).__contains__
    if part == "text+decoder":
        return lambda name: not name.startswith("image_encoder.")
    if part == "all":
        return lambda name: True
    raise ValueError(f'train must be "text", "text+decoder" or "all", but is {part!r}')


def add_lora(model: nn.Module, rank: int) -> None:
    """Low-rank adapters on the attention of the ViT's blocks, in place (Hu et al. 2021, *LoRA*), through peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('lora_rank needs peft: pip install "textsam[train]"') from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS)
    inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> None:
    """Folds adapters into the weights that they adapt, in place: afterwards the model is a plain one."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "get_base_layer"):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def build_optimizer(model: TextSamModel, options: LoopOptions) -> torch.optim.Optimizer:
    """AdamW over what trains; no weight decay on vectors; the trunk, and each layer of a ViT, at its own rate.

    With `muon` the matrices of linear layers outside the trunk get Muon (Jordan et al. 2024) instead.
    """
    prepare_parts(model, options)
    depth = len(getattr(model.image_encoder, "blocks", ()))
    groups: dict[tuple[float, float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_trunk, embedding = name.startswith(options.trunk), "embed" in name
            lr = options.trunk_lr if in_trunk else options.lr
            lr *= options.layer_decay ** layers_above(name, depth)
            lr *= math.prod(factor for prefix, factor in options.faster if name.startswith(prefix))
            decay = options.weight_decay if parameter.ndim > 1 and not embedding else 0.0
            by_muon = options.muon and parameter.ndim == 2 and not (in_trunk or embedding or "_token" in name)
            groups.setdefault((lr, decay, by_muon), []).append(parameter)
    if not groups:
        raise ValueError("nothing is left to train: look at train=, frozen= and lora_rank=")
    parts: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for (lr, decay, by_muon), parameters in groups.items():
        parts[by_muon].append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    adamw = torch.optim.AdamW(parts[False], betas=(0.9, 0.999)) if parts[False] else None
    if not parts[True]:
        return adamw
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(f"muon needs PyTorch 2.9 or newer, this is {torch.__version__}")
    muon = torch.optim.Muon(parts[True], adjust_lr_fn="match_rms_adamw")
    return muon if adamw is None else OptimizerPair(adamw, muon)


class OptimizerPair(torch.optim.Optimizer):
    """Two optimisers over different parameters, used as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.pair = (first, second)
        self.defaults = first.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.pair for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        return {**self.pair[0].state, **self.pair[1].state}

    def step(self, closure: None = None) -> None:
        for optimizer in self.pair:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.pair:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"pair": [optimizer.state_dict() for optimizer in self.pair]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.pair, state_dict["pair"], strict=True):
            optimizer.load_state_dict(state)


def layers_above(name: str, depth: int) -> int:
    """How many layers of a ViT of `depth` blocks lie above a parameter; 0 for the neck, prompts and decoder."""
    if block := re.match(r"image_encoder\.blocks\.(\d+)\.", name):
        return depth - int(block.group(1))
    return depth + 1 if name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")) else 0
