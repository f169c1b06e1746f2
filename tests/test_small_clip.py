"""The embedded encoders: a miniature of their training, their promises on any weights, and saving."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from scenes import scene, write_coco
from torch.nn import functional as F

import textsam.language.small_clip
from textsam.language.crops import square_crop
from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder, word_features
from textsam.language.vocabulary import UnknownNameError, Vocabulary
from train.crop_embeddings import embed_set
from train.crop_encoder import MAX_SHARE_OF_NAME, cache_features, fit_head, list_crops
from train.text_encoder import build_vocabulary, evaluate, fit, plural

NAMES = ["dog", "cat", "zebra", "hot dog", "dog bed", "bed", "traffic light", "light"]
SIZES = {"num_buckets": 128, "width": 32, "num_heads": 2, "mlp_dim": 32, "embed_dim": 24}


@pytest.fixture
def text_encoder() -> SmallTextEncoder:
    torch.manual_seed(0)
    return SmallTextEncoder(Vocabulary(NAMES), **SIZES).eval()


@pytest.fixture(scope="module")
def crop_encoder() -> SmallCropEncoder:
    torch.manual_seed(0)
    return SmallCropEncoder(embed_dim=16, image_size=64).eval()


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def masks(count: int = 5, height: int = 60, width: int = 90) -> np.ndarray:
    found = np.zeros((count, height, width), bool)
    for index, mask in enumerate(found):
        mask[5 * index : 5 * index + 20, 10 * index : 10 * index + 30] = True
    return found


def test_miniature_training_reaches_its_targets() -> None:
    torch.manual_seed(0)
    targets = F.normalize(torch.randn(len(NAMES), 24), dim=-1)
    model = SmallTextEncoder(build_vocabulary(NAMES), **SIZES)
    before = evaluate(model, targets)["cosine to the target, mean"]
    fit(model, targets, steps=150, batch_size=32, lr=1e-2, seed=0)
    scores = evaluate(model, targets)
    assert before < 0.5
    assert scores["cosine to the target, mean"] > 0.95
    assert scores["known names nearest to their own target"] == 1
    assert scores["article: nearest to their own target, raw"] > 0.9
    asked = ["a dog", "dogs", "the small dog", "photo of a dog", "Dog", "DOGS!"]
    assert ((model.encode(asked) @ targets.T).argmax(-1) == 0).all()


def test_every_way_to_ask_gives_the_same_embedding(text_encoder: SmallTextEncoder) -> None:
    embeddings = text_encoder.encode(["traffic light", "Traffic lights!", "a photo of two green traffic lights"])
    torch.testing.assert_close(embeddings, embeddings[:1].expand(3, -1))
    assert not torch.allclose(text_encoder.encode(["hot dog"]), text_encoder.encode(["dog"]), atol=1e-3)


def test_words_have_an_order_and_neighbours_do_not_matter(text_encoder: SmallTextEncoder) -> None:
    with torch.no_grad():
        together = text_encoder(["dog bed", "bed dog", "zebra", ""])
        alone = torch.cat([text_encoder([text]) for text in ("dog bed", "bed dog", "zebra", "")])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_shapes(text_encoder: SmallTextEncoder, count: int) -> None:
    embeddings = text_encoder.encode(NAMES[:count])
    assert embeddings.shape == (count, 24)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(count))


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["dog", "unicorn"], UnknownNameError, "does not know 'unicorn'"),
        (["dgo"], UnknownNameError, "'dog'.*ViT-B-32:openai"),
        (["prairie dog"], UnknownNameError, "'dog'"),
        ("dog", TypeError, "list of strings"),
        ([None], TypeError, "NoneType"),
        ([""], ValueError, "empty"),
        (["dog " * 2500], ValueError, "10000 characters"),
    ],
)
def test_wrong_texts(text_encoder: SmallTextEncoder, texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        text_encoder.encode(texts)


def test_an_unknown_word_is_told_what_the_model_was_trained_for(text_encoder: SmallTextEncoder) -> None:
    wider = text_encoder.with_names(["word", "text line"], torch.eye(2, 24), {})
    with pytest.raises(
        UnknownNameError, match=r"know 'caption'\. This model was trained for 'word', 'text line'\."
    ) as got:
        wider.encode(["dog", "caption"])
    assert got.value.suggestions == text_encoder.vocabulary.suggest("caption")
    with pytest.raises(UnknownNameError, match="several things"):
        wider.encode(["dog, word"])


def test_word_features_are_the_same_everywhere() -> None:
    """Hashes must not depend on the process or the platform: the weights are learned for them."""
    assert word_features("dog", 2048) == (1932, 106, 1560, 381, 926, 1476)


def test_shipped_size_is_within_the_budget() -> None:
    model = SmallTextEncoder(Vocabulary(NAMES))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_100_000


def test_text_encoder_saved_and_read_back(tmp_path: Path, text_encoder: SmallTextEncoder) -> None:
    text_encoder.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = SmallTextEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encode(NAMES), text_encoder.encode(NAMES), rtol=0, atol=0)
    assert loaded.vocabulary.names == NAMES
    text_encoder.save_pretrained(tmp_path)  # float16 by default
    halved = SmallTextEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(halved.encode(NAMES), text_encoder.encode(NAMES), rtol=1e-2, atol=2e-3)


def test_broken_folders(tmp_path: Path, text_encoder: SmallTextEncoder, crop_encoder: SmallCropEncoder) -> None:
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        SmallTextEncoder.from_pretrained(tmp_path)
    text_encoder.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"width": 64}))
    with pytest.raises(ValueError, match="does not fit SmallTextEncoder"):
        SmallTextEncoder.from_pretrained(tmp_path)
    for content, message in (("{", "not JSON"), ('{"width": "64"}', "whole numbers"), ("[]", "whole numbers")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            SmallTextEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"width": 32, "wings": 2}))
    with pytest.raises(ValueError, match="wings"):
        SmallCropEncoder.from_pretrained(tmp_path)


def test_crop_encoder_is_the_trunk_inside_the_mask(crop_encoder: SmallCropEncoder) -> None:
    """Against the same steps written out: crop, trunk, weighted mean, linear layer."""
    image, mask = picture(), masks(1)[0]
    crop, coverage = square_crop(image, mask, 64, expand=1.5, fill=(127.5,) * 3)
    with torch.no_grad():
        x = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
        features = crop_encoder.trunk(x)[0]
        weights = torch.from_numpy(coverage).unflatten(0, (2, 32)).unflatten(2, (2, 32)).mean(dim=(1, 3))
        pooled = (features * weights).sum(dim=(1, 2)) / weights.sum()
        expected = F.normalize(crop_encoder.visual_projection(pooled), dim=-1)
    torch.testing.assert_close(crop_encoder.encode(image, masks(1), expand=1.5)[0], expected, rtol=1e-4, atol=1e-5)


def test_crop_encoder_any_number_of_masks(crop_encoder: SmallCropEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture()
    embeddings = crop_encoder.encode(image, masks())
    assert embeddings.shape == (5, 16)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(5))
    monkeypatch.setattr(textsam.language.small_clip, "BATCH_SIZE", 2)
    torch.testing.assert_close(crop_encoder.encode(image, masks()), embeddings, rtol=1e-4, atol=1e-5)
    assert crop_encoder.encode(image, masks(1)).shape == (1, 16)
    assert crop_encoder.encode(image, masks(0)).shape == (0, 16)
    with pytest.raises(ValueError, match=r"masks\[0\] is empty"):
        crop_encoder.encode(image, np.zeros((1, 60, 90), bool))


def test_dense_features_follow_the_picture(crop_encoder: SmallCropEncoder) -> None:
    dense = crop_encoder.dense(picture(60, 90))
    assert dense.shape == (16, 3, 4)  # 90 px become 128, 60 px become 96: one position per 32
    torch.testing.assert_close(dense.norm(dim=0), torch.ones(3, 4))
    assert crop_encoder.dense(picture(2, 400)).shape == (16, 1, 4)


def test_crop_encoder_saved_and_read_back(tmp_path: Path, crop_encoder: SmallCropEncoder) -> None:
    crop_encoder.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = SmallCropEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encode(picture(), masks()), crop_encoder.encode(picture(), masks()))


def test_head_separates_names_of_features() -> None:
    torch.manual_seed(0)
    centres, targets = 2 * torch.randn(4, 1280), F.normalize(torch.randn(6, 16), dim=-1)
    labels = torch.arange(200) % 4
    features = centres[labels] + torch.randn(200, 1280)
    head = fit_head(features, labels, targets, steps=60)
    with torch.no_grad():
        fresh = F.normalize(head(centres[labels] + torch.randn(200, 1280)), dim=-1)
    assert ((fresh @ targets.T).argmax(-1) == labels).float().mean() > 0.98


def test_crops_of_a_data_folder(tmp_path: Path, crop_encoder: SmallCropEncoder) -> None:
    """Known names only, crowds left out, a cap on a name; features are those that `encode` uses."""
    folder = tmp_path / "ccp"
    (folder / "images").mkdir(parents=True)
    Image.fromarray(picture()).save(folder / "images" / "a.png")
    rle = coco_mask.encode(np.asfortranarray(masks(1)[0].astype(np.uint8)))
    rle["counts"] = rle["counts"].decode()
    categories = [{"id": 1, "name": "dogs"}, {"id": 2, "name": "unicorn"}]
    objects = [(1, 0), (2, 0), (1, 1)] + [(1, 0)] * 200
    annotations = [
        {"id": i, "image_id": 7, "category_id": category, "iscrowd": crowd, "segmentation": rle}
        for i, (category, crowd) in enumerate(objects)
    ]
    height, width = picture().shape[:2]
    images = [{"id": 7, "file_name": "a.png", "height": height, "width": width}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    found = list_crops(tmp_path, "train", Vocabulary(NAMES), random.Random(0))
    assert list(found) == ["ccp"]
    assert [name for _, _, name in found["ccp"]] == ["dog"] * MAX_SHARE_OF_NAME["ccp"]
    features = cache_features(crop_encoder, found["ccp"][:2], augment=False, rng=random.Random(0))
    with torch.no_grad():
        embeddings = F.normalize(crop_encoder.visual_projection(features), dim=-1)
    torch.testing.assert_close(embeddings[1:], crop_encoder.encode(picture(), masks(1)), rtol=1e-4, atol=1e-5)
    augmented = cache_features(crop_encoder, found["ccp"][:17], augment=True, rng=random.Random(0))
    assert augmented.shape == (17, 1280)
    assert not torch.allclose(augmented[0], augmented[1], rtol=0, atol=1e-5)
    with pytest.raises(FileNotFoundError, match="none of the folders voc"):
        list_crops(folder, "train", Vocabulary(NAMES), random.Random(0))


def test_every_crop_is_embedded_once(tmp_path: Path, crop_encoder: SmallCropEncoder) -> None:
    """As it is and without its surroundings, at most so many of a picture."""
    write_coco(tmp_path / "scene", 3)
    found = embed_set(crop_encoder, tmp_path / "scene", 12, seed=0)
    assert sorted(found) == sorted(f"scene/{10 * number + category}" for number in range(3) for category in (1, 2))
    rng, (pixels, regions) = np.random.default_rng(0), scene(0)
    order = rng.permutation(2)
    for variant, alone in enumerate((False, True)):
        expected = crop_encoder.encode(
            pixels, np.stack([regions[i] for i in order]), expand=float(rng.uniform(1, 2)), zero_outside=alone
        )
        for row, i in enumerate(order):
            torch.testing.assert_close(found[f"scene/{i + 1}"][variant], expected[row].half(), rtol=0, atol=1e-3)
    assert not torch.equal(*found["scene/1"])
    assert len(embed_set(crop_encoder, tmp_path / "scene", 1, seed=0)) == 3


def test_plurals_are_undone() -> None:
    vocabulary = Vocabulary(["box", "bench", "berry", "woman", "toy", "dog", "shelf"])
    for name in vocabulary.names:
        assert vocabulary.find(plural(name)) == name
