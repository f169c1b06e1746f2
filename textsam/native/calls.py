"""Tensors and numbers as the compiled library takes them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


def pointer(x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> ctypes.c_void_p:
    """The address of a tensor that is just what the library takes it for."""
    if x.dtype != dtype or not x.is_contiguous() or x.device.type != "cpu" or tuple(x.shape) != shape:
        raise ValueError(f"Expected contiguous {dtype} {shape} on the CPU, got {x.dtype} {tuple(x.shape)}.")
    return ctypes.c_void_p(x.data_ptr())


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Addresses of parameters."""
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))


def integers(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]
