"""Building blocks shared by the encoders and the decoder."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a (B, C, H, W) map, each position on its own."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # F.layer_norm works on the last axis; with channels-last memory the permutes are views.
        y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution. With channels-last memory it is a matrix product without a copy, and said as one it is quick
    even with one thread and few images, where torch takes a slow convolution."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(in_chans, out_chans, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them; the width is kept."""

    def __init__(self, embedding_dim: int, mlp_dim: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embedding_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embedding_dim)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Drops a residual branch of whole samples (axis 0) at this rate, and scales those kept so that the mean stays.

    Source: Huang et al. 2016, *Deep Networks with Stochastic Depth*.
    """
    kept = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device) >= rate
    return x * kept / (1 - rate)


@cache
def _fused_dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes whose fused product oneDNN has on this CPU: bfloat16 needs AVX-512."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return ()
    bfloat16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
    return (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """x W^T + b, and GELU of it; without gradients. On a CPU oneDNN fuses the GELU into the product.

    That fused product is what torch's own compiler calls, not a public function: where it is missing, or does not know
    the dtype, the plain ones serve.
    """
    known = x.dtype == weight.dtype and x.device.type == "cpu" and x.dtype in _fused_dtypes()
    if known:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear_layer(x: Tensor, layer: nn.Module, act: nn.Module | None = None) -> Tensor:
    """act(layer(x)) by `linear` where it can; a layer that is no plain `nn.Linear` (an adapter, a quantised one) is
    called as it is."""
    gelu = type(act) is nn.GELU and act.approximate == "none"
    if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and (act is None or gelu):
        return linear(x, layer.weight, layer.bias, gelu)
    y = layer(x)
    return y if act is None else act(y)


def is_hooked(module: nn.Module) -> bool:
    """Whether forward hooks wait for a call of the module, which is then not to be computed past it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_cpu_inference(x: Tensor) -> bool:
    """No gradients, on a CPU, and neither under autocast nor being traced: there the plain operations serve."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export())
