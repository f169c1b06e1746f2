"""What a training run leaves on disk, each file replaced in one move: `last.pt` to go on from, `model/` and `best/` to
use, `adapter/` where the text prompt alone was trained, `log.jsonl`."""

from __future__ import annotations

import copy
import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textsam.checkpoints.adapters import save_adapter
from textsam.model import TextSamModel
from train.optimization import LoopOptions, merge_lora


def averaged_model(model: TextSamModel, ema: dict[str, Tensor]) -> TextSamModel:
    """A copy with the averaged weights, adapters merged, in eval mode: what is shipped."""
    copied = copy.deepcopy(model)
    state = copied.state_dict()
    with torch.no_grad():
        for name, value in ema.items():
            state[name].copy_(value)
    merge_lora(copied)
    return copied.eval()


def save_checkpoint(
    out: Path, shipped: TextSamModel, states: dict[str, Any], step: int, seconds: float, options: LoopOptions,
    best: float | None = None,
) -> None:  # fmt: skip
    """The files to go on from and to use.

    Args:
        shipped: `averaged_model`. states: of "model", "optimizer" and "ema", whole.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_model(out / "model", shipped, {"step": step, "seconds": round(seconds), "options": asdict(options)})
    if options.train == "text" and not options.lora_rank:
        save_adapter(shipped, out / "adapter")
    # Last: a training killed before it goes on from the former one and writes the model again. The other way round,
    # one killed in between after the last step would be done for ever, with the model of an earlier step.
    torch.save({**states, "best": best, "step": step, "seconds": seconds}, out / "last.pt.part")
    os.replace(out / "last.pt.part", out / "last.pt")


def write_model(folder: Path, model: TextSamModel, record: dict[str, Any]) -> None:
    """A folder that `textsam.load` takes, with the record of its training."""
    part = folder.with_name(folder.name + ".part")
    model.save_pretrained(part)
    (part / "training.json").write_text(json.dumps(record, indent=1))
    folder.mkdir(exist_ok=True)
    for file in part.iterdir():
        os.replace(file, folder / file.name)


def load_checkpoint(path: Path, model: TextSamModel) -> dict[str, Any]:
    """Puts the weights back in place; returns all of the checkpoint: the optimiser's state, the averages, the step, the
    seconds trained and the best score so far.

    Raises:
        ValueError: the file is damaged, or the model has other parts than the one that it was written of.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged: begin anew in another folder ({' '.join(str(error).split())[:200]})"
        ) from error
    try:
        model.load_state_dict(state.pop("model"))
    except RuntimeError as error:
        raise ValueError(other_options(path)) from error
    return state


def other_options(path: Path) -> str:
    """What to say where a checkpoint does not fit."""
    return (
        f"{path} was written by a training of another model or with other options of what trains: go on with the same "
        "command, or begin anew in another folder"
    )


def write_log(out: Path, record: dict[str, float]) -> str:
    """Appends a line to `log.jsonl` and returns it."""
    out.mkdir(parents=True, exist_ok=True)
    line = json.dumps({name: round(float(value), 4) for name, value in record.items()})
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    return line
