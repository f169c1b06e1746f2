"""The dense form of a text prompt: CLIP's features in the encoder's frame, as a mask prompt, trained, carried along."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import ColourWords
from safetensors import safe_open
from safetensors.torch import save_file
from scenes import write_coco
from test_recipes import clip_encoders, miniature, model_of, run
from tiny_models import tiny_model
from torch import Tensor
from torch.nn import functional as F

from textsam import TextSam
from textsam.checkpoints.adapters import ADAPTER_FILE, read_adapter, save_adapter
from textsam.checkpoints.loading import load_model
from textsam.deployment.onnx_export import export_onnx
from textsam.model import TextSamConfig
from textsam.modeling.dense_text import OUTSIDE, DenseText
from textsam.prompting.transforms import ImageGeometry, features_in_input
from train.readers import open_source
from train.run_recipe import samples_of
from train.sam_step import SamStep
from train.stores import CropPrompts, TensorStore
from train.text_prompt import PromptOptions, with_dense_form


class CountingTower(ColourWords):
    """Counts how often it looks at a photo."""

    looks = 0

    def dense(self, image: np.ndarray) -> Tensor:
        self.looks += 1
        return super().dense(image)


def photo() -> np.ndarray:
    """64 x 128 px, grey, with a red square at the left and a blue one at the right."""
    pixels = np.full((64, 128, 3), 128, np.uint8)
    pixels[16:48, 8:40] = (220, 20, 20)
    pixels[16:48, 88:120] = (20, 20, 220)
    return pixels


def predictor(**config: object) -> TextSam:
    model = tiny_model(clip_dim=4, text_trained=True, dense_text=True, **config)
    with torch.no_grad():
        model.dense_text.scale.fill_(3.0)
        model.dense_text.bias.fill_(-4.0)
    return TextSam(model, ColourWords(), CountingTower())


def test_what_counts_is_how_far_a_cell_stands_out() -> None:
    torch.manual_seed(0)
    part = DenseText()
    features = F.normalize(torch.randn(2, 8, 5, 6), dim=1)
    features[1, :, 3:] = 0
    texts = F.normalize(torch.randn(3, 8), dim=1)
    logits = part(features, texts[None])
    assert logits.shape == (2, 3, 5, 6)
    cosines = torch.einsum("dhw,qd->qhw", features[0], texts)
    expected = 3 * (cosines - cosines.mean((1, 2), keepdim=True)) / cosines.std((1, 2), keepdim=True, correction=0) - 4
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)
    # Padding is outside, and no part of the statistics.
    assert (logits[1, :, 3:] == OUTSIDE).all()
    torch.testing.assert_close(logits[1:, :, :3], part(features[1:, :, :3], texts[None]), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(part(torch.zeros(1, 8, 2, 2), texts[None])).all()


def test_features_lie_where_the_photo_lies() -> None:
    geometry = ImageGeometry.of((64, 128), 128)  # the lower half of the input is padding
    x = torch.linspace(-1, 1, 32).expand(16, 32)
    y = torch.linspace(-1, 1, 16)[:, None].expand(16, 32)
    found = features_in_input(torch.stack([x, y, torch.ones(16, 32)]), geometry, 16)
    assert found.shape == (1, 3, 8, 8)
    assert (found[:, :, 4:] == 0).all()
    torch.testing.assert_close(found[0, :, :4].norm(dim=0), torch.ones(4, 8))
    across, down = found[0, 0, :4] / found[0, 2, :4], found[0, 1, :4] / found[0, 2, :4]
    places = (torch.arange(8) + 0.5) / 8 * 2 - 1
    torch.testing.assert_close(across[0], places * 32 / 31, rtol=0, atol=0.01)
    torch.testing.assert_close(down[:, 0], ((torch.arange(4) + 0.5) / 4 * 2 - 1) * 16 / 15, rtol=0, atol=0.01)


def test_a_text_becomes_a_mask_prompt_and_says_where_to_ask() -> None:
    sam = predictor()
    sam.set_image(photo())
    assert sam.crop_encoder.looks == 0  # not before a text is asked for
    red = sam.predict(points=[[24, 32]], text="red", return_logits=True)
    encoded = sam._current_image()
    model = sam.network
    logits = model.text_similarity(encoded.embeddings, sam.text_encoder.encode(["red", "blue"]))
    assert logits.shape == (1, 2, 4, 4)  # cells of 32 px
    assert logits[0, 0, :2, 0].min() > 0 > logits[0, 0, :2, 2:].max()
    assert logits[0, 1, :2, 3].min() > logits[0, 1, :2, :3].max()
    assert (logits[0, :, 2:] == OUTSIDE).all()
    # The very mask that a user's mask prompt of these logits gives.
    given = F.interpolate(logits[:, :1], (32, 32), mode="bilinear")
    with torch.inference_mode():
        text = sam.text_encoder.encode(["red"])
        arguments = {"point_coords": torch.tensor([[[24.0, 32.0]]]), "point_labels": torch.tensor([[1]])}
        plain = replace(encoded.embeddings, similarity_features=None)
        by_hand = model.encode_prompts(plain, text_embeddings=text, mask_input=given, **arguments)
        own = model.encode_prompts(encoded.embeddings, text_embeddings=text, **arguments)
        sparse = model.encode_prompts(plain, text_embeddings=text, **arguments)
        torch.testing.assert_close(own.dense_prompt_embeddings, by_hand.dense_prompt_embeddings)
        assert (own.dense_prompt_embeddings - sparse.dense_prompt_embeddings).abs().max() > 1e-3
        former = model.encode_prompts(encoded.embeddings, text_embeddings=text, mask_input=-given, **arguments)
        other = model.encode_prompts(plain, text_embeddings=text, mask_input=-given, **arguments)
        torch.testing.assert_close(former.dense_prompt_embeddings, other.dense_prompt_embeddings)  # a user's mask wins
    assert len(red) == 1
    sam.predict(text=["red", "blue"], threshold=0.0)
    assert sam.presence(None, ["red", "green"]).shape == (2,)
    assert sam.crop_encoder.looks == 1
    assert sam.presence(photo()[:, ::-1].copy(), ["red"]).shape == (1,)
    assert sam.crop_encoder.looks == 2


def test_several_images_each_with_its_own_text() -> None:
    model = predictor().network
    torch.manual_seed(0)
    images = [model.encode_image(torch.randn(1, 3, 128, 128)) for _ in range(2)]
    features = F.normalize(torch.randn(2, 4, 4, 4), dim=1)
    both = replace(
        images[0],
        image_embeddings=torch.cat([image.image_embeddings for image in images]),
        similarity_features=features,
    )
    texts = F.normalize(torch.randn(3, 4), dim=1)
    index = torch.tensor([1, 0, 1])
    together = model.encode_prompts(both, text_embeddings=texts, image_index=index).dense_prompt_embeddings
    for row, image in enumerate(index.tolist()):
        alone = model.encode_prompts(both.select(image), text_embeddings=texts[row : row + 1])
        torch.testing.assert_close(together[row], alone.dense_prompt_embeddings[0], rtol=1e-4, atol=1e-5)


def test_nothing_changes_without_a_text() -> None:
    sam, plain = predictor(), TextSam(tiny_model(clip_dim=4, text_trained=True))
    state = sam.network.state_dict()
    plain.network.load_state_dict({name: value for name, value in state.items() if not name.startswith("dense_text.")})
    for prompts in ({"points": [[24, 32]]}, {"boxes": [8, 16, 40, 48]}):
        one, other = (each.predict(photo(), return_logits=True, **prompts) for each in (sam, plain))
        np.testing.assert_array_equal(one.data["low_res_logits"], other.data["low_res_logits"])
    assert sam.crop_encoder.looks == 0


def test_a_missing_or_foreign_tower_is_named(tmp_path: Path) -> None:
    model = predictor().network
    alone = TextSam(model, ColourWords())
    assert len(alone.predict(photo(), points=[[24, 32]])) == 1
    with pytest.raises(ValueError, match=r"Expected a crop encoder, got none: with dense_text .* textsam\.load"):
        alone.predict(photo(), text="red")
    tower = CountingTower()
    tower.embed_dim = 512  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="crop encoder of width 4, that of the model's CLIP, got 512"):
        TextSam(model, ColourWords(), tower).predict(photo(), text="red")
    with pytest.raises(ValueError, match="choose one of them"):
        TextSamConfig.tiny(dense_text=True)
    with pytest.raises(ValueError, match="dense_text cannot be exported"):
        export_onnx(alone, tmp_path)


@pytest.mark.parametrize("name", ["sam-vit-h-text", "sam-vit-b-text-small-gpu"])
def test_a_miniature_trains_and_its_adapter_carries_it(tmp_path: Path, name: str) -> None:
    data = write_coco(tmp_path / "data")
    recipe = replace(miniature(name, steps=6, clicks=1, lr=0.05), prompt=PromptOptions(dense=True))
    losses = run(recipe, data, tmp_path / "run")
    assert np.isfinite(losses).all()
    trained = load_model(tmp_path / "run" / "model", dtype="float32")
    assert trained.config.dense_text
    assert trained.dense_text.scale.item() != 3.0
    assert trained.dense_text.bias.item() != -4.0
    if name == "sam-vit-b-text-small-gpu":
        model_of().save_pretrained(tmp_path / "start")
        adapted = load_model(tmp_path / "start", adapter=tmp_path / "run" / "adapter", dtype="float32")
        assert adapted.config.dense_text
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in adapted.state_dict().items())


def test_training_sees_what_the_predictor_sees(tmp_path: Path) -> None:
    """The features of a picture in its training frame are those of its prediction; with kept embeddings, too."""
    recipe = miniature("sam-vit-b-text-small-gpu")
    sample = samples_of([open_source(str(write_coco(tmp_path / "data")))], recipe)[0]
    model, (_, tower) = with_dense_form(model_of(), True), clip_encoders()
    height, width = sample.valid_hw
    picture = sample.pixels[:, :height, :width].permute(1, 2, 0).numpy()
    predicts = TextSam(model.eval(), None, tower, image_size=64)
    model.config.text_trained = True
    predicts.set_image(picture)
    predicts._look(predicts._current_image())
    expected = predicts._current_image().embeddings.similarity_features
    for store in (None, TensorStore(tmp_path / "images")):
        step = SamStep(model, recipe.step, crops=CropPrompts(tower), image_store=store)
        torch.testing.assert_close(step.encode([sample]).similarity_features, expected)


def test_adapters_from_before_have_no_dense_form(tmp_path: Path) -> None:
    model = tiny_model(text_trained=True)
    file = save_adapter(model, tmp_path / "adapter")
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["textsam_adapter"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    del header["dense_text"]
    (tmp_path / "old").mkdir()
    save_file(tensors, tmp_path / "old" / ADAPTER_FILE, metadata={"textsam_adapter": json.dumps(header)})
    fields, _ = read_adapter(tmp_path / "old")
    assert fields["dense_text"] is False
