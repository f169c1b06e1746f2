"""Class lists: how they are read, and what they find beside plain texts."""

import numpy as np
import pytest
import torch
from miniatures import HashedWords, mobile_miniature

from textsam.language.queries import Query, QueryList, clean_text
from textsam.predictor import TextSam
from textsam.prompting.text_options import TextPromptOptions
from textsam.queries import find_queries


def test_reading() -> None:
    lines = ["# animals", "", "cat", "dog = dog | puppy @ 0.5  # both", " traffic   light. | stoplight", "!Wolf! | fox"]
    assert QueryList.parse(lines) == QueryList(
        (
            Query("cat", ("cat",)),
            Query("dog", ("dog", "puppy"), 0.5),
            Query("traffic light", ("traffic light", "stoplight")),
        ),
        ("Wolf", "fox"),
    )
    assert QueryList.parse(lines).class_of_text == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "at least one class, got none"),
        (["!wolf"], "at least one class"),
        (["dog = | puppy"], r"Line 1 .*'dog = \| puppy'.* empty text"),
        (["dog @ 2"], r"in \[0, 1\] after @, got '2'"),
        (["dog @ much"], "got 'much'"),
        (["cat", "pet = Cat | dog"], "Line 2 .*'Cat' occurs twice"),
        (["cat", "!cat"], "'cat' occurs twice"),
        (["cat", "!dog @ 0.5"], "a negative text has no threshold"),
        (["a = cat", "A = dog"], "class 'a' occurs twice"),
    ],
)
def test_what_cannot_be_meant(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QueryList.parse(lines)


@pytest.mark.parametrize("text", ["a dog", " a  dog!", '"a dog".', "a\tdog?"])
def test_punctuation_and_spaces_do_not_matter(text: str) -> None:
    assert clean_text(text) == "a dog"


def test_one_string_is_one_text() -> None:
    assert QueryList.parse("cat") == QueryList.parse(["cat"])
    assert QueryList.parse("cat\n!dog = wolf") == QueryList.parse(["cat", "!dog = wolf"])
    assert Query("cat", "cat") == Query("cat", ("cat",)) == Query("cat", ["cat"])
    assert QueryList((Query("cat", "cat"),), "dog").negative_texts == ("dog",)


@pytest.mark.parametrize(("lines", "got"), [(["cat", 3], "got int as line 2"), (None, "got NoneType")])
def test_classes_that_are_no_text(lines: object, got: str) -> None:
    with pytest.raises(TypeError, match=f"classes as lines of text, {got}"):
        QueryList.parse(lines)  # type: ignore[arg-type]


@pytest.fixture
def sam() -> TextSam:
    sam = TextSam(mobile_miniature(), HashedWords())
    sam.set_image(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    return sam


def test_plain_classes_are_plain_texts(sam: TextSam) -> None:
    found = find_queries(sam, None, QueryList.parse(["cat", "dog"]), threshold=0.0)
    expected = sam.predict(text=["cat", "dog"], threshold=0.0)
    assert len(found) > 0
    assert sorted(found.data["class_name"]) == sorted(expected.data["class_name"])
    np.testing.assert_allclose(sorted(found.confidence), sorted(expected.confidence))


class SameWords(HashedWords):
    """All texts mean the same."""

    def encode(self, texts: list[str]) -> torch.Tensor:
        return super().encode(["dog"]).expand(len(texts), -1)


def test_synonyms_are_one_class_without_repetitions() -> None:
    sam = TextSam(mobile_miniature(), SameWords(), text_options=TextPromptOptions(same_mask_iou=1.0))
    sam.set_image(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    alone = sam.predict(text="dog", threshold=0.0)
    each = sam.predict(text=["dog", "puppy", "hound"], threshold=0.0)
    one = find_queries(sam, None, QueryList.parse(["pet = dog | puppy | hound"]), threshold=0.0)
    assert len(each) == 3 * len(alone) > 0
    assert len(one) == len(alone)
    assert set(one.data["class_name"]) == {"pet"}
    assert set(one.data["query_text"]) <= {"dog", "puppy", "hound"}
    np.testing.assert_allclose(sorted(one.confidence), sorted(alone.confidence), atol=1e-6)


def test_thresholds_by_class(sam: TextSam) -> None:
    all_found = find_queries(sam, None, QueryList.parse(["cat", "dog"]), threshold=0.0)
    middle = float(np.median(all_found.confidence[all_found.class_id == 1]))
    found = find_queries(sam, None, QueryList.parse(["cat", f"dog @ {middle}"]), threshold=0.0)
    assert (found.class_id == 0).sum() == (all_found.class_id == 0).sum()
    assert (found.class_id == 1).sum() == (all_found.confidence[all_found.class_id == 1] >= middle).sum()
    strict = find_queries(sam, None, QueryList.parse(["cat @ 0", "dog"]))
    default = sam.predict(text=["cat", "dog"])
    assert (strict.class_id == 1).sum() <= (default.class_id == 1).sum()  # what is faint beside the best stays away
    assert len(find_queries(sam, None, QueryList.parse(["cat @ 1", "dog @ 1"]))) == 0


def test_limits_count_by_class(sam: TextSam) -> None:
    queries = QueryList.parse(["dog = dog | puppy", "cat"])
    every = find_queries(sam, None, queries, threshold=0.0)
    found = find_queries(sam, None, queries, threshold=0.0, max_instances=1)
    assert list(found.class_id) == sorted(set(every.class_id.tolist()))
    assert found.confidence.max() == every.confidence.max()


def test_plain_lists_of_names(sam: TextSam) -> None:
    expected = find_queries(sam, None, QueryList.parse(["cat", "dog"]), threshold=0.0)
    found = find_queries(sam, None, ["cat", "dog"], threshold=0.0)
    assert np.array_equal(found.mask, expected.mask)
    assert find_queries(sam, None, "cat", threshold=0.0).data["class_name"][0] == "cat"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_instances": -1}, ValueError, "max_instances of at least 1, got -1"),
        ({"threshold": 5}, ValueError, r"threshold in \[0, 1\], got 5"),
        ({"threshold": "0.5"}, TypeError, "threshold as a number"),
    ],
)
def test_numbers_are_checked_also_where_classes_have_their_own(sam, options, error, words) -> None:
    with pytest.raises(error, match=words):
        find_queries(sam, None, ["cat @ 0.2"], **options)
