"""What counts as a known name, and what an unknown one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from textsam.language.vocabulary import UnknownNameError, Vocabulary, normalize, singulars, validate_texts

NAMES = [
    "dog", "cat", "person", "hot dog", "cup", "table", "dining table", "bat (animal)", "orange", "orange/tangerine",
    "chest of drawers", "walking stick", "knife", "box", "man", "bus", "glasses", "hot-air balloon", "hot air balloon",
    "other fish", "mouse", "picture frame", "hat", "kitchen & dining table",
]  # fmt: skip
ALIASES = {"bat": "bat (animal)", "tangerine": "orange/tangerine", "aeroplane": "bus"}


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(NAMES, ALIASES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "frame", ["{}", "a {}", "the small {}", "photo of a {}", "two red {} ", "{}!", "my very-old {}"]
)
def test_every_name_in_every_frame(vocabulary: Vocabulary, name: str, frame: str) -> None:
    assert vocabulary.find(frame.format(name)) == name
    assert vocabulary.find(frame.format(name).upper()) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dogs", "dog"),
        ("DOGS!", "dog"),
        ("Find me a dog, please!", "dog"),
        ("please find the dog", "dog"),
        ("a photo of a group of people", "person"),
        ("a photo of two cute fluffy dogs on the grass", "dog"),
        ("a close-up of the cat", "cat"),
        ("knives", "knife"),
        ("boxes", "box"),
        ("men", "man"),
        ("mice", "mouse"),
        ("buses", "bus"),
        ("glasses", "glasses"),
        ("hot dogs", "hot dog"),
        ("dining-tables", "dining table"),
        ("dining_table", "dining table"),
        ("black and white cat", "cat"),
        ("person riding a bus", "person"),
        ("the man's hat", "hat"),
        ("cup of coffee", "cup"),
        ("a bat", "bat (animal)"),
        ("tangerines", "orange/tangerine"),
        ("an orange", "orange"),
        ("hot-air balloons", "hot-air balloon"),
        ("hot air balloons", "hot air balloon"),
        ("cat and dog", None),
        ("prairie dog", None),
        ("doge", None),
        ("???", None),
        ("small", None),
        ("a photo of", None),
        ("picture frame", "picture frame"),
        ("a dog.", "dog"),
        ("small, black dog", "dog"),
        ("black & white cat", "cat"),
        ("dog; dogs", "dog"),
        ("orange, black cat", "cat"),
        ("orange, cat", None),
        ("a photo of a cat, a type of dog.", "cat"),
        ("a dog, sitting on the grass", "dog"),
        ("a small kitchen & dining table", "kitchen & dining table"),
    ],
)
def test_texts(vocabulary: Vocabulary, text: str, name: str | None) -> None:
    assert (text in vocabulary) == (name is not None)
    if name is not None:
        assert vocabulary.find(text) == name
    else:
        with pytest.raises(UnknownNameError):
            vocabulary.find(text)


@pytest.mark.parametrize(
    ("text", "close"),
    [("doog", "dog"), ("prairie dog", "dog"), ("cat and dog", "cat"), ("dinning tabel", "dining table")],
)
def test_unknown_names_are_told_close_ones_and_the_mend(vocabulary: Vocabulary, text: str, close: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        vocabulary.find(text)
    assert close in caught.value.suggestions
    assert len(caught.value.suggestions) <= 5
    assert repr(text) in str(caught.value)
    assert repr(close) in str(caught.value)
    assert 'textsam.load(clip="ViT-B-32:openai")' in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["cat. dog.", "cat, dog", "a cat; a small dog", "cats|dogs", "cat & dog", "cat + dog", "cat\ndog", "cat / dog",
     "cat - dog", "a photo of a cat, a dog on the grass", "Cat, small, dog"],
)  # fmt: skip
def test_several_things_in_one_text_are_asked_for_as_a_list(vocabulary: Vocabulary, text: str) -> None:
    assert text not in vocabulary
    with pytest.raises(
        UnknownNameError, match=r'several things in one text: ask for a list, \["cat", "dog"\]'
    ) as caught:
        vocabulary.find(text)
    assert caught.value.suggestions == ["cat", "dog"]


def test_nothing_close_is_not_made_up(vocabulary: Vocabulary) -> None:
    assert vocabulary.suggest("qqqq") == []
    assert vocabulary.suggest("?") == []
    with pytest.raises(UnknownNameError) as caught:
        vocabulary.find("xylophonist " * 60)
    assert len(str(caught.value)) < 300


def test_normalize_and_singulars() -> None:
    assert normalize("  The DOG's_house,  (old) & co. ") == "the dog house (old) & co"
    assert singulars("knives") == ["knives", "knif", "knife", "knive", "kniv"]
    assert singulars("glass") == ["glass"]


def test_saved_and_read_back(tmp_path: Path, vocabulary: Vocabulary) -> None:
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert (loaded.names, loaded.aliases) == (NAMES, ALIASES)
    assert len(loaded) == len(NAMES)


@pytest.mark.parametrize("content", ["{", "[]", '{"names": ["dog"]}', '{"names": 3, "aliases": {}}'])
def test_files_that_are_no_vocabulary(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(ValueError, match="is not a vocabulary"):
        Vocabulary.load(tmp_path / "vocabulary.json")


def test_missing_file_and_dangling_alias(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "vocabulary.json")
    with pytest.raises(ValueError, match=r"not in the vocabulary.*cat"):
        Vocabulary(["dog"], {"kitty": "cat"})


@pytest.mark.parametrize(
    ("texts", "error"),
    [("dog", TypeError), ({"dog"}, TypeError), ([b"dog"], TypeError), ([""], ValueError), (["a" * 1001], ValueError)],
)
def test_wrong_texts(texts: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        validate_texts(texts)
    assert validate_texts((" dog ", "cat")) == ["dog", "cat"]
