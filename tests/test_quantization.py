"""The encoder's matrices in eight bits: less memory, nearly the same masks, and clear words where it cannot be."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from typer.testing import CliRunner

from textsam.checkpoints.loading import load
from textsam.checkpoints.quantization import quantize_encoder
from textsam.commands.cli import app
from textsam.deployment.onnx_export import export_onnx


def encoder_bytes(model):
    """What the matrices of the blocks take."""
    layers = [m for m in model.image_encoder.blocks.modules() if isinstance(m, torch.nn.Linear)]
    parts = [getattr(layer.weight, name, None) for layer in layers for name in ("qdata", "scale")]
    tensors = [part for part in parts if part is not None] or [layer.weight for layer in layers]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "float8"])
def test_masks_are_nearly_the_same(kind):
    model = tiny_model(encoder_width=128, encoder_heads=4)
    small = copy.deepcopy(model)
    quantize_encoder(small, kind)
    assert encoder_bytes(small) < 0.35 * encoder_bytes(model)
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    points = torch.rand(16, 1, 2, generator=torch.Generator().manual_seed(1)) * 128
    logits = []
    with torch.inference_mode():
        for each in (model, small):
            image = each.encode_image(pixels)
            prompts = each.encode_prompts(image, point_coords=points, point_labels=torch.ones(16, 1))
            logits.append(each.decode_masks(image, prompts, multimask_output=False).low_res_logits)
    assert 0 < (logits[1] - logits[0]).norm() / logits[0].norm() < 0.05


def test_only_the_blocks_change():
    model, small = tiny_model(), tiny_model()
    quantize_encoder(small, "int8")
    for name, parameter in model.named_parameters():
        if "blocks" not in name or parameter.ndim == 1 or "rel_pos" in name:
            torch.testing.assert_close(dict(small.named_parameters())[name], parameter, rtol=0, atol=0)


def test_loading(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path / "vit")
    loaded = load(tmp_path / "vit", device="cpu", quantize="int8")
    assert type(loaded.network.image_encoder.blocks[0].attn.qkv.weight) is not torch.nn.Parameter
    assert len(loaded.predict(torch.zeros(3, 64, 64, dtype=torch.uint8), points=[[10, 10]])) == 1


def test_embeddings_are_cached_by_kind(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path / "vit")
    photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for kind in (None, "int8", "int8-dynamic"):
        for hits in (0, 1):  # a new process finds what another one with the same weights has left
            loaded = load(tmp_path / "vit", device="cpu", dtype="float32", quantize=kind)
            cache = loaded.use_cache(tmp_path / "cache")
            loaded.predict(photo, points=[[10, 10]])
            assert cache.hits == hits


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic"])  # PyTorch does not read float8's pickles
def test_pickles(tmp_path: Path, kind: str):
    tiny_model().save_pretrained(tmp_path / "vit")
    loaded = load(tmp_path / "vit", device="cpu", quantize=kind)
    photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
    expected = loaded.predict(photo, points=[[10, 10]], return_logits=True)
    found = pickle.loads(pickle.dumps(loaded)).predict(photo, points=[[10, 10]], return_logits=True)
    assert (found.data["low_res_logits"] == expected.data["low_res_logits"]).all()


def test_saving_is_refused(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path / "vit")
    loaded = load(tmp_path / "vit", device="cpu", quantize="int8")
    with pytest.raises(ValueError, match="load the model without quantize"):
        loaded.model.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="load without quantize"):
        export_onnx(loaded, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="one of int8, int8-dynamic, float8, but is 'int3'"):
        load(quantize="int3")
    with pytest.raises(ValueError, match="ViT encoder, and this one's is convolutional"):
        load(device="cpu", quantize="int8")


def test_the_command_line_offers_it():
    for command in ("segment", "evaluate"):
        result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert "--quantize" in result.output
