"""The real Hub client against a Hub on the loopback interface: downloads, refusals, pushes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_models import outputs, tiny_model, tiny_transformers_sam, transformers_outputs

from textsam.checkpoints.adapters import load_adapter, save_adapter
from textsam.checkpoints.hub import download, is_repo_id
from textsam.checkpoints.loading import load_model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub; the client of this process talks to it and caches in an empty folder."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def test_sam_of_transformers_layout(hub: HubServer, tmp_path: Path) -> None:
    sam = tiny_transformers_sam()
    sam.save_pretrained(tmp_path / "sam")
    (tmp_path / "sam" / "tf_model.h5").write_bytes(b"not wanted")
    (tmp_path / "sam" / "pytorch_model.bin").write_bytes(b"not wanted beside safetensors")
    hub.add_folder("facebook/sam-vit-base", tmp_path / "sam")
    ours = load_model("facebook/sam-vit-base", device="cpu", dtype="float32")
    for one, other in zip(outputs(ours), transformers_outputs(sam), strict=True):
        torch.testing.assert_close(one, other, rtol=5e-4, atol=5e-4)
    fetched = {line.rsplit("/", 1)[1] for line in hub.requests if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {"config.json", "model.safetensors"}


def test_sam_with_a_pytorch_file_only(hub: HubServer, tmp_path: Path) -> None:
    sam = tiny_transformers_sam()
    sam.config.save_pretrained(tmp_path / "sam")
    torch.save(sam.state_dict(), tmp_path / "sam" / "pytorch_model.bin")
    hub.add_folder("org/old", tmp_path / "sam")
    ours = load_model("org/old", device="cpu", dtype="float32")
    torch.testing.assert_close(outputs(ours)[0], transformers_outputs(sam)[0], rtol=5e-4, atol=5e-4)


def test_own_sharded_model_is_then_served_from_the_cache(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "own", max_shard_size="1MB")
    hub.add_folder("org/own", tmp_path / "own")
    assert torch.equal(outputs(load_model("org/own", device="cpu", dtype="float32"))[0], outputs(model)[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert torch.equal(outputs(load_model("org/own", device="cpu", dtype="float32"))[0], outputs(model)[0])
    assert hub.requests == []


def test_adapter_by_id(hub: HubServer, tmp_path: Path) -> None:
    trained = tiny_model(text_trained=True)
    save_adapter(trained, tmp_path / "adapter")
    hub.add_folder("org/words", tmp_path / "adapter")
    model = load_adapter(tiny_model(seed=1), "org/words")
    for name in trained.text_parameter_names():
        assert torch.equal(model.state_dict()[name], trained.state_dict()[name])
    with pytest.raises(ValueError, match="is an adapter, not a model"):
        load_model("org/words")
    hub.repos["org/empty"] = {"README.md": b"nothing"}
    with pytest.raises(FileNotFoundError, match=r"org/empty holds no text_adapter\.safetensors"):
        load_adapter(model, "org/empty")


def test_another_kind_of_model_is_refused_before_its_weights_come(hub: HubServer) -> None:
    hub.repos["org/bert"] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"gigabytes"}
    with pytest.raises(ValueError, match="org/bert is a model of type 'bert'"):
        load_model("org/bert")
    assert not any("safetensors" in line for line in hub.requests)


def test_checkpoint_with_missing_and_foreign_keys(hub: HubServer, tmp_path: Path) -> None:
    tiny_transformers_sam().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["vision_encoder.pos_embed"]
    save_file(state | {"vision_encoder.cls_token": torch.zeros(1)}, tmp_path / "model.safetensors")
    hub.add_folder("org/odd", tmp_path)
    with pytest.raises(ValueError, match=r"org/odd does not fit .* 1 missing: image_encoder\.pos_embed; 1 unexpected"):
        load_model("org/odd")


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        ("absent", FileNotFoundError, "org/model was not found.*no such folder here"),
        ("gated", PermissionError, "org/model is gated: accept its terms on http.*hf auth login"),
        ("forbidden", PermissionError, r"refused org/model \(403\)"),
        ("failing", ConnectionError, "answered 500 when asked for org/model"),
        ("cut", ConnectionError, "org/model could not be downloaded.*closed connection"),
        ("down", ConnectionError, "org/model could not be downloaded.*refused.*Check the network"),
        ("offline", ConnectionError, "org/model is not .* cache, and HF_HUB_OFFLINE forbids"),
    ],
)
def test_a_failed_download_says_why(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, trouble: str, kind: type[Exception], message: str
) -> None:
    if trouble != "absent":
        hub.repos["org/model"] = {"config.json": b'{"model_type": "sam"}' + b" " * 1000}
    if trouble == "gated":
        hub.gated.add("org/model")
    if trouble in ("forbidden", "failing"):
        hub.status["org/model"] = {"forbidden": 403, "failing": 500}[trouble]
    if trouble == "cut":
        hub.cut["org/model"] = 100
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between its retries
    if trouble == "down":
        hub.__exit__()
    if trouble == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(kind, match=message) as caught:
        load_model("org/model")
    assert caught.value.__cause__ is not None


def test_a_cut_download_leaves_nothing_that_looks_whole(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/model"] = {"config.json": b'{"model_type": "bert"}' + b" " * 1000}
    hub.cut["org/model"] = 30
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(ConnectionError):
        load_model("org/model")
    hub.cut.clear()
    assert (download("org/model", ["config.json"]) / "config.json").stat().st_size == 1022


def test_repo_ids() -> None:
    assert is_repo_id("facebook/sam-vit-base")
    for name in ("sam-vit-base", "a/b/c", "/etc/passwd", "../model", "./model", "org/", "a/..", "org/na me", "~/model"):
        assert not is_repo_id(name)


CLIENT = """
import sys, torch
import textsam
from textsam import TextSamModel
from textsam.checkpoints.loading import load_model
from tiny_models import outputs, tiny_model
from transformers import AutoConfig, AutoModel

assert load_model("org/sam", device="cpu", dtype="float32").config.encoder_width == 32
model = tiny_model(text_trained=True)
model.push_to_hub("org/pushed", token="hf_test")
for loaded in (
    load_model("org/pushed", device="cpu", dtype="float32"),
    TextSamModel.from_pretrained("org/pushed"),
    AutoModel.from_pretrained("org/pushed"),
):
    assert torch.equal(outputs(loaded)[0], outputs(model)[0])
assert AutoConfig.from_pretrained("org/pushed").text_trained
"""


def test_a_client_of_its_own_downloads_and_pushes(tmp_path: Path) -> None:
    """A fresh process that knows the Hub from HF_ENDPOINT alone, as users set it."""
    tiny_transformers_sam().save_pretrained(tmp_path / "sam")
    tests = Path(__file__).parent
    with HubServer() as hub:
        hub.add_folder("org/sam", tmp_path / "sam")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent), environment.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repos["org/pushed"])
