"""A part added to a trained model: the model with it, and the training of it alone on what the rest has answered."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from textsam.model import TextSamConfig, TextSamModel
from train import command
from train.loop import LoopOptions, train


def rebuilt(model: TextSamModel, fresh: str, **options: Any) -> TextSamModel:
    """The model with other options of its configuration; all that it knew is taken over.

    Args:
        fresh: prefix of the parameters that start anew.
    Raises:
        RuntimeError: the options ask for other new parameters than these.
    """
    other = TextSamModel(TextSamConfig.from_dict({**model.config.to_dict(), **options}))
    states = ((model.state_dict(), False), (other.state_dict(), True))
    other.load_state_dict(
        {name: value for state, anew in states for name, value in state.items() if name.startswith(fresh) is anew}
    )
    return other.train(model.training)


def add_run_arguments(parser: argparse.ArgumentParser, *, steps: int, batch_size: int, lr: float) -> None:
    """The options of `train_part`, with these defaults."""
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--steps", type=command.at_least(1), default=steps)
    parser.add_argument("--batch-size", type=command.at_least(1), default=batch_size)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=command.at_least(0), default=0)
    parser.add_argument("--save-every", type=command.at_least(1), default=250)
    parser.add_argument("--resume", action="store_true")


def train_part(step: nn.Module, part: str, crops: Dataset, args: argparse.Namespace, **options: Any) -> None:
    """Trains the parameters of the step's model whose names begin with `part`.

    Args:
        args: of `add_run_arguments`. options: further fields of `LoopOptions`.
    """
    loop = LoopOptions(
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        only=(part,),
        clip_norm=1.0,
        mixed_precision="no",
        save_every=args.save_every,
        seed=args.seed,
        **options,
    )
    train(step, crops, loop, args.out, args.resume)
