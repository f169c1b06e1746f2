"""Masks at full resolution, and names that a model adds to those of the embedded text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import randomize
from torch.nn import functional as F

import textsam
from textsam.checkpoints.encoders import EXTRA_NAMES, read_extra_names, write_extra_names
from textsam.language.vocabulary import UnknownNameError
from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.fine_masks import Conv3x3, FineFeatures, Surroundings, colour_shares
from textsam.native.kernels import Kernels
from textsam.native.library import only
from textsam.prompting.cached_encoding import from_tensors, to_tensors

SIDE = 64


@pytest.fixture(scope="module")
def model() -> Any:
    return TextSamModel(TextSamConfig.tiny(image_size=SIDE, fine_masks=True)).eval()


def pictures(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def logits(count: int, masks: int = 1) -> torch.Tensor:
    return 3 * torch.randn(count, masks, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_an_untrained_head_only_enlarges(model: Any) -> None:
    coarse = logits(3)
    fine = model.refine_masks(model.encode_image(pictures()), coarse)
    assert fine.shape == (3, 1, SIDE, SIDE)
    torch.testing.assert_close(fine, F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False))


@torch.no_grad()
def test_further_surroundings_start_from_nothing() -> None:
    torch.manual_seed(0)
    deep = Surroundings(4, levels=3)
    flat = Surroundings(4)
    flat.load_state_dict({name: value for name, value in deep.state_dict().items() if "further" not in name})
    x = torch.randn(2, 4, 16, 24)
    torch.testing.assert_close(deep(x), flat(x))
    assert not torch.allclose(randomize(deep)(x), flat(x))


def test_a_colour_between_ground_and_ink_is_a_share_of_ink() -> None:
    """A bar of ink with a rim that mixes the colours, on a ground that changes from left to right; the first drawing
    takes the whole rim for ink on one side and for ground on the other."""
    cover = torch.zeros(SIDE)
    cover[24:40], cover[23], cover[40] = 1.0, 0.3, 0.7
    ink = torch.tensor([2.0, -1.0, 0.5])[:, None, None]
    ground = torch.stack([torch.linspace(-1, -0.5, SIDE), torch.full((SIDE,), 1.0), torch.linspace(0, 0.3, SIDE)])
    pixels = cover[:, None] * ink + (1 - cover[:, None]) * ground[:, None, :]
    drawn = torch.full((SIDE, SIDE), -4.0)
    drawn[23:40] = 4.0
    shares = colour_shares(pixels[None], drawn[None, None])[0]
    assert shares.shape == (3, SIDE, SIDE)
    for window, share in enumerate(shares):
        rows = share[:, 8:-8].mean(1)
        reach = rows[31]  # fades where there is little ink around
        assert reach > 0.8, window
        torch.testing.assert_close(rows[[23, 40]] / reach, torch.tensor([0.3, 0.7]), atol=0.08, rtol=0)
        assert rows[26:38].min() > 0.75
        assert rows[[4, 60]].abs().max() < 0.1
    assert colour_shares(pixels[None], -drawn.abs()[None, None]).abs().max() < 0.02  # no ink anywhere


@torch.no_grad()
def test_each_prompt_is_redrawn_on_its_own_picture() -> None:
    model = randomize(TextSamModel(TextSamConfig.tiny(image_size=SIDE, fine_masks=True)))
    image, coarse = model.encode_image(pictures()), logits(4, masks=2)
    index = torch.tensor([2, 0, 0, 1])
    together = model.refine_masks(image, coarse, index)
    for row, number in enumerate(index.tolist()):
        alone = model.refine_masks(image.select(number), coarse[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[1], model.refine_masks(image.select(1), coarse[1:2])[0], atol=1e-2)


@torch.no_grad()
def test_the_features_survive_the_cache(model: Any) -> None:
    image = model.encode_image(pictures(1))
    again = from_tensors(to_tensors(image), image.input_size)
    torch.testing.assert_close(model.refine_masks(again, logits(1)), model.refine_masks(image, logits(1)))


def test_models_without_the_head_say_so() -> None:
    plain = TextSamModel(TextSamConfig.tiny(image_size=SIDE))
    image = plain.encode_image(pictures(1))
    assert image.pixel_values is None
    with pytest.raises(ValueError, match="fine_masks, but has no pixel_values"):
        plain.refine_masks(image, logits(1))
    with pytest.raises(ValueError, match="fine_masks needs high_res_skips=True"):
        TextSamConfig(fine_masks=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of ours that shares the embedded encoders and adds two names."""
    TextSamModel(TextSamConfig.tiny(text_trained=True)).save_pretrained(tmp_path)
    vectors = F.normalize(torch.randn(2, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    write_extra_names(tmp_path / EXTRA_NAMES, ["text", "text line"], vectors, {"writing": "text"})
    return tmp_path


def test_added_names_beside_the_embedded_ones(folder: Path) -> None:
    names, vectors, aliases = read_extra_names(folder / EXTRA_NAMES)
    assert (names, aliases) == (["text", "text line"], {"writing": "text"})
    wider, embedded = textsam.load(folder, device="cpu").text_encoder, textsam.load(device="cpu").text_encoder
    torch.testing.assert_close(wider.encode(["two text lines", "the writing"]), vectors.flip(0))
    torch.testing.assert_close(wider.encode(["a dog", "text"])[0], embedded.encode(["a dog"])[0])
    with pytest.raises(UnknownNameError):
        embedded.encode(["text line"])


def test_added_names_are_saved_with_the_encoder(folder: Path, tmp_path: Path) -> None:
    encoder = textsam.load(folder, device="cpu").text_encoder
    encoder.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    again = type(encoder).from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.encode(["text", "cat"]), encoder.encode(["text", "cat"]))
    with pytest.raises(ValueError, match="names are added once"):
        encoder.with_names(["word"], torch.zeros(1, 512), {})


def test_a_foreign_file_of_names_is_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"extra": torch.zeros(1, 512)}, folder / EXTRA_NAMES)
    with pytest.raises(ValueError, match='must hold the tensor "extra" and, as metadata'):
        textsam.load(folder, device="cpu")


@pytest.mark.parametrize("size", [(448, 448), (256, 304), (16, 32)])
@torch.inference_mode()
def test_the_kernels_see_the_colours_that_pytorch_sees(
    cat_photo: np.ndarray, compiled: Kernels, size: tuple[int, int]
) -> None:
    photo = torch.from_numpy(cat_photo).permute(2, 0, 1)[None].float() / 127.5 - 1
    pixels = torch.cat([F.interpolate(photo, size), F.interpolate(photo.flip(3), size)])
    ink = F.interpolate(4 * torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(2)), size, mode="bilinear")
    head = FineFeatures(16)
    with only(None):
        expected = head.colours(pixels), colour_shares(pixels, ink)
    with only(compiled):
        found = head.colours(pixels), colour_shares(pixels, ink)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("channels", "out"), [(1, 24), (40, 32), (24, 4), (96, 96)])
@pytest.mark.parametrize("size", [(20, 28), (1, 5), (3, 1)])
@torch.inference_mode()
def test_a_convolution_by_the_kernels(compiled: Kernels, channels: int, out: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(channels, out).eval()
    x, other = torch.randn(2, channels, *size), torch.randn(2, out, *size)
    for add, gelu in ((None, False), (None, True), (other, False), (other, True)):
        with only(None):
            expected = conv(x, add, gelu)
        with only(compiled):
            torch.testing.assert_close(conv(x, add, gelu), expected, rtol=1e-5, atol=2e-5)


@torch.inference_mode()
def test_the_head_by_the_kernels(compiled: Kernels) -> None:
    model: Any = randomize(TextSamModel(TextSamConfig.tiny(image_size=SIDE, fine_masks=True)))
    image, coarse = model.encode_image(pictures()), logits(3, masks=2)
    with only(None):
        expected = model.refine_masks(image, coarse)
    with only(compiled):
        found = model.refine_masks(image, coarse)
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())
