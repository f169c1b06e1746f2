"""The GPU's attention kernel, run on the CPU by Triton's interpreter, gives the numbers of the plain way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from textsam.modeling.attention import is_gpu_inference

# Width, heads, window, h, w, B: heads of 16, of 80 (64 + 16) and of 48; windows that fill the grid and such that do
# not, also in their last block of queries; rows of 32 tokens.
_COMPARE = """
import torch
from textsam.modeling.fused_attention import attend, is_supported
from textsam.modeling.image_encoder import Block

torch.manual_seed(0)
cases = [(32, 2, 3, 8, 8, 2), (80, 1, 14, 16, 14, 1), (48, 1, 4, 8, 4, 2), (80, 1, 0, 5, 32, 2)]
with torch.no_grad():
    for width, heads, window, h, w, count in cases:
        block = Block(width, heads, 1.0, True, window, max(h, w))
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
        x = torch.randn(count, h, w, width)
        expected = block._windowed(x) if window else block.attn(x)
        tables = torch.cat([table.flip(0) for table in block.attn.tables(window or h, window or w)])
        out = attend(block.attn.qkv(x), block.attn.padding_row(x), tables, window, heads)
        print(((block.attn.proj(out) - expected).abs().max() / expected.abs().max()).item())
sizes = [(80, 14, 64), (64, 0, 64), (80, 0, 40), (72, 14, 64), (64, 20, 64), (12, 3, 8)]
print([is_supported(torch.bfloat16, *size) for size in sizes], is_supported(torch.float32, 64, 14, 64))
"""


def test_same_as_the_plain_way() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPARE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    *errors, supported = done.stdout.splitlines()
    assert supported == "[True, True, False, False, False, False] False"
    assert len(errors) == 4
    assert all(float(error) < 1e-5 for error in errors), errors


def test_only_where_it_applies() -> None:
    """On a GPU, without gradients; a tensor without data stands for one there."""

    class OnGpu:
        device = torch.device("cuda")

    x: torch.Tensor = OnGpu()  # type: ignore[assignment]
    assert not is_gpu_inference(x)
    with torch.no_grad():
        assert is_gpu_inference(x) == (torch.version.cuda is not None)
        assert not is_gpu_inference(torch.zeros(1))
