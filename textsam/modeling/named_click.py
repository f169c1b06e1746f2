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

CLICK, SIMILARITY = 0, 3  # of the drawn prompts
LOGITS, MAPS = 10.0, 1 + 7 + 4 + 2  # see `NamedClickAnswers.maps`
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

    def maps(self) -> Tensor:
        """(N, MAPS, 4h, 4w) float32: the logits of `again` / `LOGITS`; all masks, softly limited, of a click's three
        the one that promises most first; what the masks promise; the click and the name as they are drawn."""
        if self.drawn is None or self.name is None:
            raise ValueError(
                "named_click draws from drawn prompts and the answer to the name, but one is missing; ask a model "
                "whose config has named_click."
            )
        click, others = self.click, (self.name, self.both, self.again)
        order = 1 + click.iou_predictions[:, 1:].argsort(dim=1, descending=True)
        order = torch.cat([torch.zeros_like(order[:, :1]), order], dim=1)
        rows = torch.arange(order.shape[0], device=order.device)[:, None]
        masks = torch.cat([click.low_res_logits[rows, order], *(each.low_res_logits for each in others)], dim=1).float()
        promises = [click.iou_predictions[rows, order[:, :2]], *(each.iou_predictions for each in others[1:])]
        promised = torch.cat(promises, dim=1).float()[..., None, None].expand(-1, -1, *masks.shape[-2:])
        prompts = self.drawn.maps[:, [CLICK, SIMILARITY]].float()
        return torch.cat([masks[:, -1:].clamp(-15, 15) / LOGITS, torch.tanh(masks / 4), promised, prompts], dim=1)


def best_of_three(answer: MaskPredictions) -> Tensor:
    """(N, 1, 4h, 4w): of all four masks of an answer, the one of the last three that promises most."""
    best = 1 + answer.iou_predictions[:, 1:].argmax(dim=1)
    return answer.low_res_logits[torch.arange(best.shape[0], device=best.device), best][:, None]


class NamedClick(UNet):
    """Adds to the logits of `NamedClickAnswers.again`, limited to 15; nothing at the start of training.

    Its levels lie at strides 8, 16, 32 and 64 of the encoder's input; the first takes the masks' cells four at a time.

    Args:
        embed_dim: C of the encoder's embedding.
    """

    def __init__(self, embed_dim: int, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__(4 * (MAPS + embed_dim // 8) + embed_dim // 4, [embed_dim] * (len(channels) - 1), 4, channels)

    def forward(self, image: ImageEmbeddings, answers: NamedClickAnswers, image_index: Tensor | None = None) -> Tensor:
        """
        Args:
            image: B images. answers: to N prompts. image_index: (N,) the image of each; None when B is 1 or N.
        Returns:
            (N, 1, 4h, 4w) logits.
        """
        if image.high_res_features is None:
            raise ValueError("named_click needs an encoder with high_res_skips, but image has no high_res_features.")
        maps, features = answers.maps(), (*image.high_res_features, image.image_embeddings)
        return self.correct(maps, *(spread(each, maps.shape[0], image_index) for each in features))

    def correct(self, maps: Tensor, stride4: Tensor, stride8: Tensor, stride16: Tensor) -> Tensor:
        """What `forward` gives, of `NamedClickAnswers.maps` and the features of each prompt's image: (N, C/8, 4h, 4w),
        (N, C/4, 2h, 2w) and (N, C, h, w)."""
        maps, (height, width) = maps.float(), maps.shape[-2:]
        cells = F.pixel_unshuffle(torch.cat([maps, stride4.float()], dim=1), 2)
        x, known = _padded(torch.cat([cells, stride8.float()], dim=1), DEEPEST), _padded(stride16.float(), DEEPEST // 2)
        features = [known]
        for _ in self.see[1:]:
            features.append(F.avg_pool2d(features[-1], 2))
        drawn = F.pixel_shuffle(self.draw(x, features), 2)[..., :height, :width]
        return LOGITS * maps[:, :1].to(drawn.dtype) + drawn


def _padded(x: Tensor, multiple: int) -> Tensor:
    """(N, C, h, w) with zeros at the bottom and right, so that its sides are multiples."""
    missing = [-side % multiple for side in x.shape[-2:]]
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x
