"""The benchmark runs, compares outputs, and writes its figures."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

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
    ]
    assert all(len(row["seconds"]) == 1 and row["seconds"][0] > 0 for row in figures["latencies"])


def test_peak_memory() -> None:
    def job() -> int:
        return int(np.ones(40_000_000, dtype=np.uint8).sum())

    result, megabytes = peak_mb(job, torch.device("cpu"))
    assert result == 40_000_000
    assert megabytes is None or 30 < megabytes < 100
