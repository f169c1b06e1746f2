"""Lists of what to find: classes with synonyms and thresholds, and what must not be found instead.

One class per line, `#` starts a comment:

    cat
    dog = dog | puppy @ 0.5     found under either word, written as "dog", from a confidence of 0.5
    !wolf | fox                 negative: what fits one of them better than any class is not found
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from textsam.language.vocabulary import validate_texts

_OUTER_PUNCTUATION = " \t.,;:!?\"'`“”‘’«»…"


@dataclass(frozen=True)
class Query:
    """One class: its name in the results, the texts that ask for it, and its least confidence (None: the default)."""

    name: str
    texts: tuple[str, ...]
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", _texts(self.texts))


@dataclass(frozen=True)
class QueryList:
    """Classes, each text in one of them only, and negative texts."""

    queries: tuple[Query, ...]
    negative_texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "negative_texts", _texts(self.negative_texts))

    @property
    def names(self) -> list[str]:
        """The names of the classes, in their order."""
        return [query.name for query in self.queries]

    @property
    def texts(self) -> list[str]:
        """The texts of all classes one after the other."""
        return [text for query in self.queries for text in query.texts]

    @property
    def class_of_text(self) -> list[int]:
        """For each of `texts` the number of its class."""
        return [number for number, query in enumerate(self.queries) for _ in query.texts]

    @classmethod
    def parse(cls, lines: str | Iterable[str]) -> QueryList:
        """Lines, or one string of them, to classes; see the head of this file.

        Raises:
            TypeError: something else than lines of text.
            ValueError: no class at all, a line without words, a threshold that is no number in [0, 1], or a text that
                occurs twice; the line is named.
        """
        if not isinstance(lines, Iterable):
            raise TypeError(f"Expected classes as lines of text, got {type(lines).__name__}.")
        queries, negatives, seen = [], [], set()
        for number, line in enumerate(lines.splitlines() if isinstance(lines, str) else lines, start=1):
            if not isinstance(line, str):
                raise TypeError(f"Expected classes as lines of text, got {type(line).__name__} as line {number}.")
            content = line.split("#")[0].strip()
            if not content:
                continue
            try:
                if content.startswith("!"):
                    if "@" in content:
                        raise ValueError("a negative text has no threshold: leave away what follows @.")
                    new = [clean_text(text) for text in content[1:].split("|")]
                    negatives += new
                else:
                    queries.append(parse_query(content))
                    new = list(queries[-1].texts)
                for text in new:
                    if text.casefold() in seen:
                        raise ValueError(f"{text!r} occurs twice: each text belongs to one class.")
                    seen.add(text.casefold())
            except ValueError as error:
                raise ValueError(f"Line {number} of the classes, {line.strip()[:60]!r}: {error}") from error
        names = [query.name.casefold() for query in queries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"The class {twice!r} occurs twice: write its texts in one line, divided by |.")
        if not queries:
            raise ValueError('Expected at least one class, got none: write one per line, such as "dog = dog | puppy".')
        return cls(tuple(queries), tuple(negatives))

    @classmethod
    def read(cls, path: str | Path) -> QueryList:
        """Of a text file in UTF-8.

        Raises:
            FileNotFoundError: no such file. ValueError: as `parse`, naming the file.
        """
        try:
            return cls.parse(Path(path).read_text("utf-8-sig").splitlines())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _texts(texts: str | Iterable[str]) -> tuple[str, ...]:
    """One string is one text."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


def parse_query(text: str) -> Query:
    """`name = text | text @ threshold`, of which only one text is needed."""
    words, at, number = text.partition("@")
    threshold = None
    if at:
        try:
            threshold = float(number)
        except ValueError:
            threshold = -1.0
        if not 0 <= threshold <= 1:
            raise ValueError(f"expected a threshold in [0, 1] after @, got {number.strip()!r}.")
    name, equals, synonyms = words.partition("=")
    texts = [clean_text(part) for part in (synonyms if equals else words).split("|")]
    return Query(clean_text(name) if equals else texts[0], tuple(texts), threshold)


def clean_text(text: str) -> str:
    """One form of Unicode, single spaces, no punctuation around; case stays, and the encoders ignore it.

    Raises:
        ValueError: nothing is left.
    """
    cleaned = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip(_OUTER_PUNCTUATION)
    if not cleaned:
        raise ValueError("expected words, got an empty text.")
    return validate_texts([cleaned])[0]
