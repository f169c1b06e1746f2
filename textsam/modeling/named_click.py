"""One click and a name, joined: the mask of the thing that was clicked on and named, from what the decoder said to
the click, to the name and to both.

A click says where, but not how far: at a shirt it may mean the shirt, the person or a pocket. A name says how far, but
not which of several. The decoder has a single token for the name; a U-Net over its answers sees where they differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.modeling.structures import DrawnPrompts, ImageEmbeddings, MaskPredictions
from textsam.modeling.transformer import spread
from textsam.modeling.unet import UNet

SAID = 4 + 1 + 1 + 2 + 4  # masks of click, name, both and again, its logits softly and hardly limited; promises
CLICK, SIMILARITY, DRAWN = 0, 3, 2  # of the drawn prompts
CHANNELS = (32, 64, 96, 96)
DEEPEST = 8  # cells of the first level to one of the last


@dataclass(frozen=True)
class NamedClickAnswers:
    """What the decoder said of N clicks and names.

    Attributes:
        click: to the clicks alone, all four masks. name: to the names alone, the single mask; None where no part draws
            from it. both: to the two together, the single mask. again: to the two and the mean of the answers to the
            click and to both.
        drawn: the two as maps, of models that draw prompts.
    """

    click: MaskPredictions
    name: MaskPredictions | None
    both: MaskPredictions
    again: MaskPredictions
    drawn: DrawnPrompts | None


def best_of_three(answer: MaskPredictions) -> Tensor:
    """(N, 1, 4h, 4w): of all four masks of an answer, the one of the last three that promises most."""
    best = 1 + answer.iou_predictions[:, 1:].argmax(dim=1)
    return answer.low_res_logits[torch.arange(len(best), device=best.device), best][:, None]


class NamedClick(UNet):
    """Adds to the logits of `NamedClickAnswers.again`; nothing at the start of training. Its levels lie at strides 8,
    16, 32 and 64 of the encoder's input; the first takes the cells of the masks four at a time.

    Args:
        embed_dim: C of the encoder's embedding.
    """

    def __init__(self, embed_dim: int, channels: tuple[int, ...] = CHANNELS) -> None:
        cells = SAID + DRAWN + embed_dim // 8
        super().__init__(4 * cells + embed_dim // 4, [embed_dim] * (len(channels) - 1), 4, channels)

    def forward(self, image: ImageEmbeddings, answers: NamedClickAnswers, image_index: Tensor | None = None) -> Tensor:
        """
        Args:
            image: B images. answers: to N prompts. image_index: (N,) the image of each; None when B is 1 or N.
        Returns:
            (N, 1, 4h, 4w) logits.
        """
        if image.high_res_features is None or answers.drawn is None or answers.name is None:
            raise ValueError(
                "named_click draws from high_res_skips, dense_geometry and the answer to the name, but one is missing; "
                "ask a model whose config has named_click."
            )
        again = answers.again.low_res_logits.float()
        count, (height, width) = len(again), again.shape[-2:]
        stride4, stride8, stride16 = (
            spread(each, count, image_index).float() for each in (*image.high_res_features, image.image_embeddings)
        )
        prompts = answers.drawn.maps[:, [CLICK, SIMILARITY]].float()
        said = _said(answers.click, answers.name, answers.both, answers.again)
        cells = F.pixel_unshuffle(torch.cat([said, prompts, stride4], dim=1), 2)
        x, known = _padded(torch.cat([cells, stride8], dim=1), DEEPEST), _padded(stride16, DEEPEST // 2)
        features = [known]
        for _ in self.see[1:]:
            features.append(F.avg_pool2d(features[-1], 2))
        drawn = F.pixel_shuffle(self.draw(x, features), 2)[..., :height, :width]
        return again.to(drawn.dtype) + drawn


def _said(click: MaskPredictions, name: MaskPredictions, both: MaskPredictions, again: MaskPredictions) -> Tensor:
    """(N, SAID, 4h, 4w): the masks and what they promise, of a click's three the one that promises most first."""
    order = 1 + click.iou_predictions[:, 1:].argsort(dim=1, descending=True)
    order = torch.cat([torch.zeros_like(order[:, :1]), order], dim=1)
    rows = torch.arange(len(order), device=order.device)[:, None]
    logits = [click.low_res_logits[rows, order], *(each.low_res_logits for each in (name, both, again))]
    masks = [each.float() for each in logits]
    promises = (click.iou_predictions[rows, order[:, :2]], both.iou_predictions, again.iou_predictions)
    promised = torch.cat(promises, dim=1).float()[..., None, None].expand(-1, -1, *masks[0].shape[-2:])
    return torch.cat([*(torch.tanh(each / 4) for each in masks), masks[-1].clamp(-15, 15) / 10, promised], dim=1)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """(N, C, h, w) with zeros at the bottom and right, so that its sides are multiples."""
    missing = [-side % multiple for side in x.shape[-2:]]
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x
