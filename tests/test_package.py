"""The folder that ships: a trained model, alone or averaged with what its training began with."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import textsam
from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.mobile_encoder import MobileNetV2
from train.package import package
from train.rounding import round_to_bfloat16, round_trunk

WEIGHTS = Path(textsam.__file__).parent / "weights/textsam-tiny"


def test_weights_between_two_models(tmp_path: Path) -> None:
    models = []
    for seed, name in enumerate(("before", "after")):
        torch.manual_seed(seed)
        models.append(TextSamModel(TextSamConfig.tiny(text_trained=True)))
        models[-1].save_pretrained(tmp_path / name)
        (tmp_path / name / "training.json").write_text(json.dumps({"step": seed}))
    encoders = WEIGHTS / "text_encoder", WEIGHTS / "crop_encoder"
    between, alone = tmp_path / "between", tmp_path / "alone"
    package(tmp_path / "after", *encoders, between, 448, tmp_path / "before", 0.75)
    package(tmp_path / "after", *encoders, alone)
    before, after = (model.state_dict() for model in models)
    for folder, share in ((between, 0.75), (alone, 1.0)):
        for name, value in textsam.load(folder, dtype="float32", device="cpu").model.state_dict().items():
            expected = share * after[name] + (1 - share) * before[name]
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)  # stored in float16
    assert json.loads((between / "config.json").read_text())["image_size"] == 448
    assert json.loads((between / "training.json").read_text())["step"] == 1


def held_by_bfloat16(x: Tensor) -> bool:
    return torch.equal(x, x.bfloat16().to(x.dtype))


def test_rounding_errors_cancel() -> None:
    """Inputs side by side are nearly alike, as pixels are; the last one is the bias's."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 1, generator=generator) + 0.05 * torch.randn(400, 10, generator=generator)
    inputs = torch.cat([inputs, torch.ones(400, 1)], dim=1).double()
    weights = 3 * torch.randn(32, 11, generator=generator).double()
    nearest, found = weights.bfloat16().double(), round_to_bfloat16(weights, (inputs.T @ inputs)[None])
    assert held_by_bfloat16(found)
    assert float((found - weights).abs().max()) <= 2 * float((nearest - weights).abs().max())
    error, before = (((each - weights) @ inputs.T).norm(dim=1) for each in (found, nearest))
    assert bool((error <= before).all())
    assert float(error.mean()) < 0.4 * float(before.mean())
    assert torch.equal(round_to_bfloat16(nearest, (inputs.T @ inputs)[None]), nearest)


@torch.no_grad()
def test_a_rounded_trunk_sees_what_it_saw(cat_photo: np.ndarray) -> None:
    model = textsam.load("textsam-tiny", dtype="float32", device="cpu").model
    exact: MobileNetV2 = copy.deepcopy(model.image_encoder.trunk)
    for parameter in exact.parameters():
        parameter.mul_(1.001)  # which no longer is what bfloat16 holds
    crops = [cat_photo[:192, x : x + 192] for x in (0, 120, 240)]
    photos = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 127.5 - 1
    nearest, rounded, lines = copy.deepcopy(exact).bfloat16().float(), copy.deepcopy(exact), list[str]()
    round_trunk(rounded, photos[:2], lines.append)
    assert all(held_by_bfloat16(parameter) for parameter in rounded.parameters())
    assert len(lines) == 1 + 2 + 3 * 16
    true = exact.forward_features(photos[2:])  # another part of the photo
    for stride, expected in true.items():
        error, before = (float((t.forward_features(photos[2:])[stride] - expected).norm()) for t in (rounded, nearest))
        assert error < 0.5 * before


def test_a_model_packaged_for_photos_is_the_same_in_bfloat16(cat_photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(cat_photo[:160, :160]).save(tmp_path / "cat.png")
    image = {"id": 1, "file_name": "cat.png", "width": 160, "height": 160}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 90, 90], "area": 8100, "iscrowd": 0}
    outline = {"segmentation": [[8, 8, 98, 8, 98, 98, 8, 98]]}
    content = {"images": [image], "annotations": [box | outline], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    encoders = WEIGHTS / "text_encoder", WEIGHTS / "crop_encoder"
    package(WEIGHTS, *encoders, tmp_path / "out", 160, photos=[tmp_path / "train.json"])
    full, half = (textsam.load(tmp_path / "out", dtype=dtype, device="cpu").model for dtype in ("float32", "bfloat16"))
    for name, value in full.state_dict().items():
        assert torch.equal(value, half.state_dict()[name].float()), name


def test_the_embedded_weights_are_the_same_in_bfloat16() -> None:
    full, half = (textsam.load("textsam-tiny", dtype=dtype, device="cpu").model for dtype in ("float32", "bfloat16"))
    for name, value in full.state_dict().items():
        assert torch.equal(value, half.state_dict()[name].float()), name
