"""As many prompts as images, in another order: each prompt gets the image that `image_index` names."""

from __future__ import annotations

import pytest
import torch
from miniatures import mobile_miniature
from tiny_models import tiny_model, unit_text

from textsam.model import TextSamModel

INDICES = ([1, 0], [1, 1], [0, 1])


def three_clicks(side: int) -> dict[str, torch.Tensor]:
    return {"point_coords": torch.full((3, 1, 2), side / 2), "point_labels": torch.ones(3, 1, dtype=torch.int64)}


def answers(model: TextSamModel, pixels: torch.Tensor, kind: str, index: list[int]) -> torch.Tensor:
    """Low-resolution logits of one prompt for each entry of `index`, of all images at once."""
    side = pixels.shape[-1]
    points = torch.tensor([[[0.3, 0.4]], [[0.7, 0.6]]]) * side
    prompts = {"point_coords": points, "point_labels": torch.ones(2, 1, dtype=torch.int64)}
    if kind == "box":
        prompts = {"boxes": torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.3, 0.9, 0.8]]) * side}
    if kind == "mask":
        generator = torch.Generator().manual_seed(5)
        prompts["mask_input"] = torch.randn(2, 1, side // 4, side // 4, generator=generator)
    image, rows = model.encode_image(pixels), torch.tensor(index)
    together = model.encode_prompts(image, **prompts, image_index=rows)
    found = model.decode_masks(image, together, multimask_output=None, image_index=rows).low_res_logits
    for number, of in enumerate(index):
        alone = {name: value[number : number + 1] for name, value in prompts.items()}
        one = image.select(of)
        single = model.decode_masks(one, model.encode_prompts(one, **alone), multimask_output=None).low_res_logits
        torch.testing.assert_close(found[number], single[0], atol=1e-4, rtol=1e-4)
    return found


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", ["point", "box", "mask"])
@pytest.mark.parametrize("encoder", ["vit", "mobile"])
def test_each_prompt_gets_its_image(encoder: str, kind: str, gradients: bool) -> None:
    model = (tiny_model(seed=2) if encoder == "vit" else mobile_miniature(seed=2)).eval()
    side = model.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(gradients):
        found = [answers(model, pixels, kind, index) for index in INDICES]
    assert not torch.allclose(found[0], found[2], atol=1e-3)  # the two images do differ


def test_an_index_that_does_not_fit_is_named() -> None:
    model = mobile_miniature()
    side = model.config.image_size
    pixels, text = torch.zeros(2, 3, side, side), unit_text()[[0, 1, 1]]
    for prompts in (three_clicks(side), {"text_embeddings": text}):
        with pytest.raises(ValueError, match=r"Prompts \(N = 3\) on 2 images need image_index; give the image of each"):
            model(pixels, **prompts)
        with pytest.raises(ValueError, match="the image of each of 3 prompts, but has 2; give each prompt one entry"):
            model(pixels, **prompts, image_index=torch.tensor([0, 1]))
    image = model.encode_image(pixels)
    index = torch.tensor([0, 1, 1])
    embedded = model.encode_prompts(image, **three_clicks(side), image_index=index)
    with pytest.raises(ValueError, match="need image_index"):
        model.decode_masks(image, embedded, multimask_output=False)
    assert len(model.decode_masks(image, embedded, multimask_output=False, image_index=index).iou_predictions) == 3
