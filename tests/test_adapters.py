"""Adapters of the text prompt, and which encoders of words and crops a model gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    assert_same,
    meta_state_dict,
    outputs,
    tiny_model,
    truncate,
    unit_text,
    write,
)

from textsam.checkpoints.adapters import ADAPTER_FILE, load_adapter, read_adapter, save_adapter
from textsam.checkpoints.loading import load, load_model


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


def test_adapter_gives_a_sam_checkpoint_its_text_prompt(tmp_path: Path, pth: Path, model: Any) -> None:
    """The trained model has SAM's weights and text parameters; checkpoint + adapter is that model again."""
    model.config.update({"text_trained": True, "clip_name": "ViT-B-32"})
    file = save_adapter(model, tmp_path / "adapter")
    assert file.name == ADAPTER_FILE
    assert set(load_file(file)) == set(model.text_parameter_names())
    text = unit_text()
    expected = outputs(model, text_embeddings=text)
    loaded = load_model(pth, adapter=file.parent, device="cpu", dtype="float32")
    assert_same(outputs(loaded, text_embeddings=text), expected)
    assert (loaded.config.text_trained, loaded.config.clip_name, loaded.config.clip_dim) == (True, "ViT-B-32", 48)

    other = tiny_model(seed=5, clip_name="ViT-B-32")
    other.load_state_dict(meta_state_dict(model), strict=False)
    assert load_adapter(other, file) is other
    assert_same(outputs(other, text_embeddings=text), expected)
    assert other.config.text_trained


def test_adapter_replaces_another_one_of_another_form(tmp_path: Path, folder: Path) -> None:
    trained = tiny_model(seed=3, text_trained=True, text_projection="mlp", clip_dim=32)
    file = save_adapter(trained, tmp_path / "mlp.safetensors")
    loaded = load_model(folder, adapter=str(file), device="cpu", dtype="float32")
    assert (loaded.config.text_projection, loaded.config.clip_dim) == ("mlp", 32)
    for name in trained.text_parameter_names():
        assert torch.equal(loaded.state_dict()[name], trained.state_dict()[name])


def test_an_adapter_of_another_clip_is_not_read_by_the_encoders_of_the_model(tmp_path: Path) -> None:
    """textsam-tiny's own words would be taken for those of the CLIP that the adapter was trained with."""
    adapter = save_adapter(load_model("textsam-tiny", device="cpu"), tmp_path / "same")
    load("textsam-tiny", adapter=adapter, device="cpu")
    fields, tensors = read_adapter(adapter)
    header = {"textsam_adapter": json.dumps({**fields, "clip_name": "ViT-B-16"})}
    save_file(tensors, tmp_path / "other.safetensors", header)
    with pytest.raises(ValueError, match=r"'ViT-B-16'.* but textsam-tiny speaks .*'ViT-B-32'"):
        load("textsam-tiny", adapter=tmp_path / "other.safetensors", device="cpu")


def test_bad_adapters(tmp_path: Path, model: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="untrained, so there is nothing to save"):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError, match=r"no adapter 'none\.safetensors'"):
        load_adapter(model, "none.safetensors")
    with pytest.raises(FileNotFoundError, match=ADAPTER_FILE):
        load_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="is not an adapter"):
        load_adapter(model, folder / "model.safetensors")

    file = save_adapter(tiny_model(text_trained=True, clip_dim=32), tmp_path / "narrow.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="clip_dim 32, this model 48"):
        load_adapter(model, file)
    for name, value in {"clip_name": "ViT-B-32", "clip_pretrained": None, "clip_template": "a {}"}.items():
        other = save_adapter(tiny_model(text_trained=True, **{name: value}), tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=rf"has {name} .*, this model .*textsam\.load\(\.\.\., adapter="):
            load_adapter(model, other)  # its encoders would be those of the old CLIP
    tensors = load_file(file)
    header = {"textsam_adapter": json.dumps(read_adapter(file)[0] | {"clip_dim": 48})}
    save_file(tensors, file, metadata=header)
    with pytest.raises(ValueError, match=r"wrong shape: .*text_projection\.weight \(256, 32\) instead of \(256, 48\)"):
        load_adapter(model, file)
    save_file(tensors, file, metadata={"textsam_adapter": '{"clip_name": 3}'})
    with pytest.raises(ValueError, match="does not name its CLIP"):
        load_adapter(model, file)
    truncate(file)
    with pytest.raises(ValueError, match="truncated"):
        load_adapter(model, file)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.config.text_trained


@pytest.fixture
def tiny_clip(tmp_path: Path) -> str:
    """The name of a random CLIP of width 48 in open_clip's own layout."""
    import open_clip

    sizes = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    write(tmp_path / "clip" / "open_clip_config.json", {"model_cfg": sizes, "preprocess_cfg": {}})
    save_file(open_clip.CLIP(**sizes).state_dict(), tmp_path / "clip" / "open_clip_model.safetensors")
    return f"local-dir:{tmp_path / 'clip'}"


def test_the_clip_of_the_configuration_is_made_when_it_is_needed(tmp_path: Path, tiny_clip: str) -> None:
    tiny_model(clip_name=tiny_clip, clip_pretrained=None, clip_template="a {}").save_pretrained(tmp_path / "own")
    elsewhere = (tmp_path / "clip").rename(tmp_path / "away")
    loaded = load(tmp_path / "own", device="cpu")  # no CLIP is there yet
    with pytest.raises(OSError, match="CLIP"):
        _ = loaded.text_encoder
    elsewhere.rename(tmp_path / "clip")
    assert loaded.text_encoder.encode(["cat"]).shape == (1, 48)
    assert loaded.text_encoder.template == "a {}"
    assert loaded.crop_encoder.model is loaded.text_encoder.model


def test_clip_asked_for_by_name(pth: Path, folder: Path, tiny_clip: str, caplog: pytest.LogCaptureFixture) -> None:
    ranking = load(pth, clip=tiny_clip, device="cpu", dtype="float32")
    assert ranking.text_encoder.embed_dim == ranking.crop_encoder.embed_dim == ranking.model.config.clip_dim == 48
    assert (ranking.model.config.clip_name, ranking.model.config.clip_pretrained) == (tiny_clip, None)
    assert not ranking.model.config.text_trained
    assert caplog.records == []
    # The trained prompt of `folder` is of the same width by accident: it loads, with a warning.
    assert load(folder, clip=tiny_clip, device="cpu").model.config.clip_name == "ViT-L-14-336"
    assert "was trained for ViT-L-14-336:openai" in caplog.text


def test_clip_of_another_width(tmp_path: Path, tiny_clip: str) -> None:
    tiny_model(text_trained=True, clip_dim=32).save_pretrained(tmp_path / "trained")
    with pytest.raises(
        ValueError, match=r"has width 48, but the model was trained for ViT-L-14-336:openai of width 32"
    ):
        load(tmp_path / "trained", clip=tiny_clip)
    tiny_model(clip_dim=32).save_pretrained(tmp_path / "untrained")
    assert load(tmp_path / "untrained", clip=tiny_clip).model.config.clip_dim == 48
    with pytest.raises(ValueError, match="no model 'ViT-B-23'"):
        load(tmp_path / "untrained", clip="ViT-B-23:openai")


def test_a_folder_may_carry_small_encoders_of_its_own(tmp_path: Path) -> None:
    from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder
    from textsam.language.vocabulary import Vocabulary

    tiny_model(text_trained=True, clip_dim=512).save_pretrained(tmp_path)
    text_encoder = SmallTextEncoder(Vocabulary(["cat"]))
    text_encoder.save_pretrained(tmp_path / "text_encoder", dtype=torch.float32)
    SmallCropEncoder().save_pretrained(tmp_path / "crop_encoder")
    loaded = load(tmp_path, device="cpu")
    torch.testing.assert_close(loaded.text_encoder.encode(["cat"]), text_encoder.encode(["cat"]))
    assert isinstance(loaded.crop_encoder, SmallCropEncoder)
