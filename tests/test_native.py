"""The compiled kernels: when they are used, what happens when they cannot be built, and what they refuse.

That their results are PyTorch's is tested where the results are: the tests that take the fixture `way`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from textsam.modeling.attention import augmented_attention
from textsam.native import build, library
from textsam.native.kernels import Kernels


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, which programs started from here use, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TEXTSAM_NATIVE")
    monkeypatch.setattr(library, "_finder", library._Finder())
    return tmp_path


def fake_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "fake-compiler"
    path.write_text(f"#!/bin/sh\necho call >> {folder}/calls\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


CREATE_OUTPUT = 'while [ "$1" != -o ]; do shift; done\necho nonsense > "$2"'


@pytest.mark.parametrize("wish", ["0", "off"])
def test_switched_off(cache: Path, monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setenv("TEXTSAM_NATIVE", wish)
    assert library.kernels() is None
    assert library.state() == "off: TEXTSAM_NATIVE=0"
    assert not (cache / "cache").exists()


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert library.kernels() is None
    assert "off: " in library.state()


def test_nobody_waits_for_a_build(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(cache, f"while [ ! -e {cache}/go ]; do sleep 0.02; done\n{CREATE_OUTPUT}", monkeypatch)
    assert library.kernels() is None
    assert library.state().startswith("being built")
    (cache / "go").touch()
    monkeypatch.setenv("TEXTSAM_NATIVE", "wait")
    assert library.kernels() is None  # what this compiler makes is no library
    assert library.state().startswith("off: ")


def test_a_failed_build_is_one_sentence_and_not_repeated(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEXTSAM_NATIVE", "wait")
    fake_compiler(cache, "echo 'x.cpp:1: error: out of luck' >&2; exit 1", monkeypatch)
    with caplog.at_level(logging.INFO):
        assert library.kernels() is None
        assert library.kernels() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "error: out of luck" in record.getMessage()
    assert "delete" in library.state()
    calls = (cache / "calls").read_text()
    monkeypatch.setattr(library, "_finder", library._Finder())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert library.kernels() is None
    assert caplog.records == []
    assert (cache / "calls").read_text() == calls
    assert [path.suffix for path in library.library_path().parent.iterdir() if path.is_dir()] == []


def test_a_folder_that_cannot_be_written(cache: Path) -> None:
    (cache / "cache").write_text("a file where the folder should be")
    assert library.kernels() is None
    assert "cannot be built in" in library.state()


def test_several_builders_build_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(cache, f"sleep 0.1\n{CREATE_OUTPUT}", monkeypatch)
    target = cache / "kernels.so"
    command = [sys.executable, build.__file__, str(target), str(cache)]
    builders = [subprocess.Popen(command) for _ in range(3)]
    assert [builder.wait() for builder in builders] == [0, 0, 0]
    assert (cache / "calls").read_text().count("call") == len(build.SOURCES) + 1
    assert target.read_text() == "nonsense\n"


def test_a_killed_builder_leaves_no_lock(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(cache, f"[ -e {cache}/go ] || exec sleep 60\n{CREATE_OUTPUT}", monkeypatch)
    target = cache / "kernels.so"
    first = subprocess.Popen([sys.executable, build.__file__, str(target), str(cache)], start_new_session=True)
    while not (cache / "calls").exists():
        assert first.poll() is None
    os.killpg(first.pid, 9)
    first.wait()
    (cache / "go").touch()
    build.build(target, cache)
    assert target.exists()


def test_the_cpu_and_the_sources_name_the_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library.library_path()
    assert path == library.library_path()
    monkeypatch.setattr(library, "_cpu", lambda: "another one")
    assert library.library_path() != path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("h", "w", "window", "d"), [(5, 7, 3, 8), (9, 9, 0, 6), (40, 33, 0, 16), (4, 4, 7, 80)])
def test_attention(compiled: Kernels, dtype: torch.dtype, h: int, w: int, window: int, d: int) -> None:
    """Odd numbers of keys, several blocks of scores, and windows that stick out on both sides."""
    if not compiled.can_attend(dtype):
        pytest.skip(f"this CPU has no products of {dtype}")
    torch.manual_seed(0)
    heads, key_h, key_w = 2, window or h, window or w
    qkv, padding = torch.randn(h, w, 3 * heads * d).to(dtype), torch.randn(3 * heads * d).to(dtype)
    table_h, table_w = torch.randn(2 * key_h - 1, d).to(dtype), torch.randn(2 * key_w - 1, d).to(dtype)
    out = compiled.attend(qkv, padding, torch.cat([table_h.flip(0), table_w.flip(0)]), window, heads)
    down, across = -(-h // key_h), -(-w // key_w)
    padded = padding.float().expand(down * key_h, across * key_w, -1).clone()
    padded[:h, :w] = qkv.float()
    windows = padded.view(down, key_h, across, key_w, 3, heads, d).permute(4, 0, 2, 5, 1, 3, 6).flatten(1, 2)
    expected = augmented_attention(*windows, table_h.float(), table_w.float())
    expected = expected.view(down, across, heads, key_h, key_w, d).permute(0, 3, 1, 4, 2, 5)
    expected = expected.reshape(down * key_h, across * key_w, heads * d)[:h, :w]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (out.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_upscaling_with_the_exact_gelu(compiled: Kernels) -> None:
    """Values far from zero on both sides, and one weight at a time, so that an error of the function shows."""
    torch.manual_seed(0)
    keys = torch.randn(1, 8, 130)
    up1, up2 = (torch.randn(16, 8), torch.randn(4)), (3 * torch.randn(8, 4), torch.randn(2))
    norm = (torch.randn(4), torch.randn(4), 1e-6)
    logits = compiled.upscale(keys, (10, 13), up1, norm, up2, torch.eye(2)[None])
    x = (up1[0] @ keys[0]).view(4, 4, 130) + up1[1][:, None]
    x = F.gelu(F.layer_norm(x.transpose(1, 2), (4,), *norm))
    x = F.gelu((x @ up2[0].T).view(4, 10, 13, 4, 2) + up2[1]).view(2, 2, 10, 13, 2, 2, 2)
    expected = x.permute(6, 2, 0, 4, 3, 1, 5).reshape(1, 2, 40, 52)
    assert (logits - expected).abs().max() < 5e-6 * expected.abs().max()


def test_threads_of_python_may_share_them(compiled: Kernels) -> None:
    qkv, tables = torch.randn(8, 8, 48), torch.randn(30, 8)
    expected, found = compiled.attend(qkv, torch.zeros(48), tables, 0, 2), []

    def attend() -> None:
        found.extend(compiled.attend(qkv, torch.zeros(48), tables, 0, 2) for _ in range(20))

    threads = [threading.Thread(target=attend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert all(torch.equal(out, expected) for out in found)


@pytest.mark.parametrize(
    "qkv", [torch.zeros(4, 4, 24).double(), torch.zeros(4, 24, 4).transpose(1, 2)], ids=["dtype", "strides"]
)
def test_what_does_not_fit_is_refused(compiled: Kernels, qkv: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected contiguous .* on the CPU"):
        compiled.attend(qkv, torch.zeros(24), torch.zeros(14, 4), 0, 2)
