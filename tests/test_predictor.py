"""`TextSam` on random miniatures: geometry against SAM's own steps written out, results' form, caching, batches."""

import numpy as np
import pytest
import supervision as sv
import torch
from miniatures import CLIP_DIM, HashedWords, mobile_miniature
from PIL import Image
from tiny_models import SIDE, tiny_model
from torch.nn import functional as F
from torchvision.transforms.functional import resize, to_pil_image

from textsam.predictor import TextSam
from textsam.prompting.automatic import generate
from textsam.prompting.automatic_options import AutomaticOptions
from textsam.prompting.text_options import TextPromptOptions

LOW = SIDE // 4


@pytest.fixture(scope="module")
def sam():
    """SAM's structure, no text."""
    return TextSam(tiny_model())


@pytest.fixture(scope="module")
def textsam():
    """The embedded model's structure, with words."""
    options = TextPromptOptions(min_stability=0.0, presence_threshold=0.0, confidence_threshold=0.0)
    return TextSam(mobile_miniature(seed=2), HashedWords(), text_options=options)


@pytest.fixture
def photo(cat_photo):
    return np.ascontiguousarray(cat_photo[:200, :300])


def by_hand(model, image, *, multimask_output, points=None, labels=None, boxes=None, mask_input=None):
    """The released predictor's steps: masks (M, H, W), predicted IoU (M,), low-res logits (M, 4h, 4w) of one object."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels = torch.as_tensor(np.array(resize(to_pil_image(image), (new_height, new_width)))).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.config.pixel_mean, model.config.pixel_std))
    pixel_values = F.pad((pixels - mean) / std, (0, SIDE - new_width, 0, SIDE - new_height))
    factor = np.array([new_width / width, new_height / height])
    given = {}
    if points is not None:
        given["point_coords"] = torch.as_tensor(np.array(points) * factor, dtype=torch.float)[None]
        given["point_labels"] = torch.as_tensor(labels)[None]
    if boxes is not None:
        corners = np.array(boxes, dtype=float).reshape(2, 2) * factor
        given["boxes"] = torch.as_tensor(corners.reshape(1, 4), dtype=torch.float)
    if mask_input is not None:
        given["mask_input"] = torch.as_tensor(mask_input)[None, None]
    with torch.no_grad():
        embedded = model.encode_image(pixel_values)
        decoded = model.decode_masks(
            embedded, model.encode_prompts(embedded, **given), multimask_output=multimask_output
        )
        full = F.interpolate(decoded.low_res_logits, (SIDE, SIDE), mode="bilinear", align_corners=False)
        full = full[..., :new_height, :new_width]
        full = F.interpolate(full, (height, width), mode="bilinear", align_corners=False)
    return (full[0] > 0).numpy(), decoded.iou_predictions[0].numpy(), decoded.low_res_logits[0].numpy()


@pytest.mark.parametrize("multimask_output", [False, True])
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(
    "prompts",
    [
        {"points": [[30.0, 40.0]], "labels": [1]},
        {"points": [[30.0, 40.0], [90.5, 61.0]], "labels": [1, 0]},
        {"boxes": [10.0, 20.0, 150.0, 160.0]},
        {"points": [[60.0, 70.0]], "labels": [0], "boxes": [10.0, 20.0, 150.0, 160.0]},
        {"mask_input": np.linspace(-8, 8, LOW * LOW, dtype=np.float32).reshape(LOW, LOW)},
        {
            "points": [[60.0, 70.0]],
            "labels": [1],
            "mask_input": np.linspace(-8, 8, LOW * LOW, dtype=np.float32).reshape(LOW, LOW),
        },
    ],
    ids=["point", "points", "box", "box+point", "mask", "mask+point"],
)
def test_geometry_is_sams(sam, photo, prompts, multimask_output, upright):
    image = photo if not upright else np.ascontiguousarray(photo.transpose(1, 0, 2))
    masks, predicted_iou, logits = by_hand(sam.model, image, multimask_output=multimask_output, **prompts)
    asked = dict(prompts)
    if "labels" in asked:
        asked["point_labels"] = asked.pop("labels")
    found = sam.predict(image, **asked, multimask_output=multimask_output, return_logits=True)
    assert len(found) == (3 if multimask_output else 1)
    np.testing.assert_allclose(found.data["low_res_logits"], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.data["predicted_iou"], predicted_iou, rtol=1e-5, atol=1e-5)
    assert (found.mask != masks).mean() < 1e-4  # a pixel whose logit is 0 but for rounding may fall on either side
    np.testing.assert_array_equal(found.xyxy[0], sv.mask_to_xyxy(found.mask[:1])[0] if found.mask[0].any() else 0)
    np.testing.assert_allclose(found.confidence, predicted_iou.clip(0, 1), rtol=1e-5, atol=1e-5)


def test_many_prompt_sets_are_one_by_one(sam, photo, monkeypatch):
    """Whatever the number in one decoder call: one object for each, in order; with three masks, prompt-major."""
    monkeypatch.setattr("textsam.prompting.geometry_prompting.PROMPTS_PER_BATCH", 2)
    points = np.array([[[30, 40], [50, 60]], [[100, 20], [0, 0]], [[299, 199], [150, 20]]], dtype=float)
    labels = np.array([[1, 0], [1, -1], [1, 1]])
    together = sam.predict(photo, points=points, point_labels=labels, multimask_output=True, return_logits=True)
    assert together.data["prompt_index"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert together.data["mask_index"].tolist() == [0, 1, 2] * 3
    for index in range(3):
        alone = sam.predict(
            photo, points=points[index], point_labels=labels[index], multimask_output=True, return_logits=True
        )
        rows = slice(3 * index, 3 * index + 3)
        np.testing.assert_allclose(
            together.data["low_res_logits"][rows], alone.data["low_res_logits"], rtol=1e-4, atol=1e-4
        )
        assert (together.mask[rows] != alone.mask).mean() < 1e-3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_axes_and_keys_do_not_depend_on_the_count(sam, photo, count):
    boxes = np.array([[10, 10, 100, 100], [20, 30, 200, 190]])[:count]
    found = sam.predict(photo, boxes=boxes, return_logits=True)
    assert found.xyxy.shape == (count, 4)
    assert found.xyxy.dtype == np.float32
    assert found.mask.shape == (count, *photo.shape[:2])
    assert found.mask.dtype == bool
    assert found.confidence.shape == (count,)
    assert found.class_id.tolist() == [0] * count
    assert set(found.data) == {
        "class_name", "predicted_iou", "stability_score", "prompt_index", "mask_index", "presence", "agreement",
        "low_res_logits",
    }  # fmt: skip
    assert np.isnan(found.data["presence"]).all()
    assert found.data["low_res_logits"].shape == (count, LOW, LOW)
    assert found.data["class_name"].tolist() == ["object"] * count


def test_image_argument_and_set_image_agree(sam, photo, cat_photo):
    sam.set_image(cat_photo)
    first = sam.predict(points=[[30, 40]], return_logits=True)
    other = sam.predict(photo, points=[[30, 40]], return_logits=True)
    again = sam.predict(points=[[30, 40]], return_logits=True)
    assert first.mask.shape[1:] == cat_photo.shape[:2]
    np.testing.assert_array_equal(first.data["low_res_logits"], again.data["low_res_logits"])  # it stayed set
    assert other.mask.shape[1:] == photo.shape[:2]
    sam.set_image(photo)
    np.testing.assert_array_equal(
        sam.predict(points=[[30, 40]], return_logits=True).data["low_res_logits"], other.data["low_res_logits"]
    )
    sam.reset_image()
    with pytest.raises(ValueError, match="set_image first"):
        sam.predict(points=[[30, 40]])


def test_images_come_in_any_form(sam, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = sam.predict(photo, boxes=[10, 10, 100, 100]).mask
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    for image in (Image.fromarray(photo), tmp_path / "photo.png", str(tmp_path / "photo.png"), tensor):
        np.testing.assert_array_equal(sam.predict(image, boxes=[10, 10, 100, 100]).mask, expected)


def test_the_given_array_may_be_drawn_on(sam, photo):
    image = photo.copy()
    sam.set_image(image)
    before = sam.predict(boxes=[10, 10, 100, 100]).mask
    image[:] = 0
    np.testing.assert_array_equal(sam.predict(boxes=[10, 10, 100, 100]).mask, before)


def test_a_result_can_be_refined(sam, photo):
    """Logits go back as they came; a bool mask of the photo's size is taken to the same frame."""
    sam.set_image(photo)
    first = sam.predict(points=[[[30, 40]], [[90, 90]]], return_logits=True)
    logits = first.data["low_res_logits"]
    refined = sam.predict(points=[[[35, 40]], [[95, 90]]], mask_input=logits)
    same = sam.predict(points=[[[35, 40]], [[95, 90]]], mask_input=torch.from_numpy(logits)[:, None])
    assert len(refined) == 2
    np.testing.assert_array_equal(refined.mask, same.mask)
    assert sam.predict(mask_input=first.mask).mask.shape == first.mask.shape
    assert sam.predict(mask_input=first.mask[0]).mask.shape == (1, *photo.shape[:2])


def test_threshold_keeps_the_confident(sam, photo):
    points = np.random.default_rng(0).uniform(0, 200, (6, 1, 2))
    every = sam.predict(photo, points=points, multimask_output=True)
    middle = float(np.median(every.confidence))
    some = sam.predict(photo, points=points, multimask_output=True, threshold=middle)
    kept = every.confidence >= middle
    assert 0 < kept.sum() < len(every)
    assert some.data["prompt_index"].tolist() == every.data["prompt_index"][kept].tolist()


def test_boxes_of_a_detector_keep_their_names(sam, photo):
    height, width = photo.shape[:2]
    detector = sv.Detections(
        xyxy=np.array([[10, 10, 100, 100], [-3, 20, width + 5, height + 2]], dtype=float),
        class_id=np.array([7, 2]),
        data={"class_name": np.array(["cat", "dog"])},
    )
    found = sam.predict(photo, boxes=detector)
    assert found.class_id.tolist() == [7, 2]
    assert found.data["class_name"].tolist() == ["cat", "dog"]
    clipped = sam.predict(photo, boxes=[[10, 10, 100, 100], [0, 20, width, height]])
    np.testing.assert_array_equal(found.mask, clipped.mask)
    assert len(sam.predict(photo, boxes=sv.Detections.empty())) == 0
    unnamed = sam.predict(photo, boxes=sv.Detections(xyxy=detector.xyxy, class_id=np.array([7, 2])))
    assert unnamed.data["class_name"].tolist() == ["class 7", "class 2"]


def test_text_joins_geometry(photo):
    """One decoder call of points and text is what the model's own verbs give; text changes the result."""
    textsam = TextSam(mobile_miniature(seed=2), HashedWords(), text_options=TextPromptOptions(click_rounds=0))
    textsam.set_image(photo)
    points = [[[30, 40]], [[90, 90]]]
    named = textsam.predict(points=points, text=["cat", "dog"], return_logits=True)
    plain = textsam.predict(points=points, return_logits=True)
    assert named.data["class_name"].tolist() == ["cat", "dog"]
    assert named.class_id.tolist() == [0, 1]
    for score in ("presence", "agreement"):
        assert np.isfinite(named.data[score]).all()
        assert np.isnan(plain.data[score]).all()
    assert np.abs(named.data["low_res_logits"] - plain.data["low_res_logits"]).max() > 0.1
    image = textsam._image.embeddings
    with torch.no_grad():
        prompts = textsam.model.encode_prompts(
            image,
            point_coords=torch.tensor(points).float() * torch.tensor([128 / 300, 85 / 200]),
            point_labels=torch.ones(2, 1, dtype=torch.int64),
            text_embeddings=HashedWords().encode(["cat", "dog"]),
        )
        expected = textsam.model.decode_masks(image, prompts, multimask_output=False)
    np.testing.assert_allclose(
        named.data["low_res_logits"], expected.low_res_logits[:, 0].numpy(), rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(named.data["presence"], expected.presence_logits.sigmoid().numpy(), rtol=1e-5)
    factors = named.data["predicted_iou"].clip(0, 1) * named.data["presence"] * named.data["agreement"]
    np.testing.assert_allclose(named.confidence, factors ** (1 / 3), rtol=1e-5)


def test_a_click_and_a_name_are_asked_again_about_the_mean_of_what_they_say(photo):
    """Once and twice, as with the model's own verbs; with several clicks, a box or three masks asked for, never."""

    def ask(rounds, **prompts):
        sam = TextSam(mobile_miniature(seed=2), HashedWords(), text_options=TextPromptOptions(click_rounds=rounds))
        found = sam.predict(photo, text="cat", return_logits=True, **prompts)
        return found.data["low_res_logits"], found.data["presence"]

    click = {"points": [[[30, 40]]]}
    sam = TextSam(mobile_miniature(seed=2), HashedWords())
    alone = sam.predict(photo, **click, multimask_output=True, return_logits=True).data
    about = (ask(0, **click)[0] + alone["low_res_logits"][[alone["predicted_iou"].argmax()]]) / 2
    for rounds in (1, 2):
        about = ask(0, **click, mask_input=about)[0]
        logits, presence = ask(rounds, **click)
        np.testing.assert_allclose(logits, about, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(presence, ask(0, **click)[1])
    assert np.abs(logits - ask(0, **click)[0]).max() > 0.1
    others = [{"points": [[[30, 40], [60, 40]]]}, {"points": [[[30, 40]]], "boxes": [10, 20, 90, 80]}]
    for other in (*others, click | {"multimask_output": True}, click | {"point_labels": [[0]]}):
        np.testing.assert_array_equal(ask(2, **other)[0], ask(0, **other)[0])


def test_each_prompt_set_is_asked_again_for_its_own_clicks(photo):
    """Whatever the other sets ask, and though a single click is filled up."""

    def ask(rounds, points, labels, **prompts):
        sam = TextSam(mobile_miniature(seed=2), HashedWords(), text_options=TextPromptOptions(click_rounds=rounds))
        asked = {"points": points, "point_labels": labels, **prompts}
        return sam.predict(photo, text="cat", return_logits=True, **asked).data["low_res_logits"]

    click = [[[30, 40]]], [[1]]
    mixed = [[[30, 40]], [[90, 90]]], [[1], [0]]
    expected = [ask(1, *click)[0], ask(0, *mixed)[1]]
    np.testing.assert_allclose(ask(1, *mixed), expected, rtol=1e-4, atol=1e-3)
    filled = [[[0, 0], [30, 40]], [[90, 90], [0, 0]], [[90, 90], [60, 50]]], [[-1, 1], [0, -1], [1, 0]]
    once = ask(0, *filled)
    sam = TextSam(mobile_miniature(seed=2))
    alone = sam.predict(photo, points=click[0], multimask_output=True, return_logits=True).data
    about = (once[:1] + alone["low_res_logits"][[alone["predicted_iou"].argmax()]]) / 2
    expected = [ask(0, *click, mask_input=about)[0], *once[1:]]
    np.testing.assert_allclose(ask(1, *filled), expected, rtol=1e-4, atol=1e-3)


def test_one_text_serves_all_prompt_sets(textsam, photo):
    one = textsam.predict(photo, boxes=[[10, 10, 90, 90], [5, 5, 200, 190]], text="cat", return_logits=True)
    each = textsam.predict(photo, boxes=[[10, 10, 90, 90], [5, 5, 200, 190]], text=["cat", "cat"], return_logits=True)
    np.testing.assert_array_equal(one.data["low_res_logits"], each.data["low_res_logits"])
    assert one.class_id.tolist() == each.class_id.tolist() == [0, 0]
    assert len(textsam.predict(photo, boxes=np.zeros((0, 4)), text="cat")) == 0


def test_text_alone_gives_instances_of_each_text(textsam, photo):
    found = textsam.predict(photo, text=["cat", "dog"], threshold=0.0, return_logits=True)
    assert len(found) > 0
    names = np.array(["cat", "dog"])
    np.testing.assert_array_equal(found.data["class_name"], names[found.class_id])
    assert found.mask.shape == (len(found), *photo.shape[:2])
    assert found.data["low_res_logits"].shape == (len(found), 32, 32)
    for query in (0, 1):
        scores = found.confidence[found.class_id == query]
        assert (np.diff(scores) <= 0).all()
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    few = textsam.predict(photo, text=["cat", "dog"], threshold=0.0, max_instances=1)
    assert len(few) == len(set(found.class_id))


def test_nothing_found_keeps_axes_and_keys(textsam, photo):
    every = textsam.predict(photo, text="dog", threshold=0.0, return_logits=True)
    none = textsam.predict(photo, text="dog", threshold=1.0, return_logits=True)
    assert len(every) > len(none) == 0
    assert none.xyxy.shape == (0, 4)
    assert none.mask.shape == (0, *photo.shape[:2])
    assert set(none.data) == set(every.data)
    assert none.data["low_res_logits"].shape == (0, 32, 32)


def test_a_trained_text_prompt_without_similarity_head_uses_a_grid(photo):
    model = TextSam(
        tiny_model(text_trained=True),
        HashedWords(),
        text_options=TextPromptOptions(min_stability=0.0, grid_points_per_side=4, multimask_output=True),
    )
    found = model.predict(photo, text="cat", threshold=0.0)
    assert len(found) > 0, "a threshold of 0 lets every guess through"
    np.testing.assert_array_equal(found.data["agreement"], np.ones(len(found), np.float32))


def test_each_text_is_embedded_once(photo):
    words = HashedWords()
    model = TextSam(mobile_miniature(), words)
    model.set_image(photo)
    model.predict(text=["cat", "dog"])
    model.predict(text=["dog", "cat", "cow"], negative_text="wolf")
    assert words.asked == ["cat", "dog", "cow", "wolf"]


def test_few_texts_are_kept(photo, monkeypatch):
    monkeypatch.setattr("textsam.language.words._TEXTS_KEPT", 2)
    words = HashedWords()
    model = TextSam(mobile_miniature(), words)
    assert model.presence(photo, ["cat", "dog", "cow"]).shape == (3,)
    model.presence(photo, ["cow"])
    model.presence(photo, ["cat"])
    assert words.asked == ["cat", "dog", "cow", "cat"]


def test_encoders_are_made_when_first_used(photo):
    made = []

    def make():
        made.append("words")
        return HashedWords()

    model = TextSam(mobile_miniature(), make)
    model.predict(photo, points=[[3, 4]])
    assert made == []
    model.predict(photo, text="cat")
    model.predict(photo, text="dog")
    assert made == ["words"]


def test_presence_is_one_number_for_each_text(textsam, photo):
    scores = textsam.presence(photo, ["cat", "dog", "eel"])
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert len(set(scores.tolist())) == 3
    textsam.set_image(photo)
    np.testing.assert_allclose(textsam.presence(None, ["eel", "cat"]), scores[[2, 0]], rtol=1e-5)
    assert textsam.presence(None, []).shape == (0,)


def test_generate_is_the_automatic_masks(sam, photo):
    """The same with the set image as with the image given, as detections; options reach the search."""
    loose = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    given = sam.generate(photo, **loose)
    sam.set_image(photo)
    found = sam.generate(**loose)
    expected = generate(sam.model, photo, AutomaticOptions(**loose))
    assert 0 < len(found) == len(given) == len(expected)
    np.testing.assert_array_equal(found.mask, expected.masks())
    np.testing.assert_array_equal(given.mask, found.mask)
    np.testing.assert_array_equal(found.xyxy, expected.boxes_xyxy)
    np.testing.assert_allclose(found.confidence, expected.predicted_iou.clip(0, 1))
    assert found.data["point_coords"].shape == (len(found), 2)
    assert set(found.data["class_name"]) == {"object"}
    none = sam.generate(pred_iou_thresh=2.0, points_per_side=2)
    assert none.mask.shape == (0, *photo.shape[:2])
    assert set(none.data) == set(found.data)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"point_per_side": 3}, TypeError, "no option 'point_per_side': did you mean points_per_side?"),
        ({"qwzx": 3}, TypeError, "there are points_per_side, "),
        ({"points_per_side": 0}, ValueError, "points_per_side of at least 1, got 0"),
    ],
)
def test_generate_refuses_wrong_options(sam, photo, options, error, words):
    with pytest.raises(error, match=words):
        sam.generate(photo, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_are_single_photos(textsam, photo, cat_photo, batch_size):
    images = [photo, cat_photo, photo[:, :100].copy()]
    together = textsam.predict_batch(images, text=["cat", "dog"], threshold=0.0, batch_size=batch_size)
    assert len(together) == 3
    for image, found in zip(images, together, strict=True):
        alone = textsam.predict(image, text=["cat", "dog"], threshold=0.0)
        assert len(found) == len(alone)
        assert (found.mask != alone.mask).mean() < 1e-3
        np.testing.assert_allclose(found.confidence, alone.confidence, atol=1e-3)


def test_batches_take_prompts_of_each_photo(textsam, photo, cat_photo):
    found = textsam.predict_batch(
        [photo, cat_photo, photo],
        text=[["cat"], ["dog", "eel"], None],
        points=[None, [[[3, 4]], [[50, 60]]], None],
        boxes=[None, None, [10, 10, 100, 100]],
        threshold=0.0,
    )
    assert set(found[0].data["class_name"]) <= {"cat"}
    assert found[1].data["class_name"].tolist() == ["dog", "eel"]
    assert found[2].data["class_name"].tolist() == ["object"]
    assert found[1].mask.shape[1:] == cat_photo.shape[:2]
    assert textsam.predict_batch([], text="cat") == []


def test_without_padding_a_photo_keeps_its_shape(photo):
    model = TextSam(tiny_model(), pad_to_square=False)
    found = model.predict(photo, boxes=[10, 10, 100, 100], return_logits=True)
    assert found.data["low_res_logits"].shape == (1, 24, 32)  # 128 x 85 px, rounded up to 128 x 96
    assert found.mask.shape == (1, *photo.shape[:2])


def test_another_side(photo):
    model = TextSam(tiny_model(), image_size=192)
    found = model.predict(photo, boxes=[10, 10, 100, 100], return_logits=True)
    assert found.data["low_res_logits"].shape == (1, 48, 48)


def test_bfloat16_gives_the_same_types(photo):
    model = TextSam(
        mobile_miniature(seed=2).bfloat16(), HashedWords(), text_options=TextPromptOptions(min_stability=0.0)
    )
    exact = TextSam(mobile_miniature(seed=2), HashedWords())
    ask = {"points": [[[30, 40]], [[90, 90]]], "text": "cat", "return_logits": True}
    found, expected = model.predict(photo, **ask), exact.predict(photo, **ask)
    assert found.data["low_res_logits"].dtype == found.confidence.dtype == np.float32
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=0.1)
    assert (found.mask == expected.mask).mean() > 0.9
    assert model.predict(photo, text="cat", threshold=0.0).xyxy.shape[1] == 4


def test_the_model_stays_trainable_after_use(photo):
    """Prediction must not leave tensors behind that autograd refuses."""
    model = mobile_miniature()
    TextSam(model, HashedWords()).predict(photo, points=[[3, 4]], text="cat")
    out = model(
        torch.randn(1, 3, 128, 128),
        point_coords=torch.tensor([[[3.0, 4.0]]]),
        point_labels=torch.tensor([[1]]),
        text_embeddings=F.normalize(torch.randn(1, CLIP_DIM), dim=-1),
    )
    out.low_res_logits.sum().backward()
    assert model.prompt_encoder.text_embed.weight.grad.abs().sum() > 0


def test_another_dtype_and_back(tmp_path):
    sam = TextSam(mobile_miniature().bfloat16().float(), HashedWords())  # weights that lose nothing on the way
    assert repr(sam) == "TextSam(mobile encoder, 128 px, text trained, torch.float32, cpu, no image set)"
    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    sam.use_cache(tmp_path)
    sam.set_image(photo)
    before = sam.predict(points=[[30, 20]])
    assert sam.to(torch.bfloat16) is sam
    assert "torch.bfloat16, cpu, an image set" in repr(sam)
    found = sam.predict(points=[[30, 20]])
    assert (found.mask == before.mask).mean() > 0.9
    assert np.array_equal(sam.to("cpu", torch.float32).predict(points=[[30, 20]]).confidence, before.confidence)
