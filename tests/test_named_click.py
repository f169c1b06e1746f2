"""A click and a name, joined: what the part draws from, what it leaves alone, and its training in miniature."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import HashedWords, mobile_miniature
from PIL import Image
from safetensors.torch import save_file
from tiny_models import randomize
from torch import Tensor

import textsam
from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.named_click import MAPS
from textsam.predictor import TextSam
from textsam.prompting.text_options import TextPromptOptions
from train.named_click import Answers, NamedClickStep, main, with_named_click

WORDS = HashedWords()
CLICK_MAP = MAPS - 2


@pytest.fixture
def model() -> TextSamModel:
    """With a part that draws."""
    model = with_named_click(mobile_miniature(seed=2)).eval()
    randomize(model.named_click)
    return model


def ask(seed: int = 0, count: int = 3, side: int = 128) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "point_coords": side * torch.rand(count, 1, 2, generator=generator),
        "point_labels": torch.ones(count, 1, dtype=torch.int64),
        "text_embeddings": WORDS.encode([str(number) for number in range(count)]),
    }


def pictures(count: int = 1, height: int = 128, width: int = 128) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_it_starts_from_the_second_answer_and_sees_everything(model: TextSamModel) -> None:
    plain = mobile_miniature(seed=2)
    fresh, image, asked = with_named_click(plain).eval(), plain.encode_image(pictures()), ask()
    assert plain.ask_named_clicks(image, **asked).name is None  # which nobody would look at
    answers = fresh.ask_named_clicks(image, **asked)
    expected = plain.decode_named_clicks(image, **asked)
    limited = expected.low_res_logits.clamp(-15, 15)
    torch.testing.assert_close(fresh.decode_named_clicks(image, **asked).low_res_logits, limited)
    torch.testing.assert_close(expected.low_res_logits, answers.again.low_res_logits)
    torch.testing.assert_close(expected.presence_logits, answers.both.presence_logits)
    drawn = model.draw_named_clicks(image, answers)
    assert drawn.shape == (3, 1, 32, 32)
    assert (drawn - limited).abs().max() > 0.1

    def other(name: str) -> Tensor:
        answer = getattr(answers, name)
        worse = replace(answer, low_res_logits=-answer.low_res_logits)
        return model.draw_named_clicks(image, replace(answers, **{name: worse}))

    others = [other(name) for name in ("click", "name", "both")]
    promising = replace(answers.click, iou_predictions=answers.click.iou_predictions.flip(1))
    others.append(model.draw_named_clicks(image, replace(answers, click=promising)))
    assert answers.drawn is not None
    for channel in (0, 3):
        maps = answers.drawn.maps.clone()
        maps[:, channel] *= -1
        others.append(model.draw_named_clicks(image, replace(answers, drawn=replace(answers.drawn, maps=maps))))
    assert image.high_res_features is not None
    stride4, stride8 = image.high_res_features
    for changed in (
        replace(image, image_embeddings=-image.image_embeddings),
        replace(image, high_res_features=(-stride4, stride8)),
        replace(image, high_res_features=(stride4, -stride8)),
    ):
        others.append(model.draw_named_clicks(changed, answers))
    for each in others:
        assert (each - drawn).abs().max() > 1e-4
    for lacking in (replace(answers, drawn=None), replace(answers, name=None)):
        with pytest.raises(ValueError, match="one is missing"):
            model.draw_named_clicks(image, lacking)
    with pytest.raises(ValueError, match="high_res_skips"):
        model.draw_named_clicks(replace(image, high_res_features=None), answers)
    nothing = {name: value[:0] for name, value in asked.items()}
    assert model.decode_named_clicks(image, **nothing).low_res_logits.shape == (0, 1, 32, 32)


@torch.no_grad()
@pytest.mark.parametrize("order", [None, [1, 0, 1], [2, 0, 1]])
def test_every_prompt_has_its_own_picture(model: TextSamModel, order: list[int] | None) -> None:
    """Also of as many pictures as prompts, and in another order."""
    batch, asked = pictures(3), ask()
    image = model.encode_image(batch)
    index = None if order is None else torch.tensor(order)
    found = model.decode_named_clicks(image, **asked, image_index=index)
    for row, number in enumerate(order or [0, 1, 2]):
        alone = model.decode_named_clicks(
            model.encode_image(batch[number : number + 1]),
            **{name: value[row : row + 1] for name, value in asked.items()},
        )
        for one, each in zip(vars(found).values(), vars(alone).values(), strict=True):
            torch.testing.assert_close(one[row : row + 1], each, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 80), (48, 128), (16, 16)])
def test_inputs_of_any_shape(model: TextSamModel, size: tuple[int, int]) -> None:
    """Sides that its deepest level does not divide."""
    image = model.encode_image(pictures(1, *size))
    found = model.decode_named_clicks(image, **ask(side=16))
    assert found.low_res_logits.shape == (3, 1, size[0] // 4, size[1] // 4)
    assert found.low_res_logits.isfinite().all()


def test_gradients_flow_through_all_of_it(model: TextSamModel) -> None:
    image = model.encode_image(pictures())
    model.decode_named_clicks(image, **ask()).low_res_logits.sum().backward()
    for part in ("image_encoder.trunk.", "mask_decoder.transformer.", "prompt_encoder.text_projection", "named_click."):
        named = [p for name, p in model.named_parameters() if name.startswith(part)]
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in named), part


@torch.no_grad()
def test_in_bfloat16(model: TextSamModel) -> None:
    exact = model.decode_named_clicks(model.encode_image(pictures()), **ask()).low_res_logits
    model.bfloat16()
    found = model.decode_named_clicks(model.encode_image(pictures().bfloat16()), **ask()).low_res_logits
    assert ((found > 0) == (exact > 0)).float().mean() > 0.9


def test_only_one_click_with_a_name_is_joined(model: TextSamModel, cat_photo: np.ndarray) -> None:
    photo = cat_photo[:200, :300]
    joined, apart = (TextSam(model, WORDS, text_options=TextPromptOptions(join_clicks=each)) for each in (True, False))
    plain = TextSam(mobile_miniature(seed=2), WORDS)

    def logits(sam: TextSam, **prompts: object) -> np.ndarray:
        return sam.predict(photo, return_logits=True, threshold=0.0, **prompts).data["low_res_logits"]

    click = {"points": [[[30, 40]], [[90, 90]]]}
    named = logits(joined, **click, text=["cat", "dog"])
    assert np.abs(named - logits(apart, **click, text=["cat", "dog"])).max() > 0.1
    assert np.abs(named - logits(plain, **click, text=["cat", "dog"])).max() > 0.1
    others = [
        click,
        {"text": "cat"},
        click | {"text": "cat", "boxes": [[10, 20, 90, 80], [5, 5, 200, 190]]},
        click | {"text": "cat", "multimask_output": True},
        click | {"text": "cat", "point_labels": [[1], [0]]},
        {"text": "cat", "points": [[[30, 40], [60, 40]]]},
    ]
    for prompts in others:
        np.testing.assert_array_equal(logits(joined, **prompts), logits(apart, **prompts))
        np.testing.assert_array_equal(logits(joined, **prompts), logits(plain, **prompts))


def test_it_is_saved_and_declared(model: TextSamModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "whole")
    loaded = TextSamModel.from_pretrained(tmp_path / "whole").eval()
    asked = ask()
    with torch.no_grad():
        first, second = (each.decode_named_clicks(each.encode_image(pictures()), **asked) for each in (model, loaded))
    torch.testing.assert_close(first.low_res_logits, second.low_res_logits)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("named_click.out")}
    save_file(state, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"named_click\.out\.weight"):
        textsam.load(tmp_path / "whole")
    with pytest.raises(ValueError, match="named_click needs"):
        TextSamConfig(named_click=True)


@pytest.fixture
def data(tmp_path: Path, cat_photo: np.ndarray) -> Path:
    """One photo with two things in each of the sets that training knows."""
    photo = Image.fromarray(cat_photo[:200, :300])
    for name in ("voc", "coco", "ccp", "facade", "pennfudan", "balloon", "ecssd"):
        folder = tmp_path / "data" / name
        (folder / "images").mkdir(parents=True)
        photo.save(folder / "images" / "1.png")
        boxes = ((30, 20, 100, 90), (60, 110, 280, 180))
        annotations = [
            {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": (x2 - x1) * (y2 - y1), "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            for number, (x1, y1, x2, y2) in enumerate(boxes, start=1)
        ]  # fmt: skip
        images = [{"id": 1, "file_name": "1.png", "width": 300, "height": 200}]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        for file in ("train.json", "train_semantic.json"):
            (folder / file).write_text(json.dumps(content))
    return tmp_path / "data"


def test_training_in_miniature(data: Path, tmp_path: Path) -> None:
    names = np.array(["cat", "dog"])
    embeddings = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float16)
    sources = np.array(["coco", "coco"])
    np.savez(tmp_path / "names.npz", names=names, embeddings=embeddings, source=sources, prompts=names)
    arguments = ["--data", str(data), "--names", str(tmp_path / "names.npz"), "--out", str(tmp_path / "run")]
    arguments += ["--batch-size", "4", "--save-every", "1", "--lr", "1e-2", "--pictures", "3", "--instances", "2"]
    main([*arguments, "--steps", "8"])
    file = tmp_path / "run" / "answers" / "000000.safetensors"
    written = file.stat().st_mtime_ns
    trained = textsam.load(tmp_path / "run" / "model", dtype="float32")
    assert trained.text_encoder.encode(["cat"]).shape == (1, 512)
    fresh = with_named_click(textsam.load("textsam-tiny", dtype="float32").model)
    start = fresh.state_dict()
    changed = {name for name, value in trained.model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed
    assert all(name.startswith("named_click.") for name in changed)

    answers = Answers([file], 40, 0)
    asked = [answers[i] for i in range(40)]
    assert {each.maps.shape for each in asked} == {(MAPS, 112, 112)}
    assert all(each.mask.any() for each in asked)
    turned = asked[0].mirrored()
    assert torch.equal(turned.maps.flip(-1), asked[0].maps)
    assert torch.equal(turned.mask.flip(-1), asked[0].mask)
    for each in asked:  # the click lies in the thing
        assert each.mask.flatten()[each.maps[CLICK_MAP].argmax()] > 100

    def figures(model: TextSamModel) -> dict[str, float]:
        with torch.no_grad():
            results = NamedClickStep(model)(asked[:6], torch.Generator())
        return {name: float(value) for name, value in results.items()}

    before, after = figures(fresh), figures(trained.model)
    assert before["_after"] == before["_before"] == after["_before"]
    assert after["bce"] + after["iou"] < before["bce"] + before["iou"]
    main([*arguments, "--steps", "9", "--resume"])
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["step"] == 9
    assert file.stat().st_mtime_ns == written
