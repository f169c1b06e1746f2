"""The real Hub client against a Hub on the loopback interface: downloads, refusals, pushes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_models import outputs, tiny_model, tiny_transformers_sam, transformers_outputs

import textsam
from textsam.checkpoints.adapters import load_adapter, save_adapter
from textsam.checkpoints.hub import download, is_repo_id
from textsam.checkpoints.loading import load_model


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


def test_revision_cache_dir_and_local_files_only(hub: HubServer, tmp_path: Path) -> None:
    """A tag keeps its files when the branch goes on; a cache of one's own serves without asking the Hub."""
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    hub.add_folder("org/own", tmp_path / "first")
    hub.tags["org/own", "v1"] = hub.repos["org/own"]
    hub.add_folder("org/own", tmp_path / "second")
    options = {"device": "cpu", "dtype": "float32", "cache_dir": tmp_path / "elsewhere"}
    for revision, model in ((None, second), ("v1", first), (hub.commit_hash(hub.tags["org/own", "v1"]), first)):
        loaded = load_model("org/own", revision=revision, **options)
        assert torch.equal(outputs(loaded)[0], outputs(model)[0])
    assert not (tmp_path / "cache").exists()
    hub.requests.clear()
    loaded = load_model("org/own", revision="v1", local_files_only=True, **options)
    assert torch.equal(outputs(loaded)[0], outputs(first)[0])
    assert hub.requests == []
    with pytest.raises(ConnectionError, match=r"org/own is not \(wholly\) in the local cache, and local_files_only"):
        load_model("org/own", local_files_only=True)  # the client's own cache is empty
    with pytest.raises(FileNotFoundError, match="org/own has no branch, tag or commit 'v2'"):
        load_model("org/own", revision="v2")


def test_adapter_at_a_revision(hub: HubServer, tmp_path: Path) -> None:
    for seed, name in ((1, "old"), (2, "new")):
        save_adapter(tiny_model(seed=seed, text_trained=True), tmp_path / name)
        hub.add_folder("org/words", tmp_path / name)
        hub.tags["org/words", name] = hub.repos["org/words"]
    tiny_model().save_pretrained(tmp_path / "base")
    for asked, seed in (("org/words@old", 1), ("org/words@new", 2), ("org/words", 2)):
        model = load_model(tmp_path / "base", adapter=asked, device="cpu", dtype="float32")
        weight = tiny_model(seed=seed).prompt_encoder.text_projection.weight
        assert torch.equal(model.prompt_encoder.text_projection.weight, weight)


def test_push_a_model_with_its_card(
    hub: HubServer, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All that the model needs goes along, and a fresh load finds the same things in a picture."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    sam = textsam.load(tiny_folder, device="cpu", dtype="float32")
    record = {"step": 900, "seconds": 2960, "options": {"lr": 0.0015, "frozen": ["a.", "b."]}}
    path = tmp_path / "training.json"
    path.write_text(json.dumps(record))
    address = textsam.push_to_hub(sam, "org/pushed", training=path)
    assert address == f"{hub.endpoint}/org/pushed"
    files = hub.repos["org/pushed"]
    assert {"config.json", "model.safetensors", "text_encoder/vocabulary.json", "crop_encoder/config.json"} <= set(
        files
    )
    assert json.loads(files["training.json"]) == record
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: textsam\nlicense: apache-2.0\n")
    for line in ('textsam.load("org/pushed")', "| step | 900 |", "| lr | 0.0015 |", '| frozen | ["a.", "b."] |'):
        assert line in card
    again = textsam.load("org/pushed", device="cpu", dtype="float32")
    photo = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    one, other = (each.predict(photo, boxes=[10, 10, 90, 70], text="cat") for each in (sam, again))
    assert np.array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-3)  # its text encoder is stored in float16


def test_a_model_saved_here_keeps_its_words(tiny_folder: Path, tmp_path: Path) -> None:
    sam = textsam.load(tiny_folder, device="cpu", dtype="float32")
    (tmp_path / "extra_names.safetensors").touch()  # of a model that lay here before
    sam.save_pretrained(tmp_path)
    again = textsam.load(tmp_path, device="cpu", dtype="float32")
    photo = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    one, other = (each.predict(photo, text="cat", threshold=0.0) for each in (sam, again))
    assert len(one) > 0
    assert np.array_equal(one.mask, other.mask)
    public = textsam.TextSam(tiny_model(), lambda: None)  # an encoder that is fetched when it is needed
    public.save_pretrained(tmp_path / "public")
    assert not (tmp_path / "public/text_encoder").exists()


def test_push_an_adapter_of_its_own(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    trained = tiny_model(text_trained=True)
    textsam.push_adapter(trained, "org/words", card="# Mine\n")
    assert set(hub.repos["org/words"]) >= {"README.md", "text_adapter.safetensors"}
    assert "model.safetensors" not in hub.repos["org/words"]
    assert hub.repos["org/words"]["README.md"] == b"# Mine\n"
    tiny_model().save_pretrained(tmp_path / "base")
    loaded = load_model(tmp_path / "base", adapter="org/words", device="cpu", dtype="float32")
    assert torch.equal(loaded.prompt_encoder.text_projection.weight, trained.prompt_encoder.text_projection.weight)
    textsam.push_adapter(trained, "org/words")
    assert b"adapter" in hub.repos["org/words"]["README.md"]
    assert b"There is no record of it." in hub.repos["org/words"]["README.md"]


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        (
            "forbidden",
            PermissionError,
            r"does not let this account write org/words \(403\): log in with `hf auth login`",
        ),
        ("down", ConnectionError, "org/words could not be pushed to http.*refused"),
        ("offline", ConnectionError, "org/words could not be pushed: HF_HUB_OFFLINE forbids it"),
        ("bad name", ValueError, "Hub id of the form organisation/name, got 'words'"),
        ("untrained", ValueError, "text parameters of this model are untrained"),
        ("bad record", ValueError, "is not a training record in JSON"),
    ],
)
def test_a_failed_push_says_why(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str, kind: type[Exception], message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    record = None
    if trouble == "forbidden":
        hub.status["org/words"] = 403
    if trouble == "down":
        hub.__exit__()
    if trouble == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if trouble == "bad record":
        record = tmp_path / "record.json"
        record.write_text("{")
    model = tiny_model(text_trained=trouble != "untrained")
    with pytest.raises(kind, match=message):
        textsam.push_adapter(model, "words" if trouble == "bad name" else "org/words", training=record)


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
