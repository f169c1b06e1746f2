"""The open_clip wrappers on random weights: against the unmodified towers and against naive formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

import textsam.language.clip
from textsam.language.clip import ClipNotAvailableError, CropEncoder, TextEncoder, load_open_clip, parse_clip_name
from textsam.language.clip_towers import wrap_tower

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32}
# Where the whole mask must give the unmodified tower.
EXACT = {
    "class token": VIT,
    "class token, norm after pooling": VIT | {"final_ln_after_pool": True},
    "class token, layer scale": VIT | {"ls_init_value": 0.3},
    "class token, custom block": VIT | {"qk_norm": True, "scale_heads": True, "scale_attn": True},
    "attention pool, mean of its tokens": VIT
    | {"attentional_pool": True, "attn_pooler_queries": 5, "pool_type": "avg"},
    "mean": VIT | {"pool_type": "avg"},
    "mean, norm after pooling": VIT | {"pool_type": "avg", "final_ln_after_pool": True},
    "attention pool": VIT | {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2},
    "timm ConvNeXt": {"timm_model_name": "test_convnext", "timm_pool": "avg", "image_size": 160},
    "timm ViT, mean": {"timm_model_name": "test_vit3", "timm_pool": "avg", "image_size": 160},
    "timm ViT, attention pool": {"timm_model_name": "test_vit3", "timm_pool": "map", "image_size": 160},
}
OTHER = {
    "ModifiedResNet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 64},
    "timm ViT, class token": {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160},
    "timm ResNet": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 160},
}


def tiny_clip(vision: dict[str, Any]) -> open_clip.CLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT).eval()
    for parameter in model.visual.parameters():  # norms and biases that do something
        if parameter.ndim <= 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture
def clip() -> open_clip.CLIP:
    return tiny_clip(VIT)


def pixels(model: open_clip.CLIP, count: int = 3) -> torch.Tensor:
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_masks(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(2)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height - 10), rng.integers(0, width - 10)
        mask[y : y + rng.integers(3, 30), x : x + rng.integers(3, 30)] = True
    return masks


@pytest.mark.parametrize("kind", EXACT)
@torch.no_grad()
def test_everything_inside_is_the_unmodified_tower(kind: str) -> None:
    model = tiny_clip(EXACT[kind])
    tower = wrap_tower(model.visual)
    x = pixels(model)
    whole = torch.ones(len(x), *tower.grid_hw, dtype=torch.bool)
    torch.testing.assert_close(tower.embed_inside(x, whole), model.encode_image(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*EXACT, *OTHER])
@torch.no_grad()
def test_the_mask_matters_and_each_picture_keeps_its_own(kind: str) -> None:
    model = tiny_clip((EXACT | OTHER)[kind])
    tower = wrap_tower(model.visual)
    x = pixels(model)
    inside = torch.zeros(3, *tower.grid_hw, dtype=torch.bool)
    inside[0, 0, 0] = inside[1, -1] = True
    inside[2, :, 1:] = True
    together = tower.embed_inside(x, inside)
    alone = torch.cat([tower.embed_inside(x[i : i + 1], inside[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, tower.embed_inside(x, torch.ones_like(inside)), atol=1e-3)
    assert tower.embed_cells(x).shape == (3, 24, *tower.grid_hw)


@torch.no_grad()
def test_masked_attention_against_a_naive_softmax(clip: open_clip.CLIP) -> None:
    """Appendix D.5 written out: head by head, picture by picture, sums over the tokens inside only."""
    visual, tower = clip.visual, wrap_tower(clip.visual)
    x = pixels(clip, 2)
    inside = torch.zeros(2, 4, 4, dtype=torch.bool)
    inside[0, 1:3, 2] = inside[1, 0, 0] = True
    tokens = visual._embeds(x)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    block = visual.transformer.resblocks[-1]
    heads, width = block.attn.num_heads, tokens.shape[-1]
    size = width // heads
    expected = []
    for sequence, cells in zip(tokens, inside, strict=True):
        kept = [0] + [1 + 4 * row + column for row in range(4) for column in range(4) if cells[row, column]]
        normed = block.ln_1(sequence)
        query, key, value = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(width, dim=-1)
        attended = torch.zeros(width)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [float(query[0, part] @ key[j, part]) / size**0.5 for j in kept]
            total = sum(np.exp(scores))
            for score, j in zip(scores, kept, strict=True):
                attended[part] += float(np.exp(score) / total) * value[j, part]
        token = sequence[0] + attended @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        token = token + block.mlp(block.ln_2(token))
        expected.append(visual.ln_post(token) @ visual.proj)
    torch.testing.assert_close(tower.embed_inside(x, inside), torch.stack(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_custom_block_agrees_with_the_default_one() -> None:
    """The same weights through open_clip's two kinds of block."""
    plain, custom = tiny_clip(VIT), tiny_clip(VIT | {"block_type": "custom"})
    custom.load_state_dict(plain.state_dict())
    inside = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(3)) > 0.6
    x = pixels(plain)
    expected = wrap_tower(plain.visual).embed_inside(x, inside)
    torch.testing.assert_close(wrap_tower(custom.visual).embed_inside(x, inside), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dense_is_the_value_and_output_projection(clip: open_clip.CLIP) -> None:
    visual = clip.visual
    x = pixels(clip, 1)
    tokens = visual._embeds(x)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    block = visual.transformer.resblocks[-1]
    # One cell as the only key: the softmax is 1, so torch's own attention returns its projected value.
    cell = block.ln_1(tokens)[:, 1 + 4 * 2 + 3 :][:, :1]
    attended = block.attn(cell, cell, cell, need_weights=False)[0]
    expected = (visual.ln_post(attended) @ visual.proj)[0, 0]
    torch.testing.assert_close(wrap_tower(visual).embed_cells(x)[0, :, 2, 3], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_resnet_pools_the_mean_of_its_dense_features() -> None:
    model = tiny_clip(OTHER["ModifiedResNet"])
    tower, x = wrap_tower(model.visual), pixels(model, 2)
    inside = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 0]]], dtype=torch.bool)
    cells = tower.embed_cells(x)
    expected = torch.stack([(cells[0, :, 0, 0] + cells[0, :, 1, 1]) / 2, cells[1, :, 1, 0]])
    torch.testing.assert_close(tower.embed_inside(x, inside), expected)
    # Against the attention pool itself: with queries of zero it attends evenly to its mean token and all positions.
    pool = model.visual.attnpool
    pool.q_proj.weight.zero_()
    pool.q_proj.bias.zero_()
    pool.positional_embedding[0] = pool.positional_embedding[1:].mean(0)
    torch.testing.assert_close(tower.embed_inside(x, torch.ones_like(inside)), model.encode_image(x))


def test_unknown_tower_is_named() -> None:
    with pytest.raises(TypeError, match="not Linear"):
        wrap_tower(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="'cascade' is unfinished"):
        wrap_tower(tiny_clip(VIT | {"attentional_pool": "cascade", "attn_pooler_heads": 2}).visual)


@torch.no_grad()
def test_crop_encoder_is_the_tower_on_the_normalised_crop(clip: open_clip.CLIP) -> None:
    encoder = CropEncoder(clip)
    image = picture(32, 32)
    whole = np.ones((1, 32, 32), bool)
    mean, std = (torch.tensor(values) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    x = ((torch.from_numpy(image).float() / 255 - mean) / std).permute(2, 0, 1)[None]
    torch.testing.assert_close(encoder.encode(image, whole, expand=1.0), clip.encode_image(x, normalize=True))
    dense = encoder.dense(image)
    assert dense.shape == (24, 4, 4)
    torch.testing.assert_close(dense.norm(dim=0), torch.ones(4, 4))
    assert encoder.dense(picture(10, 200)).shape == (24, 4, 4)


def test_crop_encoder_any_number_of_masks(clip: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, image, masks = CropEncoder(clip), picture(), random_masks(7)
    embeddings = encoder.encode(image, masks, expand=1.5, zero_outside=True)
    assert embeddings.shape == (7, 24)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(7))
    monkeypatch.setattr(textsam.language.clip, "CROP_BATCH_SIZE", 2)
    torch.testing.assert_close(encoder.encode(image, masks, expand=1.5, zero_outside=True), embeddings)
    assert encoder.encode(image, masks[:1]).shape == (1, 24)
    assert encoder.encode(image, masks[:0]).shape == (0, 24)
    assert not torch.allclose(encoder.encode(image, masks, expand=1.5), embeddings, atol=1e-3)
    with pytest.raises(ValueError, match=r"masks\[7\] is empty"):
        encoder.encode(image, np.concatenate([masks, np.zeros_like(masks[:1])]))


def test_zeroed_pixels_do_not_matter(clip: open_clip.CLIP) -> None:
    encoder, image, masks = CropEncoder(clip), picture(), random_masks(1)
    other = np.where(masks[0][..., None], image, 255 - image)
    expected = encoder.encode(image, masks, zero_outside=True)
    torch.testing.assert_close(encoder.encode(other, masks, zero_outside=True), expected)
    assert not torch.allclose(encoder.encode(other, masks), encoder.encode(image, masks), atol=1e-3)


def test_text_encoder_is_the_text_tower(clip: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    encoder = TextEncoder(clip, tokenizer)
    texts = ["dog", "a photo of two cats", "  zebra ", "dog"]
    with torch.no_grad():
        expected = clip.encode_text(tokenizer([text.strip() for text in texts]), normalize=True)
    torch.testing.assert_close(encoder.encode(texts), expected)
    monkeypatch.setattr(textsam.language.clip, "TEXT_BATCH_SIZE", 3)
    torch.testing.assert_close(encoder.encode(texts), expected)
    framed = TextEncoder(clip, tokenizer, template="a {}")
    torch.testing.assert_close(framed.encode(["dog"]), encoder.encode(["a dog"]))
    torch.testing.assert_close(framed.encode(["{0} {} %s"]), encoder.encode(["a {0} {} %s"]))
    assert encoder.encode([]).shape == (0, 24)
    with pytest.raises(ValueError, match="template"):
        TextEncoder(clip, tokenizer, template="a dog")


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("dog", TypeError, "list of strings"),
        ([3], TypeError, r"texts\[0\] must be a string, not int"),
        (["dog", " \n"], ValueError, r"texts\[1\] is empty"),
        (["x" * 10_000], ValueError, "10000 characters, expected at most"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_wrong_texts(clip: open_clip.CLIP, texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TextEncoder(clip, open_clip.get_tokenizer("ViT-B-32")).encode(texts)


@pytest.mark.parametrize(
    ("name", "pretrained", "expected"),
    [
        ("ViT-B-32:openai", None, ("ViT-B-32", "openai")),
        ("ViT-L-14-336", "openai", ("ViT-L-14-336", "openai")),
        ("ViT-B/32:laion2b_s34b_b79k", None, ("ViT-B-32", "laion2b_s34b_b79k")),
        ("hf-hub:org/model", None, ("hf-hub:org/model", None)),
        ("local-dir:some/folder", None, ("local-dir:some/folder", None)),
    ],
)
def test_clip_names(name: str, pretrained: str | None, expected: tuple[str, str | None]) -> None:
    assert parse_clip_name(name, pretrained) == expected


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ViT-B-23:openai", ValueError, "no model 'ViT-B-23'; close names: ViT-B-32"),
        ("ViT-B-32", ValueError, "which pretrained weights.*openai"),
        ("ViT-B-32:nonsense", ValueError, "no pretrained weights 'nonsense'.*openai"),
        ("hf-hub:", ValueError, "org/model"),
        ("hf-hub:model", ValueError, "org/model"),
        ("", ValueError, "no model ''"),
        (None, TypeError, "NoneType"),
    ],
)
def test_wrong_clip_names(name: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_clip_name(name)


def test_no_network_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    with pytest.raises(ClipNotAvailableError, match=r"CLIP 'ViT-B-32:openai' is neither .* Connect to the network"):
        TextEncoder.from_pretrained("ViT-B-32:openai")


def test_activation_follows_the_weights(monkeypatch: pytest.MonkeyPatch, clip: open_clip.CLIP) -> None:
    seen: dict[str, dict[str, Any]] = {}

    def create(name: str, pretrained: str, **options: Any) -> open_clip.CLIP:
        seen[pretrained] = options
        return clip

    monkeypatch.setattr(open_clip, "create_model", create)
    for tag in ("openai", "laion2b_s34b_b79k"):
        load_open_clip("ViT-B-32", tag)
    assert seen["openai"]["force_quick_gelu"] is True
    assert seen["laion2b_s34b_b79k"]["force_quick_gelu"] is False
    assert all(options["require_pretrained"] for options in seen.values())


def test_folder_of_weights(tmp_path: Path, clip: open_clip.CLIP) -> None:
    """The real loader on a folder: same outputs, one model for both encoders, its own normalisation."""
    settings = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}, "preprocess_cfg": settings}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ClipNotAvailableError, match="could not be loaded"):  # a config alone is not a CLIP
        CropEncoder.from_pretrained(f"local-dir:{tmp_path}")
    torch.save(clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    text_encoder = TextEncoder.from_pretrained(f"local-dir:{tmp_path}")
    crop_encoder = CropEncoder.from_pretrained(f"local-dir:{tmp_path}")
    assert text_encoder.model is crop_encoder.model
    elsewhere = CropEncoder.from_pretrained(f"local-dir:{tmp_path}", device="meta")
    assert elsewhere.device == elsewhere.pixel_mean.device == torch.device("meta")
    assert crop_encoder.device == torch.device("cpu")  # another device is another model
    crop_encoder.to("meta")
    assert TextEncoder.from_pretrained(f"local-dir:{tmp_path}").device == torch.device("cpu")
    text_encoder = TextEncoder.from_pretrained(f"local-dir:{tmp_path}")
    crop_encoder = CropEncoder.from_pretrained(f"local-dir:{tmp_path}")
    assert crop_encoder.pixel_mean.tolist() == [0.5, 0.5, 0.5]
    with torch.no_grad():
        expected = F.normalize(clip.encode_text(text_encoder.tokenizer(["dog"])), dim=-1)
    torch.testing.assert_close(text_encoder.encode(["dog"]), expected)
    with pytest.raises(ClipNotAvailableError, match="not found"):
        TextEncoder.from_pretrained(f"local-dir:{tmp_path / 'elsewhere'}")
