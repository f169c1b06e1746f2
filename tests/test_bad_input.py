"""Every wrong prompt gets one sentence: what was expected, what came, how to mend it. And nothing is lost."""

import numpy as np
import pytest
import supervision as sv
import torch
from miniatures import HashedWords, mobile_miniature
from tiny_models import tiny_model

from textsam.predictor import TextSam
from textsam.prompting.prompts import check_geometry, check_texts
from textsam.prompting.questions import spread_prompts
from textsam.prompting.transforms import ImageGeometry

WIDTH, HEIGHT = 60, 40
NAN = float("nan")

WRONG_PROMPTS = {
    # name: (arguments of predict, error, words of the sentence)
    "nothing": ({}, ValueError, "Expected a prompt, got none: give text, points"),
    "point not in a list": ({"points": [3, 4]}, ValueError, r"got \(2,\): write \[\[x, y\]\]"),
    "points of three": ({"points": [[3, 4, 5]]}, ValueError, r"points of shape \(K, 2\).*got \(1, 3\)"),
    "points of four axes": ({"points": np.zeros((1, 1, 1, 2))}, ValueError, "points of shape"),
    "no points": ({"points": np.zeros((0, 2))}, ValueError, "at least one point"),
    "ragged points": ({"points": [[[1, 2]], [[1, 2], [3, 4]]]}, ValueError, "ragged list: fill"),
    "points of text": ({"points": [["a", "b"]]}, TypeError, "Expected points as numbers"),
    "points of truth": ({"points": [[True, False]]}, TypeError, "got bool"),
    "a point is None": ({"points": [[1, None]]}, TypeError, "got object"),
    "point is NaN": ({"points": [[NAN, 4]]}, ValueError, "Expected finite points"),
    "point is infinite": ({"points": [[float("inf"), 4]]}, ValueError, "Expected finite points"),
    "point right of the image": ({"points": [[61, 4]]}, ValueError, r"x in 0..60, y in 0..40\), got \(61, 4\)"),
    "point below the image": ({"points": [[50, 41]]}, ValueError, r"got \(50, 41\)"),
    "point left of the image": ({"points": [[1, 1], [-1, 4]]}, ValueError, r"got \(-1, 4\)"),
    "points in shares": (
        {"points": [[0.5, 0.5], [0.2, 0.9]]},
        ValueError,
        r"points in pixels, got values that look normalised, \(0.5, 0.5\): multiply them",
    ),
    "box in shares": ({"boxes": [0.2, 0.1, 0.8, 1]}, ValueError, r"boxes in pixels, got .*\(0.2, 0.1, 0.8, 1\)"),
    "detections in shares": (
        {"boxes": sv.Detections(np.array([[0, 0.1, 0.8, 0.9]]))},
        ValueError,
        "boxes in pixels, got",
    ),
    "detections without masks as masks": (
        {"mask_input": sv.Detections(np.array([[1.0, 2, 3, 4]]))},
        ValueError,
        "mask_input with masks, got detections without",
    ),
    "labels alone": ({"point_labels": [1]}, ValueError, "got labels alone"),
    "labels alone with a box": ({"point_labels": [1], "boxes": [1, 2, 3, 4]}, ValueError, "got labels alone"),
    "label of two": ({"points": [[3, 4]], "point_labels": [2]}, ValueError, "or -1 .*got 2"),
    "label of a half": ({"points": [[3, 4]], "point_labels": [0.5]}, ValueError, "got 0.5"),
    "label is NaN": ({"points": [[3, 4]], "point_labels": [NAN]}, ValueError, "got nan"),
    "too few labels": ({"points": [[3, 4], [5, 6]], "point_labels": [1]}, ValueError, r"shape \(2,\), got \(1,\)"),
    "labels of one for two": (
        {"points": [[[3, 4]], [[5, 6]]], "point_labels": [1, 1]},
        ValueError,
        r"shape \(2, 1\), got \(2,\)",
    ),
    "labels of text": ({"points": [[3, 4]], "point_labels": ["fg"]}, TypeError, "point_labels as numbers"),
    "box of three": ({"boxes": [1, 2, 3]}, ValueError, r"boxes of shape \(4,\) or \(N, 4\), got \(3,\)"),
    "box inverted": ({"boxes": [30, 2, 3, 20]}, ValueError, r"x1 <= x2.*got \[30, 2, 3, 20\]: swap"),
    "box upside down": ({"boxes": [[1, 1, 2, 2], [3, 20, 30, 2]]}, ValueError, r"got \[3, 20, 30, 2\]"),
    "box beyond the image": ({"boxes": [3, 2, 70, 20]}, ValueError, r"boxes inside the image.*got \(70, 20\)"),
    "box is NaN": ({"boxes": [3, 2, NAN, 20]}, ValueError, "Expected finite boxes"),
    "box of text": ({"boxes": "1,2,3,4"}, TypeError, "Expected boxes as numbers"),
    "detections of another image": (
        {"boxes": sv.Detections(xyxy=np.array([[100.0, 100, 120, 120]]))},
        ValueError,
        r"this image \(60 x 40 pixels\).*wholly outside",
    ),
    "two objects and three": (
        {"points": [[[3, 4]], [[5, 6]]], "boxes": [[1, 2, 3, 4]] * 3},
        ValueError,
        "got 2 in points, 3 in boxes",
    ),
    "mask for two boxes": (
        {"boxes": [[1, 2, 3, 4]] * 2, "mask_input": np.ones((40, 60), bool)},
        ValueError,
        "got 2 in boxes, 1 in mask_input",
    ),
    "mask of another size": (
        {"mask_input": np.ones((40, 61), bool)},
        ValueError,
        r"a bool mask of shape \(40, 60\).*got \(40, 61\)",
    ),
    "logits of another size": (
        {"mask_input": np.ones((16, 16), np.float32)},
        ValueError,
        r"low-resolution logits of shape \(32, 32\).*got \(16, 16\)",
    ),
    "mask of bytes": ({"mask_input": np.ones((40, 60), np.uint8)}, TypeError, r"got uint8: pass mask.astype\(bool\)"),
    "logits are NaN": ({"mask_input": np.full((32, 32), np.nan)}, ValueError, "Expected finite mask_input"),
    "three masks on one axis": ({"mask_input": np.zeros((1, 3, 32, 32))}, ValueError, r"got \(1, 3, 32, 32\)"),
    "empty text": ({"text": ""}, ValueError, "empty: name an object"),
    "blank text": ({"text": ["cat", " \n"]}, ValueError, r"text\[1\] is empty"),
    "no text": ({"text": []}, ValueError, "at least one text, got an empty list"),
    "endless text": ({"text": "cat " * 2500}, ValueError, "10000 characters, expected at most 1000"),
    "text of numbers": ({"text": [3]}, TypeError, r"text\[0\] must be a string, not int"),
    "text of bytes": ({"text": b"cat"}, TypeError, "not bytes"),
    "text is a number": ({"text": 7}, TypeError, "not int"),
    "three texts for two boxes": (
        {"text": ["a", "b", "c"], "boxes": [[1, 2, 3, 4]] * 2},
        ValueError,
        "one for each of 2 prompt sets, got 3",
    ),
    "negative without text": ({"negative_text": "cat", "points": [[1, 2]]}, ValueError, "with text alone"),
    "negative is positive": ({"text": "Cat", "negative_text": "cat"}, ValueError, "'cat' in both"),
    "negative empty": ({"text": "cat", "negative_text": ""}, ValueError, r"negative_text\[0\] is empty"),
    "threshold above one": ({"text": "cat", "threshold": 50}, ValueError, r"threshold in \[0, 1\], got 50"),
    "threshold is NaN": ({"text": "cat", "threshold": NAN}, ValueError, "got nan"),
    "threshold of text": ({"text": "cat", "threshold": "high"}, TypeError, "got str"),
    "no instance": ({"text": "cat", "max_instances": 0}, ValueError, "at least 1, got 0"),
    "half an instance": ({"text": "cat", "max_instances": 1.5}, TypeError, "got float"),
    "instances of points": ({"points": [[1, 2]], "max_instances": 1}, ValueError, "max_instances with text alone"),
}


@pytest.fixture(scope="module")
def model():
    return TextSam(mobile_miniature(), HashedWords())


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", WRONG_PROMPTS)
def test_wrong_prompts_are_named_and_nothing_is_lost(model, photo, name):
    arguments, error, words = WRONG_PROMPTS[name]
    model.set_image(photo)
    before = model._image
    with pytest.raises(error, match=words) as caught:
        model.predict(**arguments)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert model._image is before
    assert len(model.predict(points=[[3, 4]])) == 1
    with pytest.raises(error, match=words):  # the same with the image given, before it is encoded
        model.predict(photo, **arguments)
    assert model._image is before


def test_a_wrong_image_leaves_the_set_one(model, photo):
    model.set_image(photo)
    before = model._image
    for image in ("no/such/file.png", np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3)) + 7, b"", 5):
        with pytest.raises((FileNotFoundError, ValueError, TypeError)):
            model.set_image(image)
        with pytest.raises((FileNotFoundError, ValueError, TypeError)):
            model.predict(image, points=[[0, 0]])
    assert model._image is before


def test_wrong_prompts_are_found_before_the_image_is_encoded(model, photo, monkeypatch):
    def encode(*_):
        raise AssertionError("encoded")

    monkeypatch.setattr(model.model, "encode_image", encode)
    with pytest.raises(ValueError, match="inside the image"):
        model.predict(photo, points=[[99, 99]])
    with pytest.raises(ValueError, match="is empty"):
        model.predict(photo, text="")
    with pytest.raises(ValueError, match=r"images\[1\]: Expected points inside"):
        model.predict_batch([photo, photo], points=[[[1, 1]], [[99, 99]]], batch_size=2)


def test_no_image(photo):
    model = TextSam(mobile_miniature(), HashedWords())
    for ask in (
        lambda: model.predict(points=[[1, 2]]),
        lambda: model.predict(text="cat"),
        lambda: model.presence(None, ["cat"]),
        lambda: model.generate(),
    ):
        with pytest.raises(ValueError, match="Expected an image, got none: pass image="):
            ask()


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        ({"cat", "dog"}, TypeError, r'a list of strings such as \["dog", "cat"\], not set'),
        (None, TypeError, "not NoneType"),
        ("", ValueError, "is empty"),
    ],
)
def test_wrong_texts_of_presence(model, photo, texts, error, words):
    with pytest.raises(error, match=words):
        model.presence(photo, texts)


def test_words_in_the_place_of_the_image(model, photo):
    model.set_image(photo)
    with pytest.raises(ValueError, match="got none: 'cat' was taken as the image; write text="):
        model.predict("cat")
    with pytest.raises(TypeError, match=r"texts, got none: \['cat'\] was taken as the image; write texts="):
        model.presence(["cat"])
    assert np.array_equal(model.presence(texts=["cat"]), model.presence(photo, "cat"))


@pytest.mark.parametrize(
    ("name", "ours"), [("point_coords", "points"), ("box", "boxes"), ("masks", "mask_input"), ("txt", "text")]
)
def test_names_of_other_tools(model, photo, name, ours):
    with pytest.raises(TypeError, match=f"predict has no option '{name}': did you mean {ours}"):
        model.predict(photo, **{name: 1})
    with pytest.raises(TypeError, match=f"predict_batch has no option '{name}': did you mean {ours}"):
        model.predict_batch([photo], **{name: 1})


def test_unknown_names_are_told_what_there_is(model, photo):
    with pytest.raises(TypeError, match=r"predict has no option 'colour': there are image, text, .*return_logits\.$"):
        model.predict(photo, colour=1)


def test_words_without_an_encoder(photo):
    with pytest.raises(ValueError, match="text encoder, got none"):
        TextSam(mobile_miniature()).predict(photo, text="cat")


def test_words_of_another_clip(photo):
    with pytest.raises(ValueError, match="width 48, got 32: this text prompt belongs to ViT-B-32"):
        TextSam(mobile_miniature(), HashedWords(width=32)).predict(photo, text="cat")


def test_ranking_without_an_encoder_of_crops(photo):
    with pytest.raises(ValueError, match="crop encoder or a trained text prompt, got neither"):
        TextSam(tiny_model(), HashedWords()).predict(photo, text="cat")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"images": "a.png"}, TypeError, "Expected a list of images, got str"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, TypeError, "got ndarray"),
        ({"points": [[[1, 2]]]}, ValueError, "points with one entry for each of 2 images, got 1"),
        (
            {"boxes": sv.Detections(np.array([[1.0, 2, 3, 4]] * 2))},
            TypeError,
            "boxes as a list with an entry for each image, got one Detections",
        ),
        ({"text": [["cat"]]}, ValueError, "text with one entry for each of 2 images, got 1"),
        ({"text": [["cat"], None]}, ValueError, r"images\[1\]: Expected a prompt, got none"),
        ({"text": "cat", "batch_size": 0}, ValueError, "batch_size of at least 1"),
        ({"text": "cat", "batch_size": "2"}, TypeError, "batch_size as a whole number, got '2'"),
        ({"text": 5}, TypeError, "text must be a list of strings such as .*, not int"),
        ({"points": 5}, TypeError, "points as a list with an entry for each image, got one int"),
        ({}, ValueError, r"images\[0\]: Expected a prompt"),
    ],
)
def test_wrong_batches(model, photo, arguments, error, words):
    with pytest.raises(error, match=words):
        model.predict_batch(**{"images": [photo, photo], **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"points": [[0, 0], [WIDTH, HEIGHT]]},  # the corners belong to the image
        {"points": torch.tensor([[3, 4]])},
        {"points": [[3, 4], [-1, -1]], "point_labels": [1, -1]},  # filling may be anywhere
        {"boxes": [0, 0, WIDTH, HEIGHT]},
        {"boxes": [5, 5, 5, 5]},  # the box of a one-pixel mask, as results give it
        {"boxes": torch.tensor([[1.0, 2, 3, 4]], dtype=torch.bfloat16)},
        {"mask_input": torch.zeros(1, 1, 16, 16, dtype=torch.bfloat16)},
        {"mask_input": np.zeros((HEIGHT, WIDTH), bool)},
        {"points": [[0.5, 0.5], [0, 3]]},
        {"boxes": [0, 0, 1, 1]},
        {"boxes": [0.2, 0.3, 1.5, 0.9]},
    ],
)
def test_unusual_prompts_that_are_right(arguments):
    assert len(check_geometry(ImageGeometry.of((HEIGHT, WIDTH), 64), **arguments)) == 1


class Boxes:
    """What ultralytics' `Boxes` has of what matters here."""

    data = torch.tensor([[1.0, 2, 30, 40, 0.9, 2], [5, 6, 7, 8, 0.8, 0]])
    xyxy, conf, cls = data[:, :4], data[:, 4], data[:, 5]


def test_results_of_other_tools_as_prompts():
    geometry = ImageGeometry.of((HEIGHT, WIDTH), 64)
    boxes = check_geometry(geometry, boxes=Boxes())
    assert np.array_equal(boxes.boxes, check_geometry(geometry, boxes=Boxes.xyxy).boxes)
    assert (boxes.class_id.tolist(), boxes.class_names) == ([2, 0], ["class 2", "class 0"])
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, 5:20, 5:20] = True
    found = sv.Detections(np.array([[5.0, 5, 19, 19], [0, 0, 0, 0]]), masks, data={"class_name": np.array(["a", "b"])})
    prompts = check_geometry(geometry, mask_input=found)
    assert torch.equal(prompts.mask_input, check_geometry(geometry, mask_input=masks).mask_input)
    assert prompts.class_names == ["a", "b"]


def test_empty_prompts_keep_their_axis():
    geometry = ImageGeometry.of((HEIGHT, WIDTH), 64)
    assert len(check_geometry(geometry, boxes=[])) == 0
    assert len(check_geometry(geometry, points=np.zeros((0, 2, 2)), boxes=np.zeros((0, 4)))) == 0
    assert check_geometry(geometry, mask_input=np.zeros((0, HEIGHT, WIDTH), bool)).mask_input.shape == (0, 1, 16, 16)
    assert check_geometry(geometry) is None


def test_texts_are_stripped():
    assert check_texts(" a cat ") == ["a cat"]
    assert check_texts(("cat", "dog")) == ["cat", "dog"]
    assert check_texts(np.array(["cat", "dog"])) == check_texts(text for text in ("cat", "dog")) == ["cat", "dog"]
    assert check_texts(np.array("cat")) == ["cat"]


def test_arrays_and_generators_of_texts_for_many_photos():
    shared = (["cat", "dog"],) + (None,) * 4
    for text in (np.array(["cat", "dog"]), (text for text in ("cat", "dog"))):
        assert spread_prompts(2, text, None, None, None, None) == [shared] * 2
