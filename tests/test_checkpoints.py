"""Every source that `textsam.load` takes but the Hub (test_hub.py), and devices and dtypes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    assert_same,
    meta_state_dict,
    outputs,
    tiny_model,
    unit_text,
)

from textsam.checkpoints import devices
from textsam.checkpoints.devices import resolve_device, resolve_dtype
from textsam.checkpoints.loading import load, load_model
from textsam.model import TextSamConfig, TextSamModel


@pytest.fixture
def model() -> Any:
    return tiny_model()


@pytest.fixture
def pth(tmp_path: Path, model: Any) -> Path:
    """Meta's layout under a name that lies about the size."""
    torch.save(meta_state_dict(model), tmp_path / "sam_vit_h_4b8939.pth")
    return tmp_path / "sam_vit_h_4b8939.pth"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of ours with a trained text prompt."""
    tiny_model(text_trained=True).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_pth_gives_the_same_masks(pth: Path, model: Any) -> None:
    loaded = load_model(pth, device="cpu", dtype="float32")
    assert_same(outputs(loaded), outputs(model))
    assert not loaded.config.text_trained
    again = load_model(pth, device="cpu", dtype="float32")
    for name in loaded.text_parameter_names():  # untrained, but finite and the same each time
        assert torch.isfinite(loaded.state_dict()[name]).all()
        assert torch.equal(loaded.state_dict()[name], again.state_dict()[name])


def test_pth_of_the_old_format_and_safetensors_in_metas_layout(tmp_path: Path, model: Any) -> None:
    state = meta_state_dict(model)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "meta.safetensors")
    for name in ("old.pth", "meta.safetensors"):
        assert_same(outputs(load_model(str(tmp_path / name), device="cpu", dtype="float32")), outputs(model))


def test_the_loaded_model_does_not_stand_on_its_file(pth: Path, model: Any) -> None:
    loaded = load_model(pth, device="cpu", dtype="float32")
    pth.write_bytes(bytes(pth.stat().st_size))
    assert_same(outputs(loaded), outputs(model))


@pytest.mark.parametrize("config", [{}, {"text_trained": True, "text_projection": "mlp"}])
def test_own_folder_round_trip(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModel

    saved = tiny_model(**config)
    saved.save_pretrained(tmp_path)
    text = unit_text()
    loaded = [
        load_model(tmp_path, device="cpu", dtype="float32"),
        load(str(tmp_path), device="cpu", dtype="float32").model,
        TextSamModel.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path),
    ]
    for model in loaded:
        assert_same(outputs(model, text_embeddings=text), outputs(saved, text_embeddings=text))
        assert not model.training
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded[2].config.to_dict()


def test_mobile_model_round_trip(tmp_path: Path) -> None:
    saved = TextSamModel(TextSamConfig.tiny(image_size=128, text_trained=True)).eval()
    saved.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="float32")
    text = unit_text(512)
    assert_same(outputs(loaded, text_embeddings=text), outputs(saved, text_embeddings=text))


def test_sharded_folder(tmp_path: Path, model: Any) -> None:
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same(outputs(load_model(tmp_path, device="cpu", dtype="float32")), outputs(model))
    min(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00001-of"):
        load_model(tmp_path)


def test_dtype_of_the_file_and_of_the_model(tmp_path: Path, model: Any) -> None:
    model.half().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["mask_decoder.iou_token.weight"].dtype == torch.float16
    for dtype in ("float32", torch.bfloat16, "torch.float16"):
        loaded = load_model(tmp_path, device="cpu", dtype=dtype)
        assert {t.dtype for t in loaded.state_dict().values()} == {loaded.dtype}
        assert loaded.dtype == resolve_dtype(dtype, torch.device("cpu"))
    assert_same(outputs(load_model(tmp_path, dtype="float32", device="cpu")), outputs(model.float()))


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(tmp_path: Path, model: Any, device_map: str) -> None:
    model.save_pretrained(tmp_path)
    mapped = TextSamModel.from_pretrained(tmp_path, device_map=device_map)
    assert_same([t.cpu() for t in outputs(mapped)], outputs(model))


def test_embedded_model_loads_quickly_and_ships_its_encoders(in_tmp: Path) -> None:
    (in_tmp / "textsam-tiny").mkdir()  # a folder of that name does not take its place
    load()  # imports
    start = time.process_time()
    embedded = load(device="cpu")
    assert time.process_time() - start < 2
    assert embedded.model.config.text_trained
    assert embedded.model.config.encoder_type == "mobile"
    assert load("textsam-tiny", device="cpu").model.config.to_dict() == embedded.model.config.to_dict()


def test_devices_and_dtypes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(folder, device="cpu").device == torch.device("cpu")
    for device in ("tpu!", "cuda:99", "cuda:-3", 3.5):
        with pytest.raises(ValueError, match=r"no device .* machine has .*cpu"):
            resolve_device(device)  # type: ignore[arg-type]
    for dtype in ("int8", "bf16", torch.int64, 32):
        with pytest.raises(ValueError, match="must be one of float32, bfloat16, float16"):
            load_model(folder, dtype=dtype)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "has_amx", lambda: True)
    assert [resolve_dtype(None, cpu, kind) for kind in ("vit", "mobile")] == [torch.bfloat16, torch.float32]
    monkeypatch.setattr(devices, "has_amx", lambda: False)
    assert resolve_dtype(None, cpu, "vit") == torch.float32


def test_devices_by_number_as_in_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device(-1) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(1) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="no device '2' here"):
        resolve_device(2)


def test_another_side(tiny_folder: Path) -> None:
    assert load(tiny_folder, device="cpu").image_size == 128
    sam = load(tiny_folder, device="cpu", image_size=96)
    sam.set_image(np.zeros((40, 60, 3), np.uint8))
    assert sam.predict(points=[[5, 5]], return_logits=True).data["low_res_logits"].shape == (1, 24, 24)
    with pytest.raises(ValueError, match=r"multiple of .*, got 100: use 96"):
        load(tiny_folder, device="cpu", image_size=100)
    with pytest.raises(TypeError, match="input side as a whole number of pixels, got '96'"):
        load(tiny_folder, device="cpu", image_size="96")  # type: ignore[arg-type]


def test_bfloat16_masks_are_near(folder: Path) -> None:
    exact, rounded = (outputs(load_model(folder, device="cpu", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert ((exact[0] > 0) == (rounded[0] > 0)).float().mean() > 0.95
