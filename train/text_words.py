"""Words that no dictionary has, in several scripts: what a detector reads must not depend on what it says."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np

ONSETS = ("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "bl", "br", "ch")
ONSETS += ("cr", "dr", "fl", "gr", "kn", "pl", "pr", "qu", "sc", "sh", "sk", "sl", "sp", "st", "th", "tr", "wh")
NUCLEI = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ee", "ie", "oa", "oo", "ou", "y")
CODAS = (
    "",
    "",
    "",
    "",
    "n",
    "r",
    "s",
    "t",
    "l",
    "m",
    "d",
    "ck",
    "ll",
    "ng",
    "nd",
    "nt",
    "rd",
    "rt",
    "ss",
    "st",
    "x",
    "y",
)
_HIRAGANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"
_KATAKANA = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワンー"
KANA = _HIRAGANA + _KATAKANA
PUNCTUATION = ("", "", "", "", "", ",", ".", "!", "?", "...", ":", "~", "!!")
HELD_OUT = 5  # one word in so many belongs to validation


@lru_cache(maxsize=1)
def hangul_syllables() -> list[str]:
    """The 2350 syllables of KS X 1001, which every Korean font has."""
    return [bytes([high, low]).decode("euc-kr") for high in range(0xB0, 0xC9) for low in range(0xA1, 0xFF)]


@lru_cache(maxsize=1)
def han_characters() -> list[str]:
    """The 3755 characters of GB 2312's first level."""
    pairs = [bytes([high, low]) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF)]
    return [text for pair in pairs if (text := pair.decode("gb2312", errors="ignore"))]


def word_is_held_out(word: str) -> bool:
    return zlib.crc32(word.encode()) % HELD_OUT == 0


def draw_word(rng: np.random.Generator, script: str, held_out: bool | None = None) -> str:
    """A word of a script.

    Args:
        script: "latin", "hangul", "kana", "han" or "digits".
        held_out: True: one of validation, False: one of training, None: any.
    """
    while True:
        word = _WRITERS[script](rng)
        if held_out is None or word_is_held_out(word) == held_out:
            return word


def _pick(rng: np.random.Generator, items: list[str] | tuple[str, ...] | str) -> str:
    return items[int(rng.integers(len(items)))]


def _latin(rng: np.random.Generator) -> str:
    syllables = int(rng.choice([1, 1, 2, 2, 3, 4]))
    word = "".join(_pick(rng, ONSETS) + _pick(rng, NUCLEI) + _pick(rng, CODAS) for _ in range(syllables))
    kind = rng.random()
    if kind < 0.3:
        word = word.upper()
    elif kind < 0.55:
        word = word.capitalize()
    return word + _pick(rng, PUNCTUATION)


def _hangul(rng: np.random.Generator) -> str:
    syllables = hangul_syllables()
    return "".join(_pick(rng, syllables) for _ in range(int(rng.integers(1, 6)))) + _pick(rng, PUNCTUATION)


def _kana(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, KANA) for _ in range(int(rng.integers(2, 9))))


def _han(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, han_characters()) for _ in range(int(rng.integers(2, 7))))


def _digits(rng: np.random.Generator) -> str:
    number = int(10 ** rng.uniform(0, 5))
    forms = (str(number), f"{number:,}", f"{number % 24}:{number % 60:02d}", f"{number % 100}%", f"${number}",
             f"{number % 1000}.{number % 10}", f"#{number % 100}", f"{number % 30 + 1}/{number % 12 + 1}")  # fmt: skip
    return _pick(rng, forms)


_WRITERS = {"latin": _latin, "hangul": _hangul, "kana": _kana, "han": _han, "digits": _digits}
