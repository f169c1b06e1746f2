"""The second look at stride 4: nothing until it is trained, and each prompt by itself."""

from __future__ import annotations

import pytest
import torch
from tiny_models import randomize

from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.mask_refiner import MaskQuality
from textsam.modeling.structures import MaskPredictions

SIDE = 64
BOXES = torch.tensor([[8.0, 8, 40, 30], [20, 4, 60, 60], [2, 30, 30, 62]])


def model_with(refinement: bool) -> TextSamModel:
    torch.manual_seed(0)
    return TextSamModel(TextSamConfig.tiny(image_size=SIDE, mask_refinement=refinement)).eval()


def masks(model: TextSamModel, boxes: torch.Tensor) -> MaskPredictions:
    image = model.encode_image(torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    return model.decode_masks(image, model.encode_prompts(image, boxes=boxes), multimask_output=None)


@torch.no_grad()
def test_an_untrained_refiner_changes_nothing() -> None:
    with_refiner, without = model_with(True), model_with(False)
    missing, unexpected = with_refiner.load_state_dict(without.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith(("mask_decoder.refiner.", "mask_decoder.quality.")) for name in missing)
    new, old = masks(with_refiner, BOXES), masks(without, BOXES)
    torch.testing.assert_close(new.low_res_logits, old.low_res_logits)
    torch.testing.assert_close(new.iou_predictions, old.iou_predictions)


@torch.no_grad()
def test_each_prompt_by_itself() -> None:
    model = randomize(model_with(True))
    together = masks(model, BOXES)
    for row in range(len(BOXES)):
        alone = masks(model, BOXES[row : row + 1])
        for name in ("low_res_logits", "iou_predictions"):
            whole = getattr(together, name)[row : row + 1]
            torch.testing.assert_close(getattr(alone, name), whole, rtol=1e-4, atol=1e-4)


def test_it_learns_and_is_learned_through() -> None:
    model = randomize(model_with(True))
    masks(model, BOXES).low_res_logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.mask_decoder.refiner.parameters())
    assert model.image_encoder.skip4.weight.grad.abs().sum() > 0


def test_quality_learns_from_the_mask_and_leaves_it_alone() -> None:
    quality = randomize(MaskQuality())
    sure, unsure = torch.full((1, 1, 8, 8), -6.0), torch.full((1, 1, 8, 8), -0.1)
    sure[..., 2:6, 2:6], unsure[..., 2:6, 2:6] = 6.0, 0.1
    logits = torch.cat([sure, unsure], dim=1).requires_grad_()
    predicted = quality(logits)
    assert predicted.shape == (1, 2)
    assert abs(predicted[0, 0] - predicted[0, 1]) > 1e-3
    predicted.sum().backward()
    assert logits.grad is None
    assert quality.hidden.weight.grad is not None
    assert torch.isfinite(quality(torch.full((1, 1, 8, 8), -9.0))).all()  # an empty mask


def test_it_needs_the_drawn_prompts() -> None:
    with pytest.raises(ValueError, match="mask_refinement needs dense_geometry=True"):
        TextSamConfig(mask_refinement=True)
