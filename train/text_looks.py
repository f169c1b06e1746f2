"""How text looks where people meet it: captions of variety shows, signs, posters, dense print. All drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.text_layers import Colour, Style

KINDS = {"caption": 0.36, "sign": 0.28, "print": 0.18, "scattered": 0.18}
SCRIPTS = {"latin": 0.4, "hangul": 0.38, "digits": 0.08, "kana": 0.06, "han": 0.08}
SCRIPT_HELP = f"of synthetic text: {', '.join(SCRIPTS)}; may be repeated; hangul=3 is three times as often as latin"


def script_shares(given: Sequence[str] | None) -> tuple[tuple[str, float], ...]:
    """What `--script` says: names with a share each, "hangul=3", or without, "hangul", which is a share of 1.

    Raises:
        ValueError: a script that there is not, or a share that is no number above 0.
    """
    if not given:
        return tuple(SCRIPTS.items())
    shares = []
    for entry in given:
        name, _, share = entry.partition("=")
        try:
            value = float(share or 1)
        except ValueError:
            value = 0.0
        if name not in SCRIPTS or not 0 < value < float("inf"):
            expected = f"one of {', '.join(SCRIPTS)}, or NAME=SHARE with a share above 0"
            raise ValueError(f"Expected --script {expected}, got {entry!r}.")
        shares.append((name, value))
    return tuple(shares)


@dataclass(frozen=True)
class Look:
    """A block before it is drawn. Angles in degrees."""

    kind: str
    font_size: float  # px
    max_lines: int
    words_per_line: int
    style: Style
    rotation: float
    perspective: float  # largest shift of a corner, share of the block's side
    curve: float  # sag of a line's middle, share of the font size


def draw_look(rng: np.random.Generator, kind: str, background: Colour, scale: float = 1.0) -> Look:
    """Args:
    background: mean colour of the place, for contrast. scale: of the font sizes.
    """
    sizes = {"caption": (20, 100), "sign": (12, 90), "print": (9.5, 19), "scattered": (10, 40)}
    low, high = sizes[kind]
    size = scale * float(np.exp(rng.uniform(np.log(low), np.log(high))))
    lines = {"caption": (1, 3), "sign": (1, 4), "print": (4, 12), "scattered": (1, 2)}[kind]
    words = {"caption": 4, "sign": 3, "print": 7, "scattered": 2}[kind]
    steep = {"caption": 0.25, "sign": 0.9, "print": 0.5, "scattered": 0.5}[kind]
    flat = rng.random() > steep
    return Look(
        kind,
        size,
        int(rng.integers(lines[0], lines[1] + 1)),
        int(rng.integers(1, words + 1)) if kind != "print" else words,
        draw_style(rng, kind, background),
        0.0 if flat else float(rng.normal(0, 12 if kind == "sign" else 6)),
        0.0 if flat else float(rng.uniform(0, 0.18)),
        float(rng.normal(0, 0.5)) if kind in ("caption", "sign") and rng.random() < 0.2 else 0.0,
    )


def draw_style(rng: np.random.Generator, kind: str, background: Colour) -> Style:
    """Colours that can be read on each other, and the effects that go with the kind."""
    panelled = rng.random() < {"caption": 0.25, "sign": 0.65, "print": 0.8, "scattered": 0.3}[kind]
    panel = draw_colour(rng, vivid=kind != "print") if panelled else None
    below = background if panel is None else panel
    effects = kind in ("caption", "sign") and rng.random() < (0.85 if kind == "caption" else 0.3)
    outline = float(rng.uniform(0.03, 0.12)) if effects and rng.random() < 0.75 else 0.0
    outline_colour = contrasting(rng, below) if outline else (0.0, 0.0, 0.0)
    against = outline_colour if outline else below
    count = int(rng.integers(2, 5)) if kind == "caption" and rng.random() < 0.3 else 1
    fills = tuple(contrasting(rng, against) for _ in range(count))
    second = float(rng.uniform(0.04, 0.12)) if outline and rng.random() < 0.3 else 0.0
    shadow = shadow_blur = None
    if rng.random() < (0.45 if effects else 0.1):
        shadow = (float(rng.uniform(-0.1, 0.12)), float(rng.uniform(0.02, 0.14)))
        shadow_blur = float(rng.uniform(0, 0.12)) * (rng.random() < 0.6)
    return Style(
        fills=fills,
        gradient=contrasting(rng, against) if effects and rng.random() < 0.3 else None,
        outline=outline,
        outline_colour=outline_colour,
        second_outline=second,
        second_colour=contrasting(rng, outline_colour),
        shadow=shadow,
        shadow_blur=shadow_blur or 0.0,
        shadow_colour=tuple(rng.uniform(0, 70, 3)) if luminance(fills[0]) > 90 else contrasting(rng, fills[0]),
        glow=float(rng.uniform(0.1, 0.35)) if effects and rng.random() < 0.25 else 0.0,
        glow_colour=contrasting(rng, against) if outline else contrasting(rng, fills[0]),
        panel=panel,
        panel_opacity=1.0 if rng.random() < 0.6 else float(rng.uniform(0.6, 1.0)),
        panel_margin=float(rng.uniform(0.15, 0.8)),
        line_height=float(rng.uniform(1.1, 1.6)),
        spacing=float(rng.uniform(0.02, 0.25)) if rng.random() < 0.15 else 0.0,
        align=str(rng.choice(["left", "centre", "right"], p=[0.45, 0.45, 0.1])),
    )


def luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def draw_colour(rng: np.random.Generator, vivid: bool = True) -> Colour:
    """Black, white, grey or any colour; pale ones when not vivid."""
    kind = rng.random()
    if not vivid:
        colour = rng.uniform(200, 255) + rng.normal(0, 6, 3) if kind < 0.85 else rng.uniform(0, 70, 3)
    elif kind < 0.2:
        colour = np.full(3, rng.uniform(225, 255))
    elif kind < 0.4:
        colour = np.full(3, rng.uniform(0, 40))
    else:
        colour = rng.uniform(0, 255, 3)
        colour = (
            colour if kind < 0.6 else np.where(rng.permutation(3) == 0, 20 * rng.random(), 255 - 60 * rng.random(3))
        )
    return tuple(float(c) for c in np.clip(colour, 0, 255))


def contrasting(rng: np.random.Generator, other: Colour, least: float = 70.0) -> Colour:
    """A colour whose luminance is at least `least` away: black or white when no other is found."""
    for _ in range(8):
        colour = draw_colour(rng)
        if abs(luminance(colour) - luminance(other)) >= least:
            return colour
    return (255.0, 255.0, 255.0) if luminance(other) < 128 else (0.0, 0.0, 0.0)
