"""A random model of the embedded model's structure, and encoders of words that need no download."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.model import TextSamConfig, TextSamModel

CLIP_DIM = 48


def mobile_miniature(*, seed: int = 0, mask_refinement: bool = True, mask_detail: bool = False) -> TextSamModel:
    """The embedded model's structure: similarity head, skips, prompts drawn as maps; text counts as trained."""
    torch.manual_seed(seed)
    sizes = {"image_size": 128, "prompt_dim": 32, "decoder_heads": 2, "decoder_mlp_dim": 32, "clip_dim": CLIP_DIM}
    config = TextSamConfig.tiny(**sizes, text_trained=True, mask_refinement=mask_refinement, mask_detail=mask_detail)
    model = TextSamModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.mask_decoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.mask_decoder.iou_prediction_head.layers[-1].bias += 0.7  # confident enough to be returned
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 30  # masks with clear outlines
        if mask_detail:  # which would add nothing at the start
            model.mask_detail.out.weight += torch.randn(model.mask_detail.out.weight.shape, generator=generator)
        model.similarity_bias.zero_()  # some positions are above one half, some below
        model.presence_bias.zero_()
    return model


class HashedWords:
    """A text encoder whose embeddings depend on nothing but the words; it counts what it was asked."""

    def __init__(self, width: int = CLIP_DIM) -> None:
        self.width = width
        self.asked: list[str] = []

    def encode(self, texts: list[str]) -> Tensor:
        self.asked += texts
        generators = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in texts]
        return F.normalize(torch.stack([torch.randn(self.width, generator=g) for g in generators]), dim=-1)


class ColourWords:
    """A CLIP of three words, red, green and blue (all others mean grey), whose embeddings are mean colours."""

    names = ("red", "green", "blue")

    def encode(self, texts_or_image, masks=None, *, expand: float = 1.0, zero_outside: bool = False) -> Tensor:
        if masks is None:
            rows = [[float(text == name) for name in self.names] for text in texts_or_image]
            colours = torch.tensor(rows) + 0.5 * torch.tensor([[sum(row) == 0.0] for row in rows])
            return self._of_colours(255 * colours)
        colours = np.stack([texts_or_image[mask].mean(0) for mask in masks])
        return self._of_colours(torch.from_numpy(colours))

    def dense(self, image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        small = F.interpolate(pixels, (image.shape[0] // 4, image.shape[1] // 4), mode="area")[0]
        return self._of_colours(small.flatten(1).T).T.reshape(4, *small.shape[1:])

    @staticmethod
    def _of_colours(colours: Tensor) -> Tensor:
        colours = colours.float() / 255
        return F.normalize(torch.cat([colours, torch.full((len(colours), 1), 0.3)], dim=1), dim=-1)
