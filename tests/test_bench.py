"""The benchmark runs, compares outputs, and writes its figures."""

from __future__ import annotations

import json
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from textsam import bench_gpu
from textsam.bench import run
from textsam.bench_memory import peak_mb


def test_bfloat16_is_left_out_where_the_cpu_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textsam.bench.has_fast_bfloat16", lambda device: False)
    console = Console(record=True, width=200, file=StringIO())
    run("tiny", rounds=1, work="decoder", out=tmp_path / "figures.json", console=console)
    assert "bfloat16 is left out" in console.export_text()
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["dtype"] for row in rows] == ["float32"] * 2


def test_table_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textsam.bench.has_fast_bfloat16", lambda device: True)  # emulated, "tiny" is quick enough
    path = tmp_path / "figures.json"
    console = Console(record=True, width=200, file=StringIO())
    run("tiny", rounds=2, out=path, console=console)
    table = console.export_text()
    figures = json.loads(path.read_text())
    assert figures["size"] == "tiny"
    rows = {(row["work"], row["dtype"]): row for row in figures["rows"]}
    assert list(rows) == [
        ("encoder", "float32"),
        ("decoder, 1 point", "float32"),
        ("decoder, 64 points", "float32"),
        ("generate, 4 x 4 points", "float32"),
        ("encoder", "bfloat16"),
        ("decoder, 1 point", "bfloat16"),
        ("decoder, 64 points", "bfloat16"),
    ]
    for (work, dtype), row in rows.items():
        assert len(row["ours_s"]) == len(row["theirs_s"]) == 2
        assert row["ratio"] == pytest.approx(min(row["theirs_s"]) / min(row["ours_s"]))
        assert work in table
        if dtype == "float32":
            assert row["difference"] < 1e-3, work  # two pixels of a small mask are that much
        if "generate" not in work:  # nothing is compared with itself, or with a constant
            assert row["difference"] > 0, work
    low = rows["encoder", "bfloat16"]
    assert 0 < low["difference"] < 0.1
    assert 0 < low["their_difference"] < 0.1


@pytest.mark.parametrize(("option", "value"), [("size", "xl"), ("dtype", "int8"), ("work", "all of it")])
def test_wrong_choice(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .*, but is '{value}'"):
        run(**{option: value}, out=tmp_path / "figures.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="there is no folder"):
        run(size="tiny", out=tmp_path / "none" / "figures.json")
    with pytest.raises(ValueError, match="there is nothing to measure of work 'generate' in dtype 'bfloat16'"):
        run(size="tiny", work="generate", dtype="bfloat16", rounds=1, out=tmp_path / "figures.json")


def test_curves(tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=StringIO())
    run("tiny", rounds=1, curves=tmp_path / "curves.json", console=console)
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [curve["grows_with"] for curve in curves][:3] == [
        "input side, px",
        "images of a batch, half side",
        "prompts",
    ]
    for curve in curves:
        assert len(curve["sizes"]) == len(curve["seconds"]) == len(curve["megabytes"]) == 2
        assert min(curve["seconds"]) > 0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000
    assert "off: TEXTSAM_NATIVE=0" in console.export_text()


def test_latency_of_the_embedded_model(tmp_path: Path) -> None:
    run("b", rounds=1, work="tiny", out=tmp_path / "figures.json", console=Console(file=StringIO()))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rows"] == []
    works = [row["work"] for row in figures["latencies"]]
    assert works == [
        "import and load, new process",
        "words to masks, photo included",
        "photo and first click",
        "further click",
        "click that corrects a mask",
    ]
    assert all(len(row["seconds"]) == 1 and row["seconds"][0] > 0 for row in figures["latencies"])


def test_peak_memory() -> None:
    def job() -> int:
        return int(np.ones(40_000_000, dtype=np.uint8).sum())

    result, megabytes = peak_mb(job, torch.device("cpu"))
    assert result == 40_000_000
    assert megabytes is None or 30 < megabytes < 100


def test_gpu_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a GPU, on the CPU and without the compiler: a failing row does not keep the others from running."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *args, **kwargs: None)
    path = tmp_path / "figures.json"
    console = Console(record=True, width=250, file=StringIO())
    original = bench_gpu.generate_job
    monkeypatch.setattr(
        bench_gpu, "generate_job", lambda *args: 1 / 0 if args[2].dtype == torch.bfloat16 else original(*args)
    )
    bench_gpu.run_gpu(["tiny"], 2, torch.device("cpu"), 600, path, console)
    figures = json.loads(path.read_text())
    rows = {(row["work"], row["way"], row["dtype"], row["count"]): row for row in figures["rows"]}
    assert [failure["row"] for failure in figures["failures"]] == ["ViT-TINY generate, eager, bfloat16, x 1"]
    assert "ZeroDivisionError" in figures["failures"][0]["traceback"]
    assert len(rows) == 11
    for key in (("encoder", "eager", "float32", 1), ("decoder", "eager", "float32", 64)):
        assert 0 < rows[key]["difference"] < 1e-4
    assert rows["generate", "eager", "float32", 1]["difference"] < 1e-3
    assert rows["generate", "eager", "float32", 1]["ours_s"] == []
    low = rows["encoder", "compiled", "bfloat16", 1]
    assert 0 < low["difference"] < 0.1
    assert 0 < low["their_difference"] < 0.1
    assert low["ratio"] == pytest.approx(min(low["theirs_s"]) / min(low["ours_s"]))
    assert low["ours_per_s"] == pytest.approx(1 / min(low["ours_s"]))
    assert rows["encoder", "CUDA graph", "bfloat16", 1]["theirs_per_s"] is None
    assert "transformers / s" in console.export_text()


def test_gpu_budget(tmp_path: Path) -> None:
    bench_gpu.run_gpu(["tiny"], 1, torch.device("cpu"), 0.0, tmp_path / "figures.json", Console(file=StringIO()))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rows"] == []
    assert [failure["row"] for failure in figures["failures"]] == ["ViT-TINY", "ViT-TINY, compiled"]
    assert {failure["traceback"] for failure in figures["failures"]} == {"left out: the time is over"}


def test_a_gpu_has_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list = []
    monkeypatch.setattr("textsam.bench.run_gpu", lambda *args: asked.extend(args))
    run("all", rounds=3, device="cuda", budget=7.0, out=tmp_path / "figures.json")
    assert asked[:4] == [("h", "l", "b"), 3, torch.device("cuda"), 7.0]
    for part in ({"work": "encoder"}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="leave both out"):
            run("h", device="cuda", out=tmp_path / "figures.json", **part)


def test_a_job_as_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is played again, into the same output; CUDA itself is played here."""

    class Graph:
        replays = 0

        def replay(self) -> None:
            Graph.replays += 1

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    calls: list[int] = []
    for name, stand_in in {
        "Stream": lambda device: Stream(),
        "current_stream": lambda device: Stream(),
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": lambda graph: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    job = bench_gpu._captured(lambda: calls.append(1) or "output", torch.device("cuda"))
    assert len(calls) == 3
    assert job() == job() == "output"
    assert len(calls) == 3
    assert Graph.replays == 2
