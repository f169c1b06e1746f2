"""Labelling on a real Ray cluster on this machine, with workers and drivers killed while they work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from textsam.commands.cli import app
from textsam.labelling.engines import run_local
from textsam.labelling.shards import RunFolder
from textsam.labelling.sources import list_pictures
from textsam.labelling.step import LabelSettings

TIMEOUT = 900  # s; an idle machine needs a small part of it


@pytest.fixture
def photos(in_tmp: Path) -> Path:
    (in_tmp / "photos").mkdir()
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(in_tmp / "photos" / f"{number}.png")
    (in_tmp / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (in_tmp / "classes.txt").write_text("cat @ 0\ndog @ 0\n")
    return in_tmp / "photos"


def rows(out: str) -> list[dict]:
    paths = sorted((Path(out) / "shards").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def label_here(tiny_folder: Path, shard_size: int) -> list[dict]:
    """What one process without Ray finds."""
    settings = LabelSettings(("cat @ 0", "dog @ 0"), model=str(tiny_folder), device="cpu")
    shards = list(RunFolder("local").plan(list_pictures("photos"), shard_size))
    list(run_local(settings, "local", shards))
    return rows("local")


def assert_same(found: list[dict], expected: list[dict]) -> None:
    """The same pictures with the same objects. Masks of random weights lie at the threshold: where a process computes
    with another number of threads, rounding alone moves some of their pixels."""
    plain = [[{key: row[key] for key in row if key != "annotations"} for row in part] for part in (found, expected)]
    assert plain[0] == plain[1]
    for row, other in zip(found, expected, strict=True):
        names = [[each["category_name"] for each in part["annotations"] or []] for part in (row, other)]
        assert names[0] == names[1]
        for each, twin in zip(row["annotations"] or [], other["annotations"] or [], strict=True):
            assert each["area"] == pytest.approx(twin["area"], rel=0.05, abs=20)


def start(tiny_folder: Path, *options: object) -> psutil.Popen:
    """The command in a process of its own, with its own Ray."""
    words = ["label", "photos", "--classes", "classes.txt", "--out", "out", "--engine", "ray", *options]
    command = [sys.executable, "-m", "textsam", *words, "--model", tiny_folder, "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return psutil.Popen(list(map(str, command)), env=environment, **pipes)


def done_shards() -> int:
    return len(list(Path("out/shards").glob("*.parquet")))


def wait_for(condition: Callable[[], bool], run: psutil.Popen) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        if run.poll() is not None:
            raise AssertionError(run.communicate()[1])
        assert time.monotonic() < end
        time.sleep(0.02)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The actors among the descendants of a process."""
    found = []
    for child in process.children(recursive=True):
        try:
            if any("ShardWorker" in word for word in child.cmdline()[:1]):
                found.append(child)
        except psutil.Error:
            continue  # it has ended meanwhile
    return found


def test_a_killed_worker_loses_and_doubles_nothing(photos: Path, tiny_folder: Path) -> None:
    run = start(tiny_folder, "--workers", 1, "--shard-size", 2)
    wait_for(lambda: done_shards() >= 1, run)
    (worker,) = workers_of(run)
    worker.kill()
    assert done_shards() < 6
    output, errors = run.communicate(timeout=TIMEOUT)
    assert run.returncode == 1, errors  # one picture is broken
    assert "in 11 pictures" in output
    assert "1 failed" in output
    assert_same(rows("out"), label_here(tiny_folder, 2))
    assert len({row["key"] for row in rows("out")}) == len(rows("out")) == 12


def test_options(photos: Path) -> None:
    words = ["label", "photos", "--classes", "classes.txt", "--out", "out"]
    result = CliRunner().invoke(app, [*words, "--workers", "2"])
    assert result.exit_code == 2
    assert "go with --engine ray" in result.output
    with socket.socket() as unused:  # a port at which nobody listens
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        result = CliRunner().invoke(app, [*words, "--engine", "ray", "--address", address])
    assert result.exit_code == 1
    assert f"no Ray cluster at '{address}'" in result.output


@pytest.mark.slow
def test_a_killed_run_goes_on_with_two_workers(photos: Path, tiny_folder: Path) -> None:
    """A driver is killed with all that it started; then a second one does the rest, of which a worker is killed."""
    first = start(tiny_folder, "--workers", 2, "--shard-size", 1)
    wait_for(lambda: done_shards() >= 2, first)
    for process in [first, *first.children(recursive=True)]:
        process.kill()
    first.communicate()
    before, good = done_shards(), sum(row["error"] is None for row in rows("out"))
    assert before < 12
    second = start(tiny_folder, "--workers", 2, "--shard-size", 1)
    wait_for(lambda: done_shards() > before or bool(workers_of(second)), second)
    for worker in workers_of(second)[:1]:
        worker.kill()
    output, errors = second.communicate(timeout=TIMEOUT)
    assert second.returncode == 1, errors  # one picture is broken
    assert f"{good} done before" in output  # a broken picture is tried again
    assert_same(rows("out"), label_here(tiny_folder, 100))


@pytest.mark.slow
def test_a_cluster_of_two_nodes_loses_one_of_them(photos: Path, tiny_folder: Path) -> None:
    """Two nodes with processes of their own, reached by address; one is taken away in mid-run."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        run = start(tiny_folder, "--address", cluster.address, "--workers", 2, "--shard-size", 1)
        wait_for(lambda: done_shards() >= 2, run)
        cluster.remove_node(second, allow_graceful=False)
        output, errors = run.communicate(timeout=TIMEOUT)
        assert run.returncode == 1, errors  # one picture is broken
        assert "1 failed" in output
        assert_same(rows("out"), label_here(tiny_folder, 1))
    finally:
        cluster.shutdown()
