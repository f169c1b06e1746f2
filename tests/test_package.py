"""The folder that ships: a trained model, alone or averaged with what its training began with."""

import json
from pathlib import Path

import torch

import textsam
from textsam.model import TextSamConfig, TextSamModel
from train.package import package

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
