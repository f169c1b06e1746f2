"""The decoder's quicker way without gradients gives the numbers of the plain way."""

from __future__ import annotations

import pickle

import pytest
import torch
from tiny_models import SIDE, tiny_model
from torch import Tensor, nn

from textsam.model import TextSamModel
from textsam.modeling import decoder_inference, decoder_native, mask_decoder, prompt_encoder
from textsam.modeling.decoder_inference import is_foldable
from textsam.modeling.prompt_encoder import PositionEmbeddingRandom
from textsam.modeling.structures import ImageEmbeddings, MaskPredictions

pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture(scope="module")
def model() -> TextSamModel:
    """With SAM's own decoder width: 8 heads of 16 in the cross attentions."""
    return tiny_model(seed=4)


def prompts(case: str, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    points = {
        "point_coords": torch.rand(count, 2, 2, generator=generator) * SIDE,
        "point_labels": torch.randint(-1, 2, (count, 2), generator=generator),
    }
    boxes = {"boxes": torch.rand(count, 4, generator=generator) * SIDE}
    masks = {"mask_input": torch.randn(count, 1, SIDE // 4, SIDE // 4, generator=generator)}
    text = {"text_embeddings": torch.nn.functional.normalize(torch.randn(count, 48, generator=generator), dim=-1)}
    cases = {"points": points, "boxes": boxes, "masks": masks, "text": text, "text_points": points | text}
    return (cases | {"all": points | boxes | masks | text})[case]


def image(batch: int) -> ImageEmbeddings:
    generator = torch.Generator().manual_seed(batch)
    return ImageEmbeddings(torch.randn(batch, 256, SIDE // 16, SIDE // 16, generator=generator), (SIDE, SIDE))


def decode(
    model: TextSamModel, batch: int, case: str, count: int, index: Tensor | None, multimask: bool | None = True
) -> MaskPredictions:
    encoded = model.encode_prompts(image(batch), **prompts(case, count), image_index=index)
    return model.decode_masks(image(batch), encoded, multimask_output=multimask, image_index=index)


def assert_same(quick: MaskPredictions, plain: MaskPredictions) -> None:
    for name in ("low_res_logits", "iou_predictions", "presence_logits"):
        actual, expected = getattr(quick, name), getattr(plain, name)
        if expected is None:
            assert actual is None
            continue
        assert actual.shape == expected.shape
        assert not actual.requires_grad
        assert expected.requires_grad
        assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of every use of the quicker way, by PyTorch or by the kernels."""
    seen: list[int] = []
    original, compiled = decoder_inference.decode_in_chunks, decoder_native.decode_natively

    def spy(*args):
        seen.append(len(args[6]))
        return original(*args)

    def spy_compiled(*args):
        seen.append(len(args[7]))
        return compiled(*args)

    monkeypatch.setattr(mask_decoder, "decode_in_chunks", spy)
    monkeypatch.setattr(mask_decoder, "decode_natively", spy_compiled)
    return seen


@pytest.mark.parametrize("case", ["points", "boxes", "masks", "text", "text_points", "all"])
@pytest.mark.parametrize(
    ("batch", "count", "index"), [(1, 1, None), (1, 5, None), (3, 3, None), (2, 5, [1, 0, 0, 1, 1])]
)
@pytest.mark.parametrize("elements", [1, 50_000])
def test_same_as_the_plain_way(
    model: TextSamModel,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    batch: int,
    count: int,
    index: list[int] | None,
    elements: int,
) -> None:
    """One image or several, with chunks of one prompt or of three (of 16384 elements each)."""
    for module in (decoder_inference, decoder_native):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(decoder_inference, "_UPSCALED_POSITIONS", 50)
    rows = None if index is None else torch.tensor(index)
    plain = decode(model, batch, case, count, rows)
    assert calls == []
    with torch.no_grad():
        quick = decode(model, batch, case, count, rows)
    assert calls == [count]
    assert_same(quick, plain)


@pytest.mark.parametrize("multimask", [True, False, None])
def test_which_masks(model: TextSamModel, multimask: bool | None) -> None:
    plain = decode(model, 1, "points", 2, None, multimask)
    with torch.no_grad():
        quick = decode(model, 1, "points", 2, None, multimask)
    assert_same(quick, plain)
    assert quick.low_res_logits.shape[1] == {True: 3, False: 1, None: 4}[multimask]


@torch.no_grad()
def test_no_prompts_keep_their_axes(model: TextSamModel) -> None:
    masks = decode(model, 1, "points", 0, None)
    assert masks.low_res_logits.shape == (0, 3, SIDE // 4, SIDE // 4)
    assert masks.iou_predictions.shape == (0, 3)


@torch.no_grad()
def test_upscaling_together_is_upscaling_one_by_one(model: TextSamModel) -> None:
    """What other devices than a CPU do."""
    generator = torch.Generator().manual_seed(0)
    upscale = decoder_inference.MaskUpscaler(model.mask_decoder.output_upscaling)
    tokens = torch.randn(3, 6 * 5, 256, generator=generator)
    weights = torch.randn(3, 2, 32, generator=generator)
    together = upscale.together(tokens, weights, (6, 5))
    assert together.shape == (3, 2, 24, 20)
    for i in range(3):
        expected = upscale(tokens[i], weights[i], (6, 5))
        assert (together[i] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_only_where_it_applies() -> None:
    decoder = tiny_model().mask_decoder
    assert is_foldable(decoder.transformer, decoder.output_upscaling, 16)
    assert not is_foldable(decoder.transformer, decoder.output_upscaling, 17)  # projecting the image is cheaper

    class Adapted(nn.Linear):
        """An adapter's layer: its weight alone is not what it computes."""

    decoder.transformer.layers[1].cross_attn_token_to_image.k_proj = Adapted(256, 128)
    assert not is_foldable(decoder.transformer, decoder.output_upscaling, 7)


@pytest.mark.parametrize(
    "name", ["transformer", "transformer.layers.0.norm1", "output_upscaling", "output_upscaling.1"]
)
@torch.no_grad()
def test_hooks_within_are_called(name: str) -> None:
    model = tiny_model(seed=4)
    expected, called = decode(model, 1, "points", 3, None), []
    model.mask_decoder.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
    found = decode(model, 1, "points", 3, None).low_res_logits
    assert called == [name]
    assert (found - expected.low_res_logits).abs().max() < 1e-5 * found.abs().max()


@torch.no_grad()
def test_bfloat16(calls: list[int]) -> None:
    expected = decode(tiny_model(seed=4), 1, "points", 3, None)
    low = tiny_model(seed=4).to(torch.bfloat16)
    shared = ImageEmbeddings(image(1).image_embeddings.bfloat16(), (SIDE, SIDE))
    encoded = low.encode_prompts(shared, **prompts("points", 3))
    masks = low.decode_masks(shared, encoded, multimask_output=True)
    assert calls == [3, 3]
    assert masks.low_res_logits.dtype == torch.bfloat16
    difference = masks.low_res_logits.float() - expected.low_res_logits
    assert difference.square().mean().sqrt() < 0.05 * expected.low_res_logits.square().mean().sqrt()


@pytest.mark.parametrize("case", ["points", "masks"])
@torch.no_grad()
def test_the_image_is_left_as_it_was(model: TextSamModel, case: str) -> None:
    """The kernels work in place on image tokens, which must be copies."""
    shared = image(1)
    before = shared.image_embeddings.clone()
    for count in (1, 2):
        encoded = model.encode_prompts(shared, **prompts(case, count))
        once, twice = (model.decode_masks(shared, encoded, multimask_output=True) for _ in range(2))
        assert torch.equal(once.low_res_logits, twice.low_res_logits)
    assert torch.equal(shared.image_embeddings, before)


@torch.no_grad()
def test_kept_position_encodings_are_those_of_the_matrix() -> None:
    layer = PositionEmbeddingRandom(8)
    fresh = pickle.dumps(layer)
    first = layer((3, 4))
    assert layer((3, 4)) is first  # kept
    assert len(pickle.dumps(layer)) == len(fresh)  # beside the layer, not in it

    def check() -> None:
        with torch.enable_grad():
            expected = layer((3, 4))
        assert layer((3, 4)).dtype == layer.positional_encoding_gaussian_matrix.dtype
        assert torch.equal(layer((3, 4)), expected)

    layer.load_state_dict(PositionEmbeddingRandom(8).state_dict())
    check()
    assert not torch.equal(layer((3, 4)), first)
    layer.positional_encoding_gaussian_matrix.data.copy_(torch.randn(2, 8))
    check()
    for _ in range(20):  # in memory that a former matrix left
        layer.load_state_dict(PositionEmbeddingRandom(8).state_dict(), assign=True)
        check()
    for dtype in (torch.float16, torch.bfloat16, torch.float32) * 5:
        check()
        layer.to(dtype)
        check()
    with torch.inference_mode():
        layer.load_state_dict(PositionEmbeddingRandom(8).state_dict(), assign=True)
        check()
    check()
    for side in range(1, 40):
        layer((side, side))
    assert len(prompt_encoder._kept[layer][1]) < 10
