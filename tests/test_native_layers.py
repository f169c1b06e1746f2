"""Layers of the small models by the compiled kernels, one by one: PyTorch's numbers at every size that occurs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import randomize
from torch import Tensor, nn

from textsam.modeling import native_layers
from textsam.modeling.fine_masks import Surroundings
from textsam.modeling.mask_decoder import MaskDecoder
from textsam.modeling.mask_detail import MAPS, MaskDetail
from textsam.modeling.mask_refiner import MaskRefiner
from textsam.modeling.prompt_encoder import GeometryMaps
from textsam.modeling.structures import DrawnPrompts, ImageEmbeddings, PromptEmbeddings
from textsam.modeling.transformer import TwoWayTransformer
from textsam.native.kernels import Kernels
from textsam.native.library import only


def agree(compiled: Kernels, module: nn.Module, call: Callable[[], Tensor]) -> None:
    """`call` gives by the kernels, with any number of threads, what it gives by PyTorch; and they were used."""
    with only(None):
        expected = call()
    threads = torch.get_num_threads()
    with only(compiled):
        for number in (1, 3, threads):
            torch.set_num_threads(number)
            try:
                torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4)
            finally:
                torch.set_num_threads(threads)
    assert module in native_layers._kept


@pytest.mark.parametrize("channels", [(32, 48, 64, 96), (12, 20, 24, 8)])
@pytest.mark.parametrize("similarity", [0, 24])
@pytest.mark.parametrize("side", [16, 80])
@torch.no_grad()
def test_the_u_net_of_details(compiled: Kernels, channels: tuple[int, ...], similarity: int, side: int) -> None:
    torch.manual_seed(0)
    detail = randomize(MaskDetail(64, similarity, channels)).eval()
    known = [layer.in_channels for layer in detail.see]
    x = torch.randn(2, 4 * MAPS, side, side)
    features = [torch.randn(2, each, side >> i, side >> i) for i, each in enumerate(known, start=1)]
    agree(compiled, detail, lambda: detail._unet(x, features))


@pytest.mark.parametrize("size", [(16, 8), (28, 44)])
@torch.no_grad()
def test_the_second_look(compiled: Kernels, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    refiner = randomize(MaskRefiner(16, 5)).eval()
    upscaled, maps = torch.randn(2, 16, *size), torch.randn(2, 5, *size)
    agree(compiled, refiner, lambda: refiner(upscaled, maps))


@pytest.mark.parametrize(("channels", "levels"), [(24, 1), (24, 2), (10, 3)])
@pytest.mark.parametrize("size", [(8, 8), (8, 24), (40, 16)])
@pytest.mark.parametrize("gelu", [False, True])
@torch.no_grad()
def test_surroundings(compiled: Kernels, channels: int, levels: int, size: tuple[int, int], gelu: bool) -> None:
    torch.manual_seed(0)
    around = randomize(Surroundings(channels, levels)).eval()
    x = torch.randn(2, channels, *size)
    agree(compiled, around, lambda: around(x, gelu))


@pytest.mark.parametrize("size", [(4, 4), (12, 20), (40, 8)])
@torch.no_grad()
def test_drawn_prompts_are_embedded(compiled: Kernels, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    geometry = randomize(GeometryMaps(72)).eval()
    maps = torch.randn(2, GeometryMaps.channels, *size)
    for number in range(3):
        agree(compiled, geometry, lambda number=number: geometry._embed(maps)[number])


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_the_decoder_with_finer_maps(compiled: Kernels, drawn: bool, skips: bool, count: int) -> None:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(2, 128, 8, 64, 1)
    decoder = MaskDecoder(transformer_dim=128, transformer=transformer, dense_geometry=True, refinement=True)
    randomize(decoder).eval()

    def some(channels: int, scale: int, number: int = count) -> Tensor:
        return torch.randn(number, channels, 4 * scale, 6 * scale)

    finer = (some(16, 4, 1), some(32, 2, 1)) if skips else None
    image = ImageEmbeddings(some(128, 1, 1), (64, 96), finer)
    maps = DrawnPrompts(some(GeometryMaps.channels, 4), some(16, 4), some(32, 2)) if drawn else None
    prompts = PromptEmbeddings(torch.randn(count, 2, 128), some(128, 1), drawn_prompts=maps)
    pe = some(128, 1, 1)
    used = decoder.output_upscaling if drawn or skips else None
    with only(None):
        expected = decoder(image, pe, prompts, None)
    with only(compiled):
        found = decoder(image, pe, prompts, None)
    torch.testing.assert_close(found.low_res_logits, expected.low_res_logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.iou_predictions, expected.iou_predictions, rtol=1e-4, atol=1e-3)
    assert used is None or used in native_layers._kept
    called: list[str] = []
    for name in ("transformer", "transformer.layers.0"):
        decoder.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
        with only(compiled):
            again = decoder(image, pe, prompts, None)
        torch.testing.assert_close(again.low_res_logits, expected.low_res_logits, rtol=1e-4, atol=1e-3)
    assert called == ["transformer", "transformer", "transformer.layers.0"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_all_layers_take_half_precision(compiled: Kernels, dtype: torch.dtype) -> None:
    """Rounded once, at the end: nearer to what the rounded weights give in float32 than PyTorch's own products."""
    torch.manual_seed(0)
    decoder = MaskDecoder(transformer_dim=128, transformer=TwoWayTransformer(2, 128, 8, 64, 1), refinement=True)
    detail, geometry = MaskDetail(64, 24, (12, 20, 24, 8)), GeometryMaps(72)
    known = [layer.in_channels for layer in detail.see]
    features = [torch.randn(2, each, 16 >> i, 16 >> i) for i, each in enumerate(known, start=1)]
    tokens, image, pe = torch.randn(2, 7, 128), torch.randn(2, 128, 4, 6), torch.randn(1, 128, 4, 6)
    finer = [torch.randn(2, 32, 8, 12)], [torch.randn(2, 16, 16, 24)]

    def upscale(layers: nn.Module, x: Tensor, fine: list[Tensor], fine4: list[Tensor]) -> Tensor:
        skips = ImageEmbeddings(x, (64, 96), (fine4[0], fine[0]))
        return decoder._upscale(x, skips, PromptEmbeddings(tokens, x), None)

    calls: list[tuple[nn.Module, Callable[..., object], tuple[object, ...]]] = [
        (detail, detail._unet, (torch.randn(2, 4 * MAPS, 16, 16), features)),
        (geometry, geometry._embed, (torch.randn(2, GeometryMaps.channels, 8, 12),)),
        (decoder.transformer, lambda *x: decoder._exchange(*x, None), (image, pe, tokens)),
        (decoder.output_upscaling, lambda *x: upscale(decoder.output_upscaling, *x), (image, *finer)),
        (decoder.refiner, decoder.refiner, (torch.randn(2, 16, 16, 24), torch.randn(2, GeometryMaps.channels, 16, 24))),
    ]
    for module in (decoder, detail, geometry):
        randomize(module).eval().to(dtype)
    for module, call, inputs in calls:
        inputs = native_layers._cast(inputs, dtype)
        with only(compiled):
            found = native_layers._cast(call(*inputs), torch.float32)
        assert module in native_layers._kept
        with only(None):
            rough = native_layers._cast(call(*inputs), torch.float32)
            module.float()
            exact = call(*native_layers._cast(inputs, torch.float32))
            module.to(dtype)
        for one, two, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, exact, rough)), strict=True):
            assert float((one - two).abs().mean()) <= float((other - two).abs().mean())
