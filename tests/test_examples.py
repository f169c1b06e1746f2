"""The example scripts run, and print and write what they promise."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from hub_server import HubServer
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "app" / "examples"


@pytest.fixture
def run(in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run_example(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_every_example_is_run() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert path.stem in tests, path


def test_transformers_pipeline(run) -> None:
    told = run("transformers_pipeline")
    assert told.startswith("cat 0.")
    assert "['cat']\n['cup'" in told
    assert np.asarray(Image.open("cat-mask.png")).mean() > 80


def test_transformers_processor(run) -> None:
    assert "(1, 1, 300, 451)" in run("transformers_processor")


def test_slices_find_what_is_too_small_in_the_whole(run) -> None:
    told = run("supervision_slicer")
    match = re.search(r"as a whole: (\d+), in slices: (\d+) \['cat'\]", told)
    assert match is not None, told
    assert int(match[1]) < 65
    assert 75 <= int(match[2]) <= 105  # of 100
    assert np.asarray(Image.open("slices.png")).shape == (512, 512, 3)


def test_detector_boxes(run) -> None:
    told = run("supervision_detector_boxes")
    assert "'cat'" in told
    assert "'face'" in told
    dataset = sv.DetectionDataset.from_yolo(".", "labels", "data.yaml")
    assert dataset.classes == ["cat", "face"]


def test_video(run) -> None:
    assert "4 frames, numbers [[1], [1], [1], [1]]" in run("video_tracks")
    assert Path("tracked.mp4").is_file()


def test_hub(run, hub: HubServer) -> None:
    told = run("hub", "somebody/my-sam")
    assert "/somebody/my-sam" in told
    assert "1 found\n['cat']" in told


def test_onnx(in_tmp: Path) -> None:
    """In a process of its own: torch's exporter warns about what other libraries do."""
    script = str(EXAMPLES / "onnx_without_torch.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cat: there with 0." in done.stdout
    assert np.asarray(Image.open("cat.png")).shape == (300, 451)


def test_label(run) -> None:
    told = run("label_many")
    assert "chelsea.jpg ['cat']" in told
    assert "coffee.jpg ['cup'" in told
    assert run("label_many").count("labelled") == 0  # all is done
