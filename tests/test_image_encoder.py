"""The ViT encoder: its two ways of computing agree with plain formulas, at any size, and it can be trained."""

from __future__ import annotations

import pytest
import torch
from tiny_models import randomize
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling import attention
from textsam.modeling.attention import augmented_attention, blocked_attention, resize_table
from textsam.modeling.image_encoder import ImageEncoderViT
from textsam.modeling.layers import linear_layer


def encoder(**sizes: int) -> ImageEncoderViT:
    """3 blocks, the middle one global, 8 x 8 tokens in windows of 3: those at the edges are padded."""
    given = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "out_chans": 16, **sizes}
    return randomize(ImageEncoderViT(**given, window_size=3, global_attn_indexes=(1,)))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def plain_attention(q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor) -> Tensor:
    """softmax(q.k / sqrt(d) + q.R_h[i - k] + q.R_w[j - l]) v, one score at a time; all (heads, h, w, d)."""
    heads, h, w, d = q.shape
    key_h, key_w = k.shape[1:3]
    scores = torch.einsum("nijd,nkld->nijkl", q, k) * d**-0.5
    for i in range(h):
        for j in range(w):
            for m in range(key_h):
                for n in range(key_w):
                    bias = table_h[i - m + key_h - 1] + table_w[j - n + key_w - 1]
                    scores[:, i, j, m, n] += q[:, i, j] @ bias
    weights = scores.flatten(3).softmax(-1)
    return (weights.view(heads, h * w, -1) @ v.flatten(1, 2)).view(heads, h, w, d)


@pytest.mark.parametrize(("h", "w", "key_h", "key_w"), [(4, 4, 4, 4), (3, 5, 3, 5), (2, 3, 4, 4), (1, 4, 3, 4)])
@pytest.mark.parametrize("scores", [1, 60, 150, 10_000])
def test_blocked_attention(h: int, w: int, key_h: int, key_w: int, scores: int) -> None:
    """Whatever the block: a row of one head at a time, or all at once; queries may be fewer than keys."""
    q = torch.randn(3, h, w, 8)
    k, v = torch.randn(2, 3, key_h, key_w, 8)
    table_h, table_w = torch.randn(2 * key_h - 1, 8), torch.randn(2 * key_w - 1, 8)
    buffer = torch.full((max(scores, w * key_h * key_w),), float("nan"))
    out = blocked_attention(q, k, v, table_h.flip(0), table_w.flip(0), 8**-0.5, buffer)
    assert relative_error(out.view(3, h, w, 8), plain_attention(q, k, v, table_h, table_w)) < 1e-5


def test_augmented_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 4, 5, 8)
    table_h, table_w = torch.randn(7, 8), torch.randn(9, 8)
    out = augmented_attention(q, k, v, table_h, table_w)
    for image in range(2):
        expected = plain_attention(q[image], k[image], v[image], table_h, table_w)
        assert relative_error(out[image], expected) < 1e-5


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [(64, 64), (64, 40), (24, 64), (96, 96), (8, 8), (8, 48), (72, 104)])
def test_inference_equals_training(size: tuple[int, int]) -> None:
    model = encoder()
    x = torch.randn(2, 3, *size)
    trained = model(x)
    with torch.no_grad():
        inferred = model(x)
    assert trained.shape == (2, 16, size[0] // 8, size[1] // 8)
    assert trained.requires_grad
    assert not inferred.requires_grad
    assert relative_error(inferred, trained.detach()) < 1e-5


@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_input_is_not_changed() -> None:
    model = encoder()
    x = torch.randn(1, 3, 64, 64)
    before = x.clone()
    first = model(x)
    assert torch.equal(x, before)
    assert torch.equal(model(x), first)


@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_blocks_of_any_size_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = encoder(), torch.randn(1, 3, 64, 48)
    whole = model(x)
    monkeypatch.setattr(attention, "_SCORE_BYTES_PER_THREAD", 1)
    assert relative_error(model(x), whole) < 1e-5


@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_padding_of_windows_is_the_bias_of_the_projection() -> None:
    """Padding comes after the normalisation, so its key and value are the bias: changing it changes the output."""
    model, x = encoder(), torch.randn(1, 3, 64, 64)
    block = model.blocks[0]
    tokens = torch.randn(1, 8, 8, 32)
    padded = F.pad(block.norm1(tokens), (0, 0, 0, 1, 0, 1))
    windows = padded.view(1, 3, 3, 3, 3, 32).transpose(2, 3).reshape(9, 3, 3, 32)
    out = block.attn(windows).view(1, 3, 3, 3, 3, 32).transpose(2, 3).reshape(1, 9, 9, 32)[:, :8, :8]
    expected = tokens + out
    expected = expected + block.mlp(block.norm2(expected))
    assert relative_error(block(tokens), expected) < 1e-5
    assert relative_error(block(tokens.clone(), in_place=True), expected) < 1e-5
    before = model(x)
    block.attn.qkv.bias += 1
    assert relative_error(model(x), before) > 1e-3


@torch.no_grad()
def test_photo_without_padding_keeps_its_positions() -> None:
    """A grid that is not square uses the top-left positions of the square, and relative positions as they are."""
    model = encoder()
    assert torch.equal(model.position_embedding(8, 8), model.pos_embed)
    assert torch.equal(model.position_embedding(5, 8), model.pos_embed[:, :5])
    assert model.position_embedding(12, 4).shape == (1, 12, 4, 32)
    table = torch.arange(15.0)[:, None]
    assert resize_table(table, 8, 8)[:, 0].tolist() == list(range(15))
    assert resize_table(table, 5, 8)[:, 0].tolist() == list(range(3, 12))
    assert resize_table(table, 4, 4).shape == (7, 1)
    # Offset 0 stays in the middle when a table is interpolated.
    assert resize_table(table, 12, 12)[11].item() == pytest.approx(7.0)


def test_gradients_reach_every_parameter() -> None:
    model = encoder()
    model(torch.randn(1, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_are_right() -> None:
    model = encoder(img_size=24, embed_dim=8, out_chans=4).double()
    x = torch.randn(1, 3, 24, 24, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x).sin().sum(), x, nondet_tol=1e-9, fast_mode=True)


@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_bfloat16() -> None:
    model, x = encoder(), torch.randn(1, 3, 64, 64)
    expected = model(x)
    out = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.05


@torch.no_grad()
def test_autocast_and_tracing_take_the_plain_way() -> None:
    model, x = encoder(), torch.randn(1, 3, 64, 64)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(x).float(), expected) < 0.05
    exported = torch.export.export(model, (x,))
    assert relative_error(exported.module()(x), expected) < 1e-5


@torch.no_grad()
def test_layers_that_are_not_plain_are_called() -> None:
    """An adapter in place of a linear layer must take part, though the fast way reads weights itself."""

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    layer, x = Adapted(4, 4), torch.randn(3, 4)
    assert torch.equal(linear_layer(x, layer), F.linear(x, layer.weight, layer.bias) + 1)
    assert relative_error(linear_layer(x, layer, nn.GELU()), F.gelu(layer(x))) < 1e-6
    plain = nn.Linear(4, 4)
    assert relative_error(linear_layer(x, plain, nn.GELU()), F.gelu(plain(x))) < 1e-6
    assert relative_error(linear_layer(x, plain, nn.GELU("tanh")), F.gelu(plain(x), approximate="tanh")) < 1e-6


@pytest.mark.usefixtures("way")
def test_without_bias_and_without_windows() -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "out_chans": 8}
    for extra in ({"qkv_bias": False, "window_size": 3}, {"window_size": 0, "global_attn_indexes": ()}):
        model = randomize(ImageEncoderViT(**sizes, **extra))
        x = torch.randn(1, 3, 32, 32)
        expected = model(x).detach()
        with torch.no_grad():
            assert relative_error(model(x), expected) < 1e-5


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_wrong_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        encoder()(torch.zeros(shape))


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="multiple of patch_size 16, but is 100"):
        ImageEncoderViT(img_size=100)
    with pytest.raises(ValueError, match="num_heads must divide the encoder's width 30, but is 4"):
        ImageEncoderViT(img_size=64, embed_dim=30, num_heads=4)
