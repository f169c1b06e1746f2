"""Checkpoints: conversion, every source that `textsam.load` takes but the Hub (see test_hub.py), and bad ones."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import outputs, tiny_model, tiny_transformers_sam, transformers_outputs
from torch import Tensor

from textsam import checkpoints
from textsam.adapters import ADAPTER_FILE, load_adapter, read_adapter, save_adapter
from textsam.checkpoints import load, load_model, resolve_device, resolve_dtype
from textsam.config import TextSamConfig
from textsam.conversion import config_from_state_dict, config_from_transformers, convert_transformers_state_dict
from textsam.model import TextSamModel

SIZES = {"b": TextSamConfig.sam_vit_b, "l": TextSamConfig.sam_vit_l, "h": TextSamConfig.sam_vit_h}


def meta_state_dict(model: Any) -> dict[str, Tensor]:
    """What one of Meta's .pth files would hold: all but the text parameters."""
    own = set(model.text_parameter_names())
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in own}


def assert_same(first: list[Tensor], second: list[Tensor], **tolerance: float) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


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


# -- conversion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [{}, {"iou_head_depth": 5, "iou_head_hidden_dim": 48}, {"num_multimask_outputs": 4}])
def test_conversion_covers_every_name_and_shape(decoder: dict[str, int]) -> None:
    sam = tiny_transformers_sam(**decoder)
    config = config_from_transformers(sam.config.to_dict())
    converted = convert_transformers_state_dict(sam.state_dict(), config)
    ours = meta_state_dict(TextSamModel(config))
    assert {name: t.shape for name, t in converted.items()} == {name: t.shape for name, t in ours.items()}
    # The positional matrix is the only tensor that transformers holds twice.
    assert len(sam.state_dict()) == len(converted) + 1
    assert config_from_state_dict(converted).to_dict() == config.to_dict()


@pytest.mark.parametrize("shared", ["shared_image_embedding", "prompt_encoder.shared_embedding"])
def test_conversion_takes_the_positional_matrix_from_either_name(shared: str) -> None:
    sam = tiny_transformers_sam()
    config = config_from_transformers(sam.config.to_dict())
    state = {
        name: tensor
        for name, tensor in sam.state_dict().items()
        if not name.endswith("positional_embedding") or name.startswith(shared)
    }
    converted = convert_transformers_state_dict(state, config)
    matrix = converted["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert torch.equal(matrix, sam.shared_image_embedding.positional_embedding)


def test_conversion_refuses_two_different_positional_matrices() -> None:
    sam = tiny_transformers_sam()
    state = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    state["shared_image_embedding.positional_embedding"] += 1
    with pytest.raises(ValueError, match="two different values"):
        convert_transformers_state_dict(state, config_from_transformers(sam.config.to_dict()))


@pytest.mark.parametrize("size", SIZES)
def test_released_sizes_are_read_from_shapes_and_from_transformers_configs(size: str) -> None:
    from transformers import SamConfig

    expected = SIZES[size]()
    with torch.device("meta"):
        assert config_from_state_dict(TextSamModel(expected).state_dict()).to_dict() == expected.to_dict()
    vision = {
        "hidden_size": expected.encoder_width,
        "num_hidden_layers": expected.encoder_depth,
        "num_attention_heads": expected.encoder_heads,
        "global_attn_indexes": list(expected.global_attn_indexes),
    }
    # Both the whole file that transformers writes and the short one of the Hub, whose gaps are the defaults.
    for written in (SamConfig(vision_config=vision).to_dict(), {"model_type": "sam", "vision_config": vision}):
        assert config_from_transformers(written).to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "use_rel_pos", False),
        ("vision_config", "num_pos_feats", 64),
        ("vision_config", "image_size", [128, 256]),
        ("prompt_encoder_config", "image_size", 256),
        ("mask_decoder_config", "hidden_act", "gelu"),
    ],
)
def test_a_sam_variant_that_is_not_built_is_refused(section: str, key: str, value: Any) -> None:
    config = tiny_transformers_sam().config.to_dict()
    config[section][key] = value
    with pytest.raises(ValueError, match=key):
        config_from_transformers(config)


def test_transformers_folder_gives_transformers_masks(tmp_path: Path) -> None:
    sam = tiny_transformers_sam()
    sam.save_pretrained(tmp_path / "sam")
    ours = load_model(tmp_path / "sam", device="cpu", dtype="float32")
    # The decoder's LayerNorm has eps 1e-5 in the original, which ours follows, and 1e-6 in transformers.
    assert_same(outputs(ours), transformers_outputs(sam), rtol=5e-4, atol=5e-4)
    assert not ours.config.text_trained


# -- sources ----------------------------------------------------------------------------------------------------------


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
    text = torch.nn.functional.normalize(torch.randn(2, saved.config.clip_dim), dim=-1)
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
    from textsam.config import TextSamConfig

    saved = TextSamModel(TextSamConfig.tiny(image_size=128, text_trained=True)).eval()
    saved.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="float32")
    text = torch.nn.functional.normalize(torch.randn(2, 512), dim=-1)
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


def test_embedded_model_loads_quickly_and_ships_its_encoders() -> None:
    load()  # imports
    start = time.perf_counter()
    embedded = load(device="cpu")
    assert time.perf_counter() - start < 2
    assert embedded.model.config.text_trained
    assert embedded.model.config.encoder_type == "mobile"
    assert load("textsam-tiny", device="cpu").model.config.to_dict() == embedded.model.config.to_dict()


# -- strictness -------------------------------------------------------------------------------------------------------


def test_all_that_does_not_fit_is_listed_at_once(tmp_path: Path, model: Any) -> None:
    state = meta_state_dict(model)
    for name in [name for name in state if ".mlp." in name and "blocks.1" in name]:
        del state[name]
    state["mask_decoder.iou_token.weight"] = torch.zeros(2, 256)
    state |= {f"teacher.layer{i}": torch.zeros(1) for i in range(12)}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth does not fit") as caught:
        load_model(tmp_path / "odd.pth")
    message = str(caught.value)
    assert "4 missing: image_encoder.blocks.1.mlp.lin1.weight" in message
    assert "12 unexpected: teacher.layer0" in message
    assert "teacher.layer9 and 2 more" in message
    assert "1 of a wrong shape: mask_decoder.iou_token.weight (2, 256) instead of (1, 256)" in message


def test_text_parameters_may_be_missing_only_where_text_is_untrained(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["prompt_encoder.text_embed.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: prompt_encoder\.text_embed\.weight"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text()) | {"text_trained": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert not load_model(folder).config.text_trained


class Payload:
    """Unpickled without care, it makes the folder `bait`."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.bait),)


@pytest.mark.parametrize("container", ["zip", "legacy", "plain pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, container: str) -> None:
    bait, file = tmp_path / "bait", tmp_path / "sam_vit_b.pth"
    content = {"image_encoder.pos_embed": Payload(bait)}
    if container == "plain pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(ValueError, match="refused, and nothing of it was run"):
        load_model(file)
    assert not bait.exists()


def truncate(path: Path, keep: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def write(path: Path, content: str | bytes | dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def save_torch(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


Make = Callable[[Path], object]  # an empty folder -> the argument of load_model
BAD: dict[str, tuple[Make, type[Exception], str]] = {
    "unknown name": (lambda d: "vit_huge", ValueError, r"no model 'vit_huge'.*textsam-tiny, facebook/sam-vit-base"),
    "close name": (lambda d: "sam-vit-bas", ValueError, "Did you mean 'facebook/sam-vit-base'"),
    "empty name": (lambda d: "", ValueError, "Accepted are"),
    "absent .pth": (lambda d: "sam_vit_b_01ec64.pth", FileNotFoundError, "no file or folder 'sam_vit_b_01ec64.pth'"),
    "absent folder": (lambda d: str(d / "no" / "such"), FileNotFoundError, "no folder"),
    "absent Path": (lambda d: d / "none", FileNotFoundError, "no file or folder"),
    "empty folder": (lambda d: d, FileNotFoundError, "no config.json"),
    "config alone": (lambda d: write(d / "config.json", {"model_type": "textsam"}).parent, FileNotFoundError, "no weights"),
    "config not JSON": (lambda d: write(d / "config.json", "{").parent, ValueError, "is not JSON"),
    "config not UTF-8": (lambda d: write(d / "config.json", b"\xff\xfe{").parent, ValueError, "is not JSON"),
    "config a list": (lambda d: write(d / "config.json", "[]").parent, ValueError, "type None"),
    "config of BERT": (lambda d: write(d / "config.json", {"model_type": "bert"}).parent, ValueError, "type 'bert'"),
    "config of SAM 2": (lambda d: write(d / "config.json", {"model_type": "sam2"}).parent, ValueError, "Accepted are"),
    "config with nonsense": (
        lambda d: write(d / "config.json", {"model_type": "textsam", "encoder_type": "resnet"}).parent,
        ValueError,
        "encoder_type must be",
    ),
    "config of SAM with nonsense": (
        lambda d: write(d / "config.json", {"model_type": "sam", "vision_config": {"hidden_size": "wide"}}).parent,
        ValueError,
        "does not describe a model",
    ),
    "empty .pth": (lambda d: write(d / "a.pth", b""), ValueError, "truncated or is not"),
    "text as .pth": (lambda d: write(d / "a.pth", b"<html>404</html>"), ValueError, "refused.*damaged"),
    "LFS pointer": (lambda d: write(d / "a.safetensors", "version https://git-lfs.github.com"), ValueError, "git lfs pull"),
    "text as safetensors": (lambda d: write(d / "a.safetensors", "<html>404</html>"), ValueError, "not a safetensors"),
    "truncated .pth": (
        lambda d: truncate(save_torch(d / "a.pth", {"weight": torch.zeros(1000)})),
        ValueError,
        "truncated or is not",
    ),
    "wrapped state dict": (
        lambda d: save_torch(d / "a.pth", {"model": {"weight": torch.zeros(1)}, "epoch": 3}),
        ValueError,
        "holds a dict of 'model', 'epoch'",
    ),
    "a tensor alone": (lambda d: save_torch(d / "a.pth", torch.zeros(3)), ValueError, "but holds Tensor"),
    "another model": (lambda d: save_torch(d / "a.pth", {"conv.weight": torch.zeros(1)}), ValueError, "holds conv.weight"),
    "empty state dict": (lambda d: save_torch(d / "a.pth", {}), ValueError, "holds nothing"),
    "odd axes": (
        lambda d: save_torch(d / "a.pth", meta_state_dict(tiny_model()) | {"image_encoder.pos_embed": torch.zeros(3)}),
        ValueError,
        r"image_encoder\.pos_embed, absent or of another shape",
    ),
    "shards elsewhere": (
        lambda d: [
            write(d / "config.json", {"model_type": "textsam"}),
            write(d / "model.safetensors.index.json", {"weight_map": {"a": "../../secret.safetensors"}}),
        ][0].parent,
        ValueError,
        "outside its own folder",
    ),
    "index with nonsense": (
        lambda d: [
            write(d / "config.json", {"model_type": "textsam"}),
            write(d / "model.safetensors.index.json", {"weights": 3}),
        ][0].parent,
        ValueError,
        "not an index of shards",
    ),
    "transformers' file without its folder": (
        lambda d: [
            tiny_transformers_sam().save_pretrained(d),
            d / "model.safetensors",
        ][1],
        ValueError,
        "pass its folder",
    ),
    "an adapter as model": (
        lambda d: save_adapter(tiny_model(text_trained=True), d).parent,
        ValueError,
        "is an adapter, not a model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints(in_tmp: Path, case: str) -> None:
    make, kind, message = BAD[case]
    argument = make(in_tmp)
    with pytest.raises(kind, match=message):
        load_model(argument)  # type: ignore[arg-type]


def test_truncated_safetensors(folder: Path) -> None:
    for keep in (0.9, 0.001, 0):
        truncate(folder / "model.safetensors", keep)
        with pytest.raises(ValueError, match="truncated"):
            load_model(folder)


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_adapter_gives_a_sam_checkpoint_its_text_prompt(tmp_path: Path, pth: Path, model: Any) -> None:
    """The trained model has SAM's weights and text parameters; checkpoint + adapter is that model again."""
    model.config.update({"text_trained": True, "clip_name": "ViT-B-32"})
    file = save_adapter(model, tmp_path / "adapter")
    assert file.name == ADAPTER_FILE
    assert set(load_file(file)) == set(model.text_parameter_names())
    text = torch.nn.functional.normalize(torch.randn(2, 48), dim=-1)
    expected = outputs(model, text_embeddings=text)
    loaded = load_model(pth, adapter=file.parent, device="cpu", dtype="float32")
    assert_same(outputs(loaded, text_embeddings=text), expected)
    assert (loaded.config.text_trained, loaded.config.clip_name, loaded.config.clip_dim) == (True, "ViT-B-32", 48)

    other = tiny_model(seed=5)
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


def test_bad_adapters(tmp_path: Path, model: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="untrained, so there is nothing to save"):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError, match="no adapter 'none.safetensors'"):
        load_adapter(model, "none.safetensors")
    with pytest.raises(FileNotFoundError, match=ADAPTER_FILE):
        load_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="is not an adapter"):
        load_adapter(model, folder / "model.safetensors")

    file = save_adapter(tiny_model(text_trained=True, clip_dim=32), tmp_path / "narrow.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="clip_dim 32, this model 48"):
        load_adapter(model, file)
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


# -- encoders of words and crops --------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"has width 48, but .*trained was trained for ViT-L-14-336:openai of width 32"):
        load(tmp_path / "trained", clip=tiny_clip)
    tiny_model(clip_dim=32).save_pretrained(tmp_path / "untrained")
    assert load(tmp_path / "untrained", clip=tiny_clip).model.config.clip_dim == 48
    with pytest.raises(ValueError, match="no model 'ViT-B-23'"):
        load(tmp_path / "untrained", clip="ViT-B-23:openai")


def test_a_folder_may_carry_small_encoders_of_its_own(tmp_path: Path) -> None:
    from textsam.small_clip import SmallCropEncoder, SmallTextEncoder
    from textsam.vocabulary import Vocabulary

    tiny_model(text_trained=True, clip_dim=512).save_pretrained(tmp_path)
    text_encoder = SmallTextEncoder(Vocabulary(["cat"]))
    text_encoder.save_pretrained(tmp_path / "text_encoder", dtype=torch.float32)
    SmallCropEncoder().save_pretrained(tmp_path / "crop_encoder")
    loaded = load(tmp_path, device="cpu")
    torch.testing.assert_close(loaded.text_encoder.encode(["cat"]), text_encoder.encode(["cat"]))
    assert isinstance(loaded.crop_encoder, SmallCropEncoder)


# -- device, dtype ----------------------------------------------------------------------------------------------------


def test_devices_and_dtypes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(folder, device="cpu").device == torch.device("cpu")
    for device in ("tpu!", "cuda:99", "cuda:-3", 3.5):
        with pytest.raises(ValueError, match=r"no device .* machine has .*cpu"):
            resolve_device(device)  # type: ignore[arg-type]
    for dtype in ("int8", "bf16", torch.int64, 32):
        with pytest.raises(ValueError, match="must be one of float32, bfloat16, float16"):
            load_model(folder, dtype=dtype)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    monkeypatch.setattr(checkpoints, "_has_amx", lambda: True)
    assert [resolve_dtype(None, cpu, kind) for kind in ("vit", "mobile")] == [torch.bfloat16, torch.float32]
    monkeypatch.setattr(checkpoints, "_has_amx", lambda: False)
    assert resolve_dtype(None, cpu, "vit") == torch.float32


def test_bfloat16_masks_are_near(folder: Path) -> None:
    exact, rounded = (outputs(load_model(folder, device="cpu", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert ((exact[0] > 0) == (rounded[0] > 0)).float().mean() > 0.95
