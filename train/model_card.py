"""The model card of a trained model, from the record of its training and its scores.

    textsam evaluate DATA/*/val.json --model FOLDER --out scores
    python -m train.model_card --record record.json --scores scores/scores.json --model FOLDER

Nothing in the card is typed by hand but what the record says. The record is a JSON file:

    {"name": "textsam-tiny", "summary": "...",
     "stages": [{"what": "...", "command": "...", "machine": "...", "seed": 0, "steps": 2400, "hours": 0.8}],
     "data": [{"name": "voc", "images": 1580, "used_for": "words, masks", "source": "...", "licence": "..."}],
     "failures": ["..."], "limits": ["..."]}
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open

from train import command

FRONT_MATTER = """---
license: apache-2.0
library_name: textsam
pipeline_tag: image-segmentation
tags: [segment-anything, text-prompt, open-vocabulary]
---
"""


@dataclass(frozen=True)
class Stage:
    """One command of the training. seed and steps: None where it has none."""

    what: str
    command: str
    machine: str
    hours: float
    seed: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Data:
    """One set that was trained on."""

    name: str
    images: int
    used_for: str
    source: str
    licence: str


@dataclass(frozen=True)
class Record:
    """How a model came about."""

    name: str
    summary: str
    stages: list[Stage]
    data: list[Data]
    failures: list[str]
    limits: list[str]


def read_record(path: Path) -> Record:
    """Reads a record.

    Raises:
        ValueError: a key is missing or unknown, naming it.
    """
    content = _read_object(path)
    content = content | {
        "stages": [_fill(Stage, entry, f"{path}: stages[{i}]") for i, entry in enumerate(content.get("stages", []))],
        "data": [_fill(Data, entry, f"{path}: data[{i}]") for i, entry in enumerate(content.get("data", []))],
    }
    return _fill(Record, content, str(path))


def build_card(
    record: Record, scores: dict[str, Any], files: dict[str, tuple[int, int]], ocr: dict[str, Any] | None = None
) -> str:
    """The card as Markdown.

    Args:
        scores: `scores.json` of `textsam evaluate`.
        files: safetensors file -> (parameters, bytes).
        ocr: `ocr_scores.json` of `textsam evaluate --ocr`, of a model for written text.
    """
    parts = [f"{FRONT_MATTER}\n# {record.name}\n\n{record.summary}\n\n## Files"]
    rows = [[name, f"{count / 1e6:.2f} M", f"{size / 1e6:.1f} MB"] for name, (count, size) in files.items()]
    total = [sum(values) for values in zip(*files.values(), strict=True)]
    rows.append(["in all", f"{total[0] / 1e6:.2f} M", f"{total[1] / 1e6:.1f} MB"])
    parts.append(_table(["file", "parameters", "size"], rows))
    if ocr is not None:
        parts += ["## Scores on written text\n\n" + _how_ocr_scored(ocr), _ocr_table(ocr), _script_table(ocr)]
    parts.append(("## Scores" if ocr is None else "## Scores on everyday objects") + "\n\n" + _how_scored(scores))
    parts += [_mask_table(scores), _word_table(scores), _absence_text(scores), _classes_text(scores)]
    parts.append("## Training data")
    parts.append(
        _table(
            ["set", "pictures", "used for", "source", "licence as stated there"],
            [[d.name, str(d.images), d.used_for, d.source, d.licence] for d in record.data],
        )
    )
    parts.append("## Training")
    rows = [[s.what, s.machine, f"{s.hours:.2f}", _plain(s.steps), _plain(s.seed)] for s in record.stages]
    rows.append(["in all", "", f"{sum(s.hours for s in record.stages):.2f}", "", ""])
    parts.append(_table(["stage", "machine", "hours", "steps", "seed"], rows))
    parts.append("```\n" + "\n".join(stage.command for stage in record.stages) + "\n```")
    for title, entries in (("## Failures", record.failures), ("## Limits", record.limits)):
        if entries:
            parts.append(title + "\n\n" + "\n".join(f"- {entry}" for entry in entries))
    return "\n\n".join(part for part in parts if part) + "\n"


def weight_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every safetensors file below a folder -> (parameters, bytes)."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "np") as file:
            sizes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 (not a dict)
        found[str(path.relative_to(folder))] = (sum(math.prod(size) for size in sizes), path.stat().st_size)
    if not found:
        raise FileNotFoundError(f"no safetensors file in {folder}: name the folder of a saved model")
    return found


def _how_scored(scores: dict[str, Any]) -> str:
    options = scores["options"]
    limit = "all pictures" if options["limit"] is None else f"{options['limit']} pictures of each set"
    return (
        f"By `textsam evaluate` {scores['version']} on {limit}, at most {options['max_instances']} instances of a "
        f"picture ({scores['overall']['instances']} in all, {scores['overall']['instances_left_out']} left out). "
        "Mean IoU over instances; the filled box and the ellipse in it are what knowing nothing but the box gives. "
        "Clicks are simulated: the point farthest from the boundary, first of the object, then of the error. Of the "
        "three masks of one click the one of the highest predicted IoU counts; beside it the best of the three by the "
        "truth, and the mask of `multimask_output=False`."
    )


def _how_ocr_scored(ocr: dict[str, Any]) -> str:
    limit = "all pictures" if ocr["limit"] is None else f"{ocr['limit']} pictures of each set, evenly spaced"
    return f"By `textsam evaluate --ocr` {ocr['version']} on {limit}. {ocr['protocol']}"


def _ocr_table(ocr: dict[str, Any]) -> str:
    heading = ["set", "finder", "pictures", "word precision", "recall", "F", "PQ", "line precision", "recall", "F"]
    heading += ["ink fgIoU", "ink F", "text-free photos within 2%", "s a picture"]
    rows = []
    for set_name, finders in ocr["sets"].items():
        for finder, s in finders.items():
            words, lines, ink = s["words"] or {}, s["lines"] or {}, s["strokes"] or {}
            values = [words.get(key) for key in ("precision", "recall", "f", "pq")]
            values += [lines.get(key) for key in ("precision", "recall", "f")]
            values += [ink.get("fgiou"), ink.get("f"), (s["marked"] or {}).get("within"), s["seconds"]]
            rows.append([set_name, finder, str(s["images"]), *map(_number, values)])
    return _table(heading, rows)


def _script_table(ocr: dict[str, Any]) -> str:
    rows = []
    for set_name, finders in ocr["sets"].items():
        scripts = finders[ocr["model"]]["scripts"] if ocr["model"] in finders else {}
        for script, s in scripts.items() if len(scripts) > 1 else ():
            ink = finders[ocr["model"]]["stroke_scripts"].get(script) or {}
            values = [s["precision"], s["recall"], s["f"], ink.get("fgiou")]
            rows.append([set_name, script, str(s["truths"]), *map(_number, values)])
    if not rows:
        return ""
    return "By script:\n\n" + _table(["set", "script", "words", "precision", "recall", "F", "ink fgIoU"], rows)


def _summaries(scores: dict[str, Any]) -> list[dict[str, Any]]:
    sets = scores["sets"]
    return [*sets, scores["overall"]] if len(sets) > 1 else sets


def _mask_table(scores: dict[str, Any]) -> str:
    if all(s["filled_box"] is None for s in scores["sets"]):
        return ""
    counts = list(scores["overall"]["clicks"])
    heading = ["set", "instances", "filled box", "ellipse", "box"]
    heading += [f"{c} click{'s' * (c != '1')}" for c in counts]
    heading += ["best of 3", "single mask", "text + click", "click alone", "text + box", "box alone"]
    rows = []
    for s in _summaries(scores):
        values = [s["filled_box"], s["ellipse"], s["box"], *(s["clicks"].get(c) for c in counts)]
        values += [s[key] for key in ("one_click_oracle", "one_click_single", "text_click", "one_click_beside_text")]
        values += [s.get(key) for key in ("text_box", "box_beside_text")]
        rows.append([s["name"], str(s["instances"]), *map(_number, values)])
    means = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in scores["mean_of_sets"].items())
    note = f"\n\nMean of the sets: {means}." if len(scores["sets"]) > 1 and means else ""
    return _table(heading, rows) + note


def _word_table(scores: dict[str, Any]) -> str:
    rows = []
    for s in _summaries(scores):
        if s["text"] is None:
            continue
        text, absence = s["text"], s["absence"] or {}
        values = [text["miou_pairs"], text["miou_classes"], text["iou_dataset"]]
        values += [text.get(key) for key in ("instance_precision", "instance_recall", "ap", "ap50")]
        values += [absence.get("auroc"), absence.get("auroc_confusable")]
        values += [s["calibration"]["text"], s["calibration"]["presence"]]
        rows.append([s["name"], str(s["names"]), *map(_number, values)])
    if not rows:
        return ""
    heading = ["set", "names", "IoU pairs", "IoU classes", "data set IoU", "instances right", "found", "AP", "AP50"]
    unknown = [f"{s['name']}: {', '.join(s['unknown_names'])}" for s in scores["sets"] if s["unknown_names"]]
    note = f" Names that the text encoder does not know were not asked ({'; '.join(unknown)})." if unknown else ""
    return (
        "Words: the union of the instances found for a name that is in the picture against the union of the true ones; "
        "mean over (picture, name) pairs, over classes of their pairs, and over classes of summed intersections by "
        f"summed unions. Of the instances that were found, those that match a true one at IoU 0.5, and how many of the "
        f"true ones were found so.{note}\n\n"
        + _table([*heading, "absence AUROC", "confusable", "ECE text", "ECE presence"], rows)
    )


def _absence_text(scores: dict[str, Any]) -> str:
    confusable = (scores["overall"]["absence"] or {}).get("confusable") or {}
    if not confusable:
        return ""
    rows = [[pair, _number(value), _number(right), str(count)] for pair, (value, right, count) in confusable.items()]
    return "Confusable names, where exactly one is in the picture:\n\n" + _table(
        ["names", "AUROC", "right one scores higher", "pictures"], rows
    )


def _classes_text(scores: dict[str, Any]) -> str:
    parts = []
    for s in scores["sets"]:
        per_class = (s["text"] or {}).get("per_class") or {}
        if len(per_class) > 1:
            listed = ", ".join(f"{name} {value:.2f} ({count})" for name, (value, count) in per_class.items())
            parts.append(f"IoU by class on {s['name']} (pictures): {listed}.")
    return "\n\n".join(parts)


def _read_object(path: Path, keys: Sequence[str] = (), written_by: str = "") -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        expected = f"what {written_by} writes" if written_by else "a JSON object"
        raise ValueError(f"{path} must hold {expected}" + (f", but lacks {', '.join(missing)}" if missing else ""))
    return content


def _fill(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be an object with {', '.join(field.name for field in fields(kind))}")
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"{where} has unknown keys {', '.join(unknown)}: known are {', '.join(sorted(known))}")
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _table(heading: list[str], rows: list[list[str]]) -> str:
    shown = [i for i in range(len(heading)) if any(row[i] != "-" for row in rows)]
    lines = [[heading[i] for i in shown], ["---" if i == 0 else "---:" for i in shown]]
    lines += [[row[i].replace("|", "\\|") for i in shown] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(value: int | None) -> str:
    return "-" if value is None else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", required=True, type=command.file)
    parser.add_argument("--scores", required=True, type=command.file, help="scores.json of `textsam evaluate`")
    parser.add_argument("--ocr-scores", type=command.file, help="ocr_scores.json of `textsam evaluate --ocr`")
    parser.add_argument("--model", required=True, type=Path, help="folder of the model; README.md is written there")
    given = parser.parse_args(arguments)
    record, files = read_record(given.record), weight_files(given.model)
    scores = _read_object(given.scores, ("options", "overall", "sets", "mean_of_sets"), "`textsam evaluate`")
    ocr = None
    if given.ocr_scores:
        ocr = _read_object(given.ocr_scores, ("limit", "protocol", "sets", "model"), "`textsam evaluate --ocr`")
    card = build_card(record, scores, files, ocr)
    target = given.model / "README.md"
    temporary = target.with_name(target.name + ".part")
    temporary.write_text(card, encoding="utf-8")
    os.replace(temporary, target)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
