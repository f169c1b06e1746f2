"""Checkpoints that do not fit, are damaged or are hostile: one clear error each."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    meta_state_dict,
    tiny_model,
    tiny_transformers_sam,
    truncate,
    write,
)

from textsam.checkpoints.adapters import save_adapter
from textsam.checkpoints.loading import load_model


@pytest.fixture
def model() -> Any:
    return tiny_model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of ours with a trained text prompt."""
    tiny_model(text_trained=True).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


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


def save_torch(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def with_index(folder: Path, index: dict[str, Any]) -> Path:
    write(folder / "config.json", {"model_type": "textsam"})
    return write(folder / "model.safetensors.index.json", index).parent


Make = Callable[[Path], object]  # an empty folder -> the argument of load_model
BAD: dict[str, tuple[Make, type[Exception], str]] = {
    "unknown name": (lambda d: "vit_huge", ValueError, r"no model 'vit_huge'.*textsam-tiny, textsam-tiny-ocr, f"),
    "name of segment-anything": (lambda d: "vit_l", ValueError, "Did you mean 'facebook/sam-vit-large'"),
    "close name": (lambda d: "sam-vit-bas", ValueError, "Did you mean 'facebook/sam-vit-base'"),
    "empty name": (lambda d: "", ValueError, "Accepted are"),
    "absent .pth": (lambda d: "sam_vit_b_01ec64.pth", FileNotFoundError, "no file or folder 'sam_vit_b_01ec64.pth'"),
    "absent folder": (lambda d: str(d / "no" / "such"), FileNotFoundError, "no folder"),
    "absent Path": (lambda d: d / "none", FileNotFoundError, "no file or folder"),
    "empty folder": (lambda d: d, FileNotFoundError, "no config.json"),
    "config alone": (
        lambda d: write(d / "config.json", {"model_type": "textsam"}).parent,
        FileNotFoundError,
        "no weights",
    ),
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
    "LFS pointer": (
        lambda d: write(d / "a.safetensors", "version https://git-lfs.github.com"),
        ValueError,
        "git lfs pull",
    ),
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
    "another model": (
        lambda d: save_torch(d / "a.pth", {"conv.weight": torch.zeros(1)}),
        ValueError,
        "holds conv.weight",
    ),
    "empty state dict": (lambda d: save_torch(d / "a.pth", {}), ValueError, "holds nothing"),
    "odd axes": (
        lambda d: save_torch(d / "a.pth", meta_state_dict(tiny_model()) | {"image_encoder.pos_embed": torch.zeros(3)}),
        ValueError,
        r"image_encoder\.pos_embed, absent or of another shape",
    ),
    "shards elsewhere": (
        lambda d: with_index(d, {"weight_map": {"a": "../../secret.safetensors"}}),
        ValueError,
        "outside its own folder",
    ),
    "index with nonsense": (
        lambda d: with_index(d, {"weights": 3}),
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
    "our file without its folder": (  # with the sizes that a file of Meta's would have
        lambda d: [
            tiny_model(clip_dim=768, text_trained=True).save_pretrained(d),
            d / "model.safetensors",
        ][1],
        ValueError,
        "model of TextSAM; pass its folder",
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


def test_a_configuration_of_an_absurd_size_costs_no_memory(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path / "config.json", {**config, "image_size": 200_000})  # 20 GB of position embeddings
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError, match=r"pos_embed \(1, 8, 8, 32\) instead of \(1, 12500, 12500, 32\)"):
        load_model(tmp_path)
    assert psutil.Process().memory_info().rss - before < 1e9
