"""Peak memory of a call, above what the process holds already."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mb(job: Callable[[], Result], device: torch.device) -> tuple[Result, float | None]:
    """Run `job` once.

    Returns:
        Its result, and the megabytes (10^6 bytes) that it held at its peak beyond what was held before, its result
        included. On a GPU these are the allocator's; on a CPU the process's resident memory on Linux, None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = job()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 1e6
    before_kb = _reset_peak()
    result = job()
    peak_kb = _field_kb("VmHWM")
    return result, None if before_kb is None or peak_kb is None else (peak_kb - before_kb) * 1024 / 1e6


def _reset_peak() -> int | None:
    """Give free memory back to the system, forget the peak so far, and say what remains, in kB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
    except (OSError, AttributeError, TypeError):
        return None
    return _field_kb("VmRSS")


def _field_kb(name: str) -> int | None:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    return None
