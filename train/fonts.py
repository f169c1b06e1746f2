"""Installed fonts by the script that they can write, half-way reliably parted into those of training and the others.

A font is taken for a script when it has glyphs for a sample of it. Fonts of one family never stand on both sides of the
split: a bold face is no unseen font when training saw the regular one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts")
SAMPLES = {
    "latin": "AZazgQ09,.!?&",
    "hangul": "가나한글뷁힣쥬",
    "kana": "あいうんアイウンー",
    "han": "一中国人語漢",
}
PACKAGES = {
    "latin": "fonts-dejavu fonts-liberation fonts-roboto",
    "hangul": "fonts-nanum fonts-nanum-extra fonts-noto-cjk",
    "kana": "fonts-noto-cjk",
    "han": "fonts-noto-cjk",
}
# Symbols, musical notes, icons, keys in their boxes: they have Latin letters, drawn as something else.
_NO_TEXT = re.compile(r"symbol|keyboard|dingbat|emoji|icon|math|music|barcode|lastresort|jamo", re.IGNORECASE)
# Words of a family's name that tell its faces apart, languages included.
_OF_FACES = {"jp", "kr", "sc", "tc", "hk", "mono", "condensed", "light", "thin", "black", "bold", "medium", "demilight"}
_OF_FACES |= {"extra", "eco", "yethangul"}
PROBE_SIZE = 16  # px, to see whether a glyph is drawn at all
HELD_OUT = 4  # one family in so many belongs to validation
_PLACE = 1  # which of them: Noto Sans CJK, which has all scripts, stays with training


@dataclass(frozen=True)
class Face:
    """One face of a font file."""

    path: str
    index: int  # in a collection
    family: str
    scripts: frozenset[str]

    @property
    def held_out(self) -> bool:
        """Whether validation alone may use it."""
        return zlib.crc32(self.family.encode()) % HELD_OUT == _PLACE

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The face at `size` px per em."""
        return _load(self.path, self.index, size)


@lru_cache(maxsize=512)
def _load(path: str, index: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, index=index)


@lru_cache(maxsize=8)
def installed_faces(folders: tuple[str, ...] = FONT_FOLDERS) -> tuple[Face, ...]:
    """Every usable face in the folders, sorted by path: the same list for the same fonts."""
    faces = []
    for folder in folders:
        root = Path(folder).expanduser()
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc", ".otc"))
        for path in files:
            if not _NO_TEXT.search(path.name):
                faces += [face for face in _read_faces(path) if not _NO_TEXT.search(face.family)]
    return tuple(faces)


def _read_faces(path: Path) -> list[Face]:
    """The faces of a file; none of a file that is damaged or draws no outlines."""
    faces: list[Face] = []
    try:
        while True:
            font = ImageFont.truetype(str(path), PROBE_SIZE, index=len(faces))
            missing = bytes(font.getmask(chr(0x10FFFF)))
            scripts = frozenset(
                name for name, text in SAMPLES.items() if all(bytes(font.getmask(c)) != missing for c in text)
            )
            faces.append(Face(str(path), len(faces), _plain_family(font.getname()[0] or path.stem), scripts))
    except (OSError, ValueError):  # past the last face of a collection, too
        return [face for face in faces if face.scripts]


def _plain_family(family: str) -> str:
    """Without what tells faces of a family apart: "Noto Sans CJK JP Black" and "Noto Sans CJK KR" are one."""
    return " ".join(word for word in family.split() if word.lower() not in _OF_FACES)


def faces_for(script: str, held_out: bool | None = None, folders: Sequence[str] | None = None) -> list[Face]:
    """Faces that write a script.

    Args:
        script: "latin", "hangul", "kana" or "han".
        held_out: True: those of validation, False: those of training, None: all.
    Raises:
        FileNotFoundError: no font is installed that writes it, with the Debian packages that have one.
    """
    folders = folders or FONT_FOLDERS
    every = [face for face in installed_faces(tuple(folders)) if script in face.scripts]
    if not every:
        raise FileNotFoundError(
            f"no font that writes {script} is installed (looked in {', '.join(folders)}): "
            f"apt-get install {PACKAGES[script]}"
        )
    chosen = [face for face in every if held_out is None or face.held_out == held_out]
    return chosen or every[:1]  # one family alone cannot be parted
