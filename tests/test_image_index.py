"""As many prompts as images, in another order: each prompt gets the image that `image_index` names."""

from __future__ import annotations

import pytest
import torch
from miniatures import mobile_miniature
from tiny_models import tiny_model

from textsam.model import TextSamModel

INDICES = ([1, 0], [1, 1], [0, 1])


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
