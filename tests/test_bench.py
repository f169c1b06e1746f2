"""The benchmark runs, compares outputs, and writes its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from textsam.bench import run
from textsam.bench_memory import peak_mb


@pytest.fixture
def app() -> Typer:
    app = Typer()
    app.command()(run)
    return app


def test_table_and_figures(app: Typer, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = CliRunner().invoke(app, ["--size", "tiny", "--rounds", "2", "--json", str(path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
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
        assert work in result.output
        if dtype == "float32":
            assert row["difference"] < 1e-4, work
    low = rows["encoder", "bfloat16"]
    assert 0 < low["difference"] < 0.1
    assert 0 < low["their_difference"] < 0.1


@pytest.mark.parametrize(("option", "value"), [("--size", "xl"), ("--dtype", "int8"), ("--work", "all of it")])
def test_wrong_choice(app: Typer, option: str, value: str) -> None:
    result = CliRunner().invoke(app, [option, value])
    assert result.exit_code == 2
    assert repr(value) in result.output


def test_peak_memory() -> None:
    def job() -> int:
        return int(np.ones(40_000_000, dtype=np.uint8).sum())

    result, megabytes = peak_mb(job, torch.device("cpu"))
    assert result == 40_000_000
    assert megabytes is None or 30 < megabytes < 100
