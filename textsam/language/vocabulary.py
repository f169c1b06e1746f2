"""Names that the embedded text encoder knows, and how a written text finds one of them.

CLIP has no closed vocabulary, so nothing here is used with a public CLIP; the small encoder was fitted to the
embeddings of some 1600 names and must say so when it is asked for something else.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

MAX_TEXT_LENGTH = 1000  # characters; CLIP itself reads 77 tokens
MAX_SUGGESTIONS = 5

_DETERMINER_WORDS = """
    a an the this that these those some any one two three four five six seven eight nine ten several many few all
    every each both another other my your his her its our their
"""
# What is asked for follows these words ("a photo of a dog"), or precedes the preposition ("a dog on the grass").
_FRAME = re.compile(
    r"^(?:(?:an?|the|this|one|some|my) )?(?:[a-z-]+ ){0,2}?"
    r"(?:photos?|photographs?|pictures?|images?|pics?|snapshots?|renderings?|drawings?|paintings?|sketch(?:es)?|"
    r"close-?ups?|views?|crops?|groups?|pairs?|bunch|herd|flock|crowd|pieces?|lots?|kind|type|number|couple) of "
)
_REQUEST = re.compile(
    r"^(?:please )?(?:(?:find|segment|show|select|mark|detect|cut out|there is|there are|it is|this is) (?:me )?)+"
)
_PREPOSITION = re.compile(
    r" (?:on|in|at|with|without|under|over|behind|near|beside|by|from|of|inside|against|above|below|next to|"
    r"in front of|wearing|holding|riding|sitting|standing|lying|running|walking|eating|playing|that|which|who) "
)
_ADJECTIVE_WORDS = """
    small big large little tiny huge giant tall short long wide narrow thin thick fat slim old new young ancient
    modern vintage antique red green blue yellow orange purple pink brown black white gray grey golden silver
    beige dark light bright pale colorful colourful cute nice good bad beautiful pretty ugly clean dirty wet dry
    hot cold warm cool fresh ripe raw empty full open closed broken round square flat sharp soft hard smooth rough
    heavy wooden metal plastic glass leather paper stone brick concrete steel iron ceramic cotton woollen woolen
    single double left right front back upper lower top bottom middle nearest closest far near main wild domestic
    adult male female baby alone same different whole entire half fancy plain elegant expensive cheap simple weird
    strange funny fast slow quiet loud happy sad angry calm beloved favorite favourite real fake toy blurry sleek
    tame lone stray brave gentle proud mature juvenile navy cream crimson scarlet teal turquoise maroon violet
    magenta cyan rusty
"""
# Endings of participles and of derived adjectives: fluffy, striped, sitting, golden, colourful, reddish, famous.
_ADJECTIVE_ENDINGS = ("y", "ed", "ing", "en", "ful", "less", "ish", "ous", "ive", "able", "ible", "ic", "est")
# What divides two things in one text: "cat. dog.", "cat | dog". `normalize` would make an adjective of the first.
_DIVIDER = re.compile(r"[.,;!?|+&\n]| [-/]+ ")
_KIND = re.compile(r",? an? (?:type|kind|sort|breed|species) of [^.]*$")  # "a photo of a pug, a type of pet"
_DETERMINERS = frozenset(_DETERMINER_WORDS.split())
_ADJECTIVES = frozenset(_ADJECTIVE_WORDS.split())
_IRREGULAR_PLURALS = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth", "oxen": "ox", "dice": "dice", "calves": "calf", "buses": "bus", "gases": "gas",
    "axes": "ax", "cacti": "cactus", "octopi": "octopus",
}  # fmt: skip


class UnknownNameError(ValueError):
    """A text that names nothing of the embedded vocabulary, or several things; `suggestions` holds known names.

    Args:
        suggestions: close names, or with `several` those that the text names.
        own: names that the model was trained for beside the vocabulary.
    """

    def __init__(
        self, text: str, suggestions: Sequence[str] = (), *, several: bool = False, own: Sequence[str] = ()
    ) -> None:
        self.text = text
        self.suggestions, self.several = list(suggestions), several
        if several:
            listed = json.dumps(self.suggestions, ensure_ascii=False)
            super().__init__(f"{_shorten(text)!r} names several things in one text: ask for a list, {listed}.")
            return
        trained = f" This model was trained for {', '.join(map(repr, own))}." if own else ""
        close = f" Names spelled alike: {', '.join(map(repr, self.suggestions))}." if self.suggestions else ""
        super().__init__(
            f"the embedded text encoder does not know {_shorten(text)!r}.{trained}{close} "
            'For any word, load a public CLIP: textsam.load(clip="ViT-B-32:openai").'
        )


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def validate_texts(texts: Sequence[str]) -> list[str]:
    """Check a list of texts; the one check that every text encoder makes.

    Returns:
        The texts, stripped of outer white space.
    Raises:
        TypeError: `texts` is not a sequence of strings (one bare string included).
        ValueError: a text is empty or longer than `MAX_TEXT_LENGTH` characters.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise TypeError(f'texts must be a list of strings such as ["dog", "cat"], not {type(texts).__name__}')
    stripped = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] must be a string, not {type(text).__name__}")
        if len(text) > MAX_TEXT_LENGTH:
            raise ValueError(
                f"texts[{index}] has {len(text)} characters, expected at most {MAX_TEXT_LENGTH}: "
                "name the object in a few words"
            )
        if not text.strip():
            raise ValueError(f'texts[{index}] is empty: name an object, such as "dog"')
        stripped.append(text.strip())
    return stripped


def normalize(text: str) -> str:
    """Lower case, one space between words, underscores as spaces, no punctuation but hyphen, slash, & and brackets."""
    text = text.lower().replace("_", " ").replace("\u2019", "'")
    text = re.sub(r"'s?\b", "", text)
    return " ".join(re.sub(r"[^\w\s\-/&()]", " ", text).split())


def singulars(word: str) -> list[str]:
    """The word itself and the singulars it could be the plural of, likeliest first."""
    forms = [word]
    if word in _IRREGULAR_PLURALS:
        forms.append(_IRREGULAR_PLURALS[word])
    if word.endswith("men"):
        forms.append(word[:-3] + "man")
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("ves"):
        forms += [word[:-3] + "f", word[:-3] + "fe"]
    if word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith(("zzes", "sses")):
        forms.append(word[:-3])
    return forms


class Vocabulary:
    """Known names and other spellings of them.

    Args:
        names: distinct names, in the order of the embeddings that were learned.
        aliases: other spelling -> name ("aeroplane" -> "airplane", "bat" -> "bat (animal)").
    """

    def __init__(self, names: Sequence[str], aliases: Mapping[str, str] | None = None) -> None:
        self.names = list(names)
        self.aliases = dict(aliases or {})
        unknown = sorted(set(self.aliases.values()) - set(self.names))
        if unknown:
            raise ValueError(f"aliases point to names that are not in the vocabulary: {unknown[:5]}")
        self._name_of: dict[str, str] = {}
        # The first spelling wins: exact names, then aliases, then names without hyphens and other signs.
        for key, name in [(name, name) for name in self.names] + list(self.aliases.items()):
            self._name_of.setdefault(key, name)
        for key, name in list(self._name_of.items()):
            self._name_of.setdefault(_plain(key), name)
        self._words = {word for key in self._name_of for word in key.split()}
        self._divided = [key for key in self._name_of if _DIVIDER.search(key)]
        self._longest = max((key.count(" ") + 1 for key in self._name_of), default=0)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, text: str) -> bool:
        return self._find(text) is not None

    def find(self, text: str) -> str:
        """The known name that a text asks for.

        Case, punctuation, articles, plurals, adjectives before the noun, what follows the noun ("a dog on the
        grass") and frames such as "a photo of" do not matter.

        Raises:
            UnknownNameError: no known name is asked for; the message names close ones. Or several are ("cat, dog").
        """
        name = self._find(text)
        if name is None:
            several = self._several(text)
            if several:
                raise UnknownNameError(text, several, several=True)
            raise UnknownNameError(text, self.suggest(text))
        return name

    def suggest(self, text: str) -> list[str]:
        """Known names that are written alike or contain a word of the text, closest first."""
        framed = self._without_frame(normalize(text[:60]))
        words = _PREPOSITION.split(f"{' '.join(framed)} ")[0].split()
        if not words:
            return []
        phrase = " ".join(words)
        keys = list(self._name_of)
        close = difflib.get_close_matches(phrase, keys, n=MAX_SUGGESTIONS, cutoff=0.65)
        for word in (words[-1], *words[:-1]):
            found = self._lookup([word])
            close += [found] if found else []
        for word in words:
            close += difflib.get_close_matches(word, keys, n=MAX_SUGGESTIONS, cutoff=0.65)
        close += [key for key in keys if len(words[-1]) > 2 and words[-1] in key.split()]
        close = close or difflib.get_close_matches(phrase, keys, n=3, cutoff=0.5)  # better than nothing at all
        return list(dict.fromkeys(self._name_of[key] for key in close))[:MAX_SUGGESTIONS]

    def _find(self, text: str) -> str | None:
        text = _KIND.sub("", text.rstrip(" ."))
        cleaned = normalize(text)
        whole = self._lookup(cleaned.split())
        if whole is not None:
            return whole
        if self._several(text):
            return None
        framed = self._without_frame(cleaned)
        for words, only_whole in ((framed, True), (_PREPOSITION.split(f"{' '.join(framed)} ")[0].split(), False)):
            # "chest of drawers" and "walking stick" are names, although they look like a noun and what follows it.
            for length in range(min(len(words), self._longest), 0, -1):
                tail = words[-length:]
                if only_whole and not _PREPOSITION.search(f" {' '.join(tail)} "):
                    break
                name = self._lookup(tail)
                if name is not None and self._are_modifiers(words[:-length]):
                    return name
        return None

    def _several(self, text: str) -> list[str]:
        """The names that the parts of a divided text ask for, if there are at least two."""
        text = text.lower()
        for key in self._divided:  # "kitchen & dining room table" is one thing
            text = text.replace(key, _plain(key))
        parts = [part for part in _DIVIDER.split(text) if part.strip()]
        if len(parts) < 2:
            return []
        if len(parts[-1].split()) > 1:  # "orange, ripe apple" is an apple, "orange, apple" are two things
            parts = [part for part in parts[:-1] if not set(normalize(part).split()) <= _ADJECTIVES] + parts[-1:]
        names = list(dict.fromkeys(name for part in parts if (name := self._find(part)) is not None))
        return names if len(names) > 1 else []

    def _lookup(self, words: list[str]) -> str | None:
        if not words:
            return None
        for last in singulars(words[-1]):
            phrase = " ".join([*words[:-1], last])
            for key in (phrase, _plain(phrase)):
                if key in self._name_of:
                    return self._name_of[key]
        return None

    def _without_frame(self, cleaned: str) -> list[str]:
        """Words of a cleaned text without a request, a frame ("a photo of") and determiners that no name has."""
        cleaned = _REQUEST.sub("", cleaned.removesuffix(" please"))
        for _ in range(3):  # "a photo of a group of dogs"
            rest = _FRAME.sub("", cleaned)
            if rest == cleaned:
                break
            cleaned = rest
        words = cleaned.split()
        while words and (words[0] in _DETERMINERS or words[0].isdigit()) and self._lookup(words) is None:
            words = words[1:]
        return words

    def _are_modifiers(self, words: list[str]) -> bool:
        """Adjectives and nouns that we know ("toy dog"); an unknown noun ("prairie dog") may name another thing."""
        for index, word in enumerate(words):
            if word in ("and", "or"):  # "black and white cat", but not "cat and dog"
                if index in (0, len(words) - 1) or not {words[index - 1], words[index + 1]} <= _ADJECTIVES:
                    return False
            elif not (
                word in _ADJECTIVES or word in _DETERMINERS or word.isdigit() or "-" in word or word in self._words
                or (len(word) > 3 and word.endswith(_ADJECTIVE_ENDINGS))
            ):  # fmt: skip
                return False
        return not any(_PREPOSITION.search(f" {word} ") for word in words)

    def save(self, path: str | Path) -> None:
        """Write the names and aliases as JSON."""
        text = json.dumps({"names": self.names, "aliases": self.aliases}, ensure_ascii=False, indent=0)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not JSON with "names" and "aliases".
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["names"], content["aliases"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path} is not a vocabulary: expected JSON with "names" and "aliases" ({error})'
            ) from error


def _plain(key: str) -> str:
    return " ".join(re.sub(r"[-/&]", " ", key).split())
