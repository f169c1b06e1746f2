"""Parameters split over processes by FSDP (Zhao et al. 2023), for encoders that one GPU cannot train.

Only the layers of the image encoder are split one by one: each process passes through each of them exactly once a
batch. The rest, of which a process uses what its prompts ask for, is gathered once and together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from textsam.modeling.image_encoder import Block
from textsam.modeling.mobile_encoder import InvertedResidual

LAYERS = (Block, InvertedResidual)


def prepare_sharding(accelerator: Accelerator, step_module: nn.Module) -> nn.Module:
    """Tells FSDP what to split; returns the module to hand to `accelerator.prepare`.

    Raises:
        ValueError: FSDP of the first version; or image embeddings are kept, for which the encoder runs in one process
            and not in another.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("training is split by FSDP 2, and this is FSDP 1: launch it with --use_fsdp --fsdp_version 2")
    if getattr(step_module, "image_store", None) is not None:
        raise ValueError("where image embeddings are kept there is no encoder to split: launch it without --use_fsdp")
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    names = {type(module).__name__ for module in step_module.modules() if isinstance(module, LAYERS)}
    plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = transformer_auto_wrap_policy, sorted(names)
    return EveryParameter(step_module)


class EveryParameter(nn.Module):
    """A step in which every parameter outside the encoder's layers has a gradient, if only zero.

    FSDP adds up the gradients of a group of parameters in one go. A process whose batch had no click, and so no
    gradient for the points' embedding, would send less than the others expect.
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("step"), name)

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        results = self.step(*inputs)
        parameters = [p for module in _outside_layers(self.step) for p in module.parameters(recurse=False)]
        nothing = sum(0 * parameter.sum() for parameter in parameters if parameter.requires_grad)
        return {**results, "untouched": torch.as_tensor(nothing)}


def _outside_layers(module: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(module, LAYERS):
        yield module
        for child in module.children():
            yield from _outside_layers(child)


def whole(state: Any) -> Any:
    """Nested dicts and lists with each split tensor gathered on the CPU; all else as it is. All processes call it."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    return state.full_tensor().cpu() if hasattr(state, "full_tensor") else state


def split(value: Any, like: Any) -> Any:
    """A whole tensor split as `like` is, where that is split and of the same shape; on its device."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value  # the count of an optimiser's steps
    if not hasattr(like, "placements"):
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def split_like(state: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """The state of an optimiser, as `whole` gives it, split as its parameters are."""
    if "state" not in state:  # a pair of optimisers, which are never split
        return state
    rows = {
        number: {name: split(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": rows}


def local(tensor: Tensor) -> Tensor:
    """This process's part of a split tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
