"""The small encoder by the compiled kernels: PyTorch's numbers, and never those of weights that are gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_models import randomize
from torch import Tensor, nn

from textsam.modeling import native_layers
from textsam.modeling.mobile_encoder import MobileEncoder, MobileFeatures
from textsam.native.kernels import Kernels
from textsam.native.library import only

# 400 leaves 25 rows at stride 16: SAME pads before them, too. 32 leaves a single one at stride 32.
SIZES = [(1, 448, 448), (2, 400, 336), (3, 32, 48)]


@pytest.fixture(scope="module")
def encoder() -> MobileEncoder:
    torch.manual_seed(0)
    encoder = randomize(MobileEncoder(128, similarity_dim=64, presence_dim=32))
    with torch.no_grad():
        for parameter in encoder.trunk.parameters():
            if parameter.ndim == 4:  # so that ReLU6 clamps some and lets some through
                nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    return encoder.eval()


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def maps(features: MobileFeatures) -> Iterator[Tensor]:
    assert features.high_res is not None
    assert features.similarity is not None
    assert features.presence is not None
    yield from (features.embeddings, *features.high_res, features.similarity, features.presence)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_kernels_compute_what_pytorch_does(
    encoder: MobileEncoder, compiled: Kernels, size: tuple[int, int, int]
) -> None:
    x = pictures(*size)
    exact = maps(copy.deepcopy(encoder).double()(x.double()))
    with only(None):
        plain = maps(encoder(x))
    with only(compiled):
        found, again = maps(encoder(x)), maps(encoder(x))
    assert encoder in native_layers._kept
    for true, one, two, other in zip(exact, plain, found, again, strict=True):
        assert one.shape == two.shape
        # Random weights multiply rounding errors: what counts is that these are no larger than PyTorch's.
        assert float((two - true).abs().max()) <= 2 * float((one - true).abs().max()) + 1e-6
        assert torch.equal(two, other)


@pytest.mark.parametrize("threads", [1, 3, 16])
@torch.inference_mode()
def test_any_number_of_threads(encoder: MobileEncoder, compiled: Kernels, threads: int) -> None:
    before = torch.get_num_threads()
    x = pictures(1, 48, 80)
    with only(compiled):
        expected = encoder(x).embeddings
        torch.set_num_threads(threads)
        try:
            torch.testing.assert_close(encoder(x).embeddings, expected)
        finally:
            torch.set_num_threads(before)


@torch.no_grad()
def test_changed_weights_are_packed_again(encoder: MobileEncoder, compiled: Kernels) -> None:
    changed = copy.deepcopy(encoder)
    x = pictures(1, 64, 64)
    with only(compiled):
        before = changed(x)
        changed.trunk.conv0.weight.mul_(3)
        changed.smooth8.mlp.lin2.weight.mul_(0.5)
        after = list(maps(changed(x)))
        changed.load_state_dict(encoder.state_dict())
        restored = list(maps(changed(x)))
    with only(None):
        changed.trunk.conv0.weight.mul_(3)
        changed.smooth8.mlp.lin2.weight.mul_(0.5)
        expected = list(maps(changed(x)))
    for was, one, two, other in zip(maps(before), after, expected, restored, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)
        assert torch.equal(was, other)
        assert not torch.allclose(was, one, rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_weights_changed_in_place_or_replaced_are_packed_again(encoder: MobileEncoder, compiled: Kernels) -> None:
    """What `.data` does, autograd does not count."""
    changed, x = copy.deepcopy(encoder), pictures(1, 64, 64)
    weights = {name: 0.9 * weight for name, weight in encoder.state_dict().items()}
    ways: list[Callable[[], object]] = [
        lambda: changed.neck[0].weight.data.mul_(-1),
        lambda: [parameter.data.lerp_(torch.ones(()), 0.1) for parameter in changed.parameters()],
        lambda: changed.load_state_dict(weights, assign=True),
        lambda: changed.half().float(),
        lambda: changed.double().float().smooth16.mlp.lin1.bias.data.fill_(3),
    ]
    for change in ways:
        with only(compiled):
            before = changed(x).embeddings
            change()
            found = changed(x).embeddings
        with only(None):
            torch.testing.assert_close(found, changed(x).embeddings, rtol=1e-3, atol=1e-3)
        assert not torch.equal(found, before)


@pytest.mark.parametrize("name", ["neck", "context.0.mlp.lin1", "trunk.block03", "trunk.block03.depthwise"])
@torch.no_grad()
def test_hooks_within_are_called(encoder: MobileEncoder, compiled: Kernels, name: str) -> None:
    """A hook on the encoder itself needs no other way."""
    hooked, x = copy.deepcopy(encoder), pictures(1, 32, 48)
    calls: list[str] = []
    hooked.register_forward_hook(lambda *_: calls.append("encoder"))
    with only(compiled):
        expected = hooked(x).embeddings
        assert hooked in native_layers._kept
        inner = hooked.get_submodule(name)
        before = inner.register_forward_pre_hook(lambda *_: calls.append("before"))
        after = inner.register_forward_hook(lambda *_: calls.append("after"))
        torch.testing.assert_close(hooked(x).embeddings, expected, rtol=1e-2, atol=1e-2)
        before.remove()
        after.remove()
        assert torch.equal(hooked(x).embeddings, expected)
    assert calls == ["encoder", "before", "after", "encoder", "encoder"]


def test_gradients_and_training_take_pytorch(encoder: MobileEncoder, compiled: Kernels) -> None:
    fresh = copy.deepcopy(encoder)
    with only(compiled):
        fresh(pictures(1, 32, 32)).embeddings.sum().backward()
        with torch.no_grad():
            fresh.train()(pictures(1, 32, 32))
            fresh.eval().double()(pictures(1, 32, 32).double())
    assert fresh.trunk.conv0.weight.grad is not None
    assert fresh.trunk not in native_layers._kept
    assert fresh not in native_layers._kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_rounded_at_the_ends_alone(
    encoder: MobileEncoder, compiled: Kernels, dtype: torch.dtype
) -> None:
    """The kernels compute in float32, so the answer is that of the rounded weights, rounded once."""
    x = pictures(2, 48, 64).to(dtype)
    half = copy.deepcopy(encoder).to(dtype)
    with only(compiled):
        exact = maps(copy.deepcopy(half).float()(x.float()))
        found = maps(half(x))
    assert half in native_layers._kept
    for one, two in zip(exact, found, strict=True):
        assert torch.equal(one.to(dtype), two)


class Adapter(nn.Linear):
    """A layer that is not the one that the kernels know."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@torch.no_grad()
def test_adapters_and_odd_widths_take_pytorch(encoder: MobileEncoder, compiled: Kernels) -> None:
    """But for the trunk, which is as ever."""
    torch.manual_seed(0)
    adapted = copy.deepcopy(encoder)
    adapted.smooth8.mlp.lin1 = Adapter(128, 256)
    others = [
        randomize(MobileEncoder(96, similarity_dim=64, presence_dim=32)).eval(),
        randomize(MobileEncoder(128, similarity_dim=24, presence_dim=32)).eval(),
        randomize(MobileEncoder(128, similarity_dim=64, presence_dim=32, pyramid_dim=72)).eval(),
    ]
    x = pictures(1, 64, 96)
    for each in (adapted, *others):
        with only(None):
            expected = maps(each(x))
        with only(compiled):
            found = maps(each(x))
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)
        assert each not in native_layers._kept
        assert each.trunk in native_layers._kept


@pytest.mark.parametrize("parts", [{"similarity_dim": None}, {"high_res_skips": False}, {"context_depth": 0}])
@torch.no_grad()
def test_encoders_without_some_of_the_parts(compiled: Kernels, parts: dict[str, object]) -> None:
    torch.manual_seed(0)
    options: dict[str, object] = {"similarity_dim": 64, "presence_dim": None, **parts}
    part = randomize(MobileEncoder(128, **options)).eval()  # type: ignore[arg-type]
    x = pictures(1, 64, 96)
    with only(None):
        expected = part(x)
    with only(compiled):
        found = part(x)
    assert (part in native_layers._kept) == ("context_depth" in parts)
    assert found.presence is None
    pairs = [(found.embeddings, expected.embeddings), (found.similarity, expected.similarity)]
    pairs += zip(found.high_res or (), expected.high_res or (), strict=True)
    for one, two in pairs:
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)
