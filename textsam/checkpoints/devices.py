"""Where a model computes, and in which precision."""

from __future__ import annotations

from typing import Any

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """None: cuda, else mps, else cpu. Otherwise the device named, if it is there; a number as transformers' pipelines
    have it: that of a GPU, or -1 for the CPU.

    Raises:
        ValueError: there is no such device, naming those that are there.
    """
    there = [
        name
        for name, available in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if available
    ]
    if device is None:
        return torch.device(there[0])
    try:
        resolved = torch.device("cpu" if device == -1 else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"There is no device {device!r}; this machine has {', '.join(there)}.") from error
    count = torch.cuda.device_count() if resolved.type == "cuda" else 1
    if resolved.type not in there or (resolved.index or 0) >= count:
        raise ValueError(f"There is no device {str(device)!r} here; this machine has {', '.join(there)}.")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device, encoder_type: str = "vit") -> torch.dtype:
    """The dtype of the weights.

    None: bfloat16 on a GPU that has it, and for a ViT on a CPU with AMX, whose matrix products it makes several times
    faster; float32 otherwise. The mobile encoder's depthwise convolutions gain nothing from bfloat16 on a CPU.

    Raises:
        ValueError: another dtype than float32, bfloat16 and float16.
    """
    if dtype is None:
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and encoder_type == "vit" and has_amx()
        return torch.bfloat16 if fast else torch.float32
    resolved = _DTYPES.get(str(dtype).removeprefix("torch."))
    if resolved is None:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, but is {dtype!r}.")
    return resolved


def has_amx() -> bool:
    """Whether this CPU has the matrix units of AMX, and PyTorch uses them."""
    supported: Any = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported is not None and supported())


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are quicker than float32 ones: on a GPU, or a CPU with AMX or AVX512-BF16."""
    supported: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type != "cpu" or has_amx() or bool(supported is not None and supported())
