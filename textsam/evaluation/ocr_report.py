"""What an evaluation of text regions says, as JSON and as tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from textsam.evaluation.ocr_metrics import (
    MAX_SHARE_IN_IGNORED,
    MIN_IOU,
    PixelCounts,
    RegionCounts,
    marked_shares,
)
from textsam.files.atomic import write_atomically

PROTOCOL = (
    f"Words and lines as in ICDAR 2015: polygon IoU above {MIN_IOU}, one to one; detections with more than "
    f"{MAX_SHARE_IN_IGNORED:.0%} of their area in a region that does not count are left out. Pixels are summed over a "
    "set's pictures. By script: wrong words count against the script of the word that they overlap most, ink inside "
    "the words of the script. Photos without text: all pixels that are marked as a word, line, text or ink."
)


@dataclass(frozen=True)
class FinderScores:
    """One finder on one set. None: the set or the finder does not know of it.

    Attributes:
        words, lines: as `RegionCounts.scores`; scripts: script -> the same of the words.
        strokes: as `PixelCounts.scores`; stroke_scripts: script -> the same inside the script's words.
        marked: as `marked_shares`, of the photos without text.
        seconds: median of a picture.
    """

    images: int
    words: dict[str, Any] | None
    lines: dict[str, Any] | None
    scripts: dict[str, dict[str, Any]]
    strokes: dict[str, Any] | None
    stroke_scripts: dict[str, dict[str, Any]]
    marked: dict[str, Any] | None
    seconds: float | None

    @classmethod
    def of(
        cls,
        *,
        images: int,
        words: RegionCounts,
        lines: RegionCounts,
        scripts: dict[str, RegionCounts],
        strokes: PixelCounts | None,
        stroke_scripts: dict[str, PixelCounts],
        marked: list[float],
        seconds: list[float],
    ) -> FinderScores:
        return cls(
            images,
            words.scores() if words.truths else None,
            lines.scores() if lines.truths else None,
            {script: counts.scores() for script, counts in sorted(scripts.items())},
            None if strokes is None else strokes.scores(),
            {script: counts.scores() for script, counts in sorted(stroke_scripts.items())},
            marked_shares(marked) if marked else None,
            round(float(np.median(seconds)), 3) if seconds else None,
        )


@dataclass
class OcrReport:
    """A whole evaluation: set -> finder -> scores."""

    model: str
    version: str
    limit: int | None
    sets: dict[str, dict[str, FinderScores]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    protocol: str = PROTOCOL

    def write(self, path: Path) -> None:
        """JSON, whole or not at all."""
        write_atomically(path, (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())

    def print(self, console: Console) -> None:
        """A table of all sets and finders, and one of scripts where there is more than one."""
        for table in (*self._main_tables(), self._script_table()):
            if table.row_count:
                console.print(table)
        console.print(self.protocol, style="dim", markup=False, highlight=False)
        for problem in self.problems[:5]:
            console.print(problem, style="dim", markup=False, highlight=False)
        if len(self.problems) > 5:
            console.print(f"... and {len(self.problems) - 5} more problems", style="dim")
        console.print(f"{self.seconds:.0f} s", style="dim", highlight=False)

    def _main_tables(self) -> list[Table]:
        """Words, lines, and the rest: each fits on a screen of 80 columns."""
        boxes = {"prec.": "precision", "recall": "recall", "F": "f", "PQ": "pq"}
        groups: dict[str, dict[str, tuple[str, str]]] = {
            "Words": {heading: ("words", key) for heading, key in boxes.items()},
            "Lines": {heading: ("lines", key) for heading, key in boxes.items()},
            "Ink; photos without text of which at most 2% is marked": {
                "ink IoU": ("strokes", "fgiou"),
                "ink F": ("strokes", "f"),
                "clean photos": ("marked", "within"),
            },
        }
        tables = []
        for title, columns in groups.items():
            table = _table(title, "set (pictures)", "finder")
            for heading in [*columns, "s"]:
                table.add_column(heading, justify="right", min_width=len("0.000"))
            for set_name, finders in self.sets.items():
                for name, scores in finders.items():
                    shown = [_number(_of(getattr(scores, group), key)) for group, key in columns.values()]
                    if set(shown) != {"-"}:
                        table.add_row(f"{set_name} ({scores.images})", name, *shown, _number(scores.seconds, 2))
            tables.append(table)
        return tables

    def _script_table(self) -> Table:
        table = _table("Words by script", "set", "finder", "script")
        for heading in ("words", "prec.", "recall", "F", "ink IoU", "ink F"):
            table.add_column(heading, justify="right", min_width=len("0.000"))  # names give way on a narrow screen
        for set_name, finders in self.sets.items():
            for name, scores in finders.items():
                for script, counts in scores.scripts.items() if len(scores.scripts) > 1 else ():
                    ink = scores.stroke_scripts.get(script)
                    row = [_number(counts[key]) for key in ("precision", "recall", "f")]
                    row += [_number(_of(ink, key)) for key in ("fgiou", "f")]
                    table.add_row(set_name, name, script, str(counts["truths"]), *row)
        return table


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _of(scores: dict[str, Any] | None, key: str) -> float | None:
    return None if scores is None else scores[key]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
