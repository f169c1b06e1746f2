"""ImageNet weights of MobileNetV2, from which the small encoders start."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from textsam.checkpoints.weights_io import read_tensors
from textsam.modeling.mobile_encoder import MobileNetV2

CLASSIFIER = ("classifier.weight", "classifier.bias")


def read_trunk(path: str | Path) -> dict[str, Tensor]:
    """Weights by the names of `MobileNetV2(with_head=True)`, and its classifier's where the file has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds other weights, naming some of them.
    """
    state = read_tensors(Path(path))
    with torch.device("meta"):
        expected = MobileNetV2(with_head=True).state_dict()
    missing = [name for name, value in expected.items() if name not in state or state[name].shape != value.shape]
    other = [name for name in state if name not in expected and name not in CLASSIFIER]
    if missing or other:
        told = [
            f"{', '.join(names[:3])} {what}"
            for names, what in ((missing, "do not fit"), (other, "are unknown"))
            if names
        ]
        raise ValueError(
            f"{path} must hold MobileNetV2's ImageNet weights by TextSAM's names, but {' and '.join(told)}"
        )
    return state
