"""The ViT encoder's matrices in eight bits, through torchao: a quarter of float32's memory, nearly SAM's masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from textsam.modeling.text_sam import TextSamNetwork

KINDS = {
    "int8": "Int8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
    "float8": "Float8WeightOnlyConfig",
}
"""Names of kinds, and of torchao's configurations: weights alone, or with "dynamic" the products too."""


def check_kind(kind: str) -> None:
    """Raises ValueError for an unknown kind, naming those that there are."""
    if kind not in KINDS:
        raise ValueError(f"quantize must be one of {', '.join(KINDS)}, but is {kind!r}.")


def quantize_encoder(model: TextSamNetwork, kind: str) -> None:
    """Quantises the linear layers of the ViT encoder's blocks, in place: nine tenths of the weights of a SAM.

    The position tables, neck, prompt encoder and decoder stay as they are. Which way a layer goes is decided by its
    weight's type, so the fused products for plain layers are left out by themselves.

    Raises:
        ValueError: an unknown kind, or a model whose encoder is no ViT.
        ImportError: torchao is not installed.
    """
    check_kind(kind)
    blocks = getattr(model.image_encoder, "blocks", None)
    if blocks is None:
        raise ValueError("quantize is for models with a ViT encoder, and this one's is convolutional: leave it out.")
    try:
        import torchao.quantization as torchao
    except ImportError as error:
        raise ImportError(f'quantize="{kind}" needs torchao: pip install "textsam[quantize]"') from error
    with torch.no_grad():
        torchao.quantize_(blocks, getattr(torchao, KINDS[kind])())
    for layer in blocks.modules():  # torchao's description of a layer, which cannot be pickled
        vars(layer).pop("extra_repr", None)
