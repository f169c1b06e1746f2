"""The model card says what the record and the scores say, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_evaluation import Oracle, data  # noqa: F401 (a fixture)

from textsam.evaluation.scoring import run
from train.model_card import main, read_record

RECORD: dict[str, Any] = {
    "name": "textsam-test",
    "summary": "A model of a test.",
    "stages": [
        {"what": "words", "command": "python -m train.words", "machine": "CPU", "hours": 0.5, "steps": 10, "seed": 3},
        {"what": "masks", "command": "python -m train.masks", "machine": "2 cores", "hours": 1.25},
    ],
    "data": [{"name": "shapes", "images": 4, "used_for": "masks", "source": "drawn", "licence": "Apache-2.0"}],
    "failures": ["Thin things are lost."],
    "limits": ["It knows three names."],
}


def write(folder: Path, record: dict[str, Any]) -> Path:
    path = folder / "record.json"
    path.write_text(json.dumps(record))
    return path


def test_card_holds_the_record_and_the_scores(data: Path, tmp_path: Path) -> None:  # noqa: F811
    report = run(data, Oracle(data, unknown=("dog",)), out=tmp_path / "scores")
    model = tmp_path / "model"
    model.mkdir()
    save_file({"a": np.zeros((1000, 250), np.float16), "b": np.zeros(8, np.float16)}, model / "model.safetensors")
    record = write(tmp_path, RECORD)
    scores = tmp_path / "scores" / "scores.json"
    main(["--record", str(record), "--scores", str(scores), "--model", str(model)])
    card = (model / "README.md").read_text()

    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| model.safetensors | 0.25 M | 0.5 MB |" in card
    filled_box, ellipse = report.sets[0].filled_box, report.sets[0].ellipse
    row = re.search(r"^\| shapes/val \| 6 \|.*$", card, re.MULTILINE)
    assert row is not None
    expected = [f"{filled_box:.3f}", f"{ellipse:.3f}", *["1.000"] * 11]
    assert [cell.strip() for cell in row.group().strip("|").split("|")[2:]] == expected
    assert "shapes/val: dog" in card
    assert "| in all |  | 1.75 |" in card
    for text in ("python -m train.words", "Apache-2.0", "Thin things are lost.", "It knows three names."):
        assert text in card
    assert [p.name for p in model.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"author": "me"}, "unknown keys author"),
        ({"stages": [{"what": "words"}]}, r"stages\[0\].*missing"),
        ({"data": [{"colour": 1}]}, r"data\[0\] has unknown keys colour"),
    ],
)
def test_a_wrong_record_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_record(write(tmp_path, RECORD | change))


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    record, scores = write(tmp_path, RECORD), tmp_path / "scores.json"
    scores.write_text("{}")
    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        main(["--record", str(record), "--scores", str(scores), "--model", str(tmp_path)])
