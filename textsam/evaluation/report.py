"""What an evaluation says: sums of its scores, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from textsam.evaluation.geometry import GeometryScores
from textsam.evaluation.metrics import expected_calibration_error, mean, semantic_scores
from textsam.evaluation.text import LOW_THRESHOLD, TextScores, absence_auroc, average_precision
from textsam.files.atomic import write_atomically

MAX_PROBLEMS = 1000
"""Problems written to the JSON; the count is always whole."""


@dataclass
class Tally:
    """Scores of one data set as they come in.

    Attributes:
        instances_left_out: those over the cap on the instances of an image.
        images_left_out: pictures that could not be read or have another size than the file says.
        truth: the file that words were scored against.
        names: those asked for; unknown_names: those that the model's text side refuses, which are not scored.
    """

    name: str
    images: int = 0
    images_left_out: int = 0
    instances: int = 0
    instances_left_out: int = 0
    truth: str | None = None
    names: list[str] = field(default_factory=list)
    unknown_names: list[str] = field(default_factory=list)
    geometry: GeometryScores = field(default_factory=GeometryScores)
    text: TextScores = field(default_factory=TextScores)


@dataclass(frozen=True)
class Summary:
    """Scores of one data set, or of all together. None: not asked for, or no data.

    Attributes:
        filled_box, ellipse, box: mean IoU over instances, of the two baselines and of the box prompt.
        clicks: number of clicks -> mean IoU; of the first click's three masks the one of highest predicted IoU counts.
        one_click_oracle: the best of the three by the truth. one_click_single: the one mask of multimask_output=False.
        text_click, one_click_beside_text: name and first click; that click alone, over the same instances.
        text_box, box_beside_text: name and box; that box alone, over the same instances.
        text: see `semantic_scores`; "instance_precision", "instance_recall": of the instances found for the names that
            are there, those that match one of theirs at IoU 0.5, and the reverse; "ap", "ap50", "ap75", "ar100" of the
            instances (COCO, one set at a time).
        absence: see `absence_auroc`.
        calibration: expected calibration error of the confidence against the IoU ("box", "one_click"), against a match
            at IoU 0.5 ("text"), and of the presence against the truth ("presence").
    """

    name: str
    images: int
    images_left_out: int
    instances: int
    instances_left_out: int
    truth: str | None
    names: int
    unknown_names: list[str]
    filled_box: float | None
    ellipse: float | None
    box: float | None
    clicks: dict[int, float | None]
    one_click_oracle: float | None
    one_click_single: float | None
    text_click: float | None
    one_click_beside_text: float | None
    text_box: float | None
    box_beside_text: float | None
    text: dict[str, Any] | None
    absence: dict[str, Any] | None
    calibration: dict[str, float | None]


@dataclass(frozen=True)
class Report:
    """A whole evaluation. `overall` is the mean over the instances (pairs) of all sets, `mean_of_sets` that of sets."""

    model: str
    version: str
    options: dict[str, Any]
    sets: list[Summary]
    overall: Summary
    mean_of_sets: dict[str, float]
    problem_count: int
    problems: list[str]
    seconds: float

    def write(self, path: str | Path) -> None:
        """JSON, whole or not at all."""
        write_atomically(Path(path), (json.dumps(asdict(self), indent=1) + "\n").encode())

    def print(self, console: Console) -> None:
        """The tables of masks and of words, with what was left out below."""
        console.print(Group(*self._tables(console.width)))
        for line in self._notes():
            console.print(line, style="dim", markup=False, highlight=False)

    def _tables(self, width: int) -> list[Table]:
        columns: dict[str, Callable[[Summary], str]] = {
            "instances": lambda s: str(s.instances),
            "filled box": lambda s: _number(s.filled_box),
            "ellipse": lambda s: _number(s.ellipse),
            "box": lambda s: _number(s.box),
            **{f"{n} click{'s' * (n > 1)}": partial(_clicks, count=n) for n in self.overall.clicks},
            "best of 3": lambda s: _number(s.one_click_oracle),
            "single mask": lambda s: _number(s.one_click_single),
            "text+ click": lambda s: _number(s.text_click),
            "click alone": lambda s: _number(s.one_click_beside_text),
            "text+ box": lambda s: _number(s.text_box),
            "box alone": lambda s: _number(s.box_beside_text),
        }
        tables = []
        if any(s.filled_box is not None for s in self.sets):
            tables += self._table("Masks: mean IoU over instances", columns, width)
        if any(s.text for s in self.sets):
            columns = {
                "names": lambda s: str(s.names),
                "pairs": lambda s: str(sum(count for _, count in s.text["per_class"].values()) if s.text else 0),
                "IoU pairs": lambda s: _number(_get(s.text, "miou_pairs")),
                "IoU classes": lambda s: _number(_get(s.text, "miou_classes")),
                "data set IoU": lambda s: _number(_get(s.text, "iou_dataset")),
                "instances right": lambda s: _number(_get(s.text, "instance_precision")),
                "found": lambda s: _number(_get(s.text, "instance_recall")),
                "AP": lambda s: _number(_get(s.text, "ap")),
                "AP50": lambda s: _number(_get(s.text, "ap50")),
                "absence AUROC": lambda s: _number(_get(s.absence, "auroc")),
                "confusable": lambda s: _number(_get(s.absence, "auroc_confusable")),
                "ECE text": lambda s: _number(s.calibration.get("text")),
                "ECE presence": lambda s: _number(s.calibration.get("presence")),
            }
            tables += self._table("Words: union of the instances of each name in the image", columns, width)
        return tables

    def _table(self, title: str, columns: dict[str, Callable[[Summary], str]], width: int) -> list[Table]:
        """One table, or several below each other where `width` characters are too few: rich would cut figures off."""
        rows = [*self.sets, self.overall] if len(self.sets) > 1 else self.sets
        shown = {k: [get(s) for s in rows] for k, get in columns.items()}
        shown = {k: values for k, values in shown.items() if any(v != "-" for v in values)}
        all_names = [summary.name for summary in self.sets]
        names = [_short(summary.name, all_names) for summary in rows]
        gap = 2  # beside each column
        room = width - gap - max(cell_len(name) for name in ("set", *names))
        widths: dict[str, int] = {}
        for one_line in (True, False):
            if one_line or sum(widths.values()) > room:
                words = {k: (k,) if one_line else k.split() for k in shown}
                widths = {k: max(5, *map(len, (*words[k], *values))) + gap for k, values in shown.items()}
        parts: list[list[str]] = []
        for heading in shown:
            if not parts or sum(widths[k] for k in (*parts[-1], heading)) > room:
                parts.append([])
            parts[-1].append(heading)
        tables: list[Table] = []
        for part in parts:
            table = Table(title=None if tables else title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            table.add_column("set", no_wrap=True)
            for heading in part:
                table.add_column(heading, justify="right", width=widths[heading] - gap)
            for index, name in enumerate(names):
                if rows[index] is self.overall:
                    table.add_section()
                table.add_row(Text(name), *(shown[heading][index] for heading in part))  # brackets are no markup
            tables.append(table)
        return tables

    def _notes(self) -> list[str]:
        notes = []
        left_out = self.overall.instances_left_out
        if left_out:
            notes.append(f"{left_out} instances over {self.options['max_instances']} in an image were left out.")
        if len(self.sets) > 1 and self.mean_of_sets:
            notes.append("Mean of sets: " + ", ".join(f"{k} {v:.3f}" for k, v in self.mean_of_sets.items()))
        for summary in self.sets:
            if summary.unknown_names:
                notes.append(f"{summary.name}: unknown to the text encoder: {', '.join(summary.unknown_names)}")
        notes += self.problems[:5]
        if self.problem_count > 5:
            notes.append(f"... and {self.problem_count - 5} more problems")
        notes.append(f"{self.seconds:.0f} s")
        return notes


def summarise(tally: Tally, *, with_ap: bool = True) -> Summary:
    """Sums up a set, or several added together (for which COCO AP, made for one set, is left out)."""
    geometry, text = tally.geometry, tally.text
    one_click = geometry.one_click_confidence if 1 in geometry.click_iou else []
    calibration = {
        "box": expected_calibration_error(geometry.box_confidence, geometry.box),
        "one_click": expected_calibration_error(one_click, geometry.click_iou.get(1, [])),
        "text": None,
        "presence": expected_calibration_error([p[1] for p in text.presence], [float(p[2]) for p in text.presence]),
    }
    semantic: dict[str, Any] | None = None
    if text.names or text.presence:
        semantic = semantic_scores(text.names, text.intersections, text.unions)
        matched, answers, wanted = (sum(counts) for counts in (text.matches, text.answers, text.wanted))
        semantic["instance_precision"] = matched / answers if answers else None
        semantic["instance_recall"] = matched / wanted if wanted else None
        if with_ap:
            precision = average_precision(text, tally.images, len(tally.names))
            semantic |= {key: getattr(precision, key) for key in ("ap", "ap50", "ap75", "ar100")}
            semantic["ap_confidence_from"] = LOW_THRESHOLD
            calibration["text"] = expected_calibration_error(precision.confidences, precision.correct)
    return Summary(
        name=tally.name,
        images=tally.images,
        images_left_out=tally.images_left_out,
        instances=tally.instances,
        instances_left_out=tally.instances_left_out,
        truth=tally.truth,
        names=len(tally.names),
        unknown_names=tally.unknown_names,
        filled_box=mean(geometry.filled_box),
        ellipse=mean(geometry.ellipse),
        box=mean(geometry.box),
        clicks={count: mean(ious) for count, ious in sorted(geometry.click_iou.items())},
        one_click_oracle=mean(geometry.one_click_oracle),
        one_click_single=mean(geometry.one_click_single),
        text_click=mean(geometry.text_click),
        one_click_beside_text=mean(geometry.one_click_beside_text),
        text_box=mean(geometry.text_box),
        box_beside_text=mean(geometry.box_beside_text),
        text=semantic,
        absence=absence_auroc(text) if text.presence else None,
        calibration=calibration,
    )


def add_up(tallies: list[Tally]) -> Summary:
    """All sets together: the mean over all their instances, pairs and questions."""
    total = Tally(name="all")
    for tally in tallies:
        for key in ("images", "images_left_out", "instances", "instances_left_out"):
            setattr(total, key, getattr(total, key) + getattr(tally, key))
        total.names = list(dict.fromkeys(total.names + tally.names))
        total.geometry.extend(tally.geometry)
        total.text.extend(tally.text)
    return summarise(total, with_ap=False)


def mean_of_sets(summaries: list[Summary]) -> dict[str, float]:
    """The mean over sets of every single-number score; sets without a score do not count for it."""
    values: dict[str, list[float]] = {}
    for summary in summaries:
        plain = {key: getattr(summary, key) for key in ("filled_box", "ellipse", "box", "text_box")}
        plain |= {f"{count}_click": value for count, value in summary.clicks.items()}
        plain |= {key: getattr(summary, key) for key in ("one_click_oracle", "one_click_single", "text_click")}
        for key, value in plain.items():
            if value is not None:
                values.setdefault(key, []).append(value)
    return {key: sum(found) / len(found) for key, found in values.items()}


def _short(name: str, all_names: list[str]) -> str:
    """folder/stem -> folder, where all stems are the same."""
    stems = {other.rpartition("/")[2] for other in all_names}
    return name.rpartition("/")[0] if len(stems) == 1 and len(all_names) > 1 and "/" in name else name


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _clicks(summary: Summary, count: int) -> str:
    return _number(summary.clicks.get(count))


def _get(scores: dict[str, Any] | None, key: str) -> Any:
    return None if scores is None else scores.get(key)
