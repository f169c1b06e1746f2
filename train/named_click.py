"""Trains the part that joins a click and a name (`named_click`) of a model; all else of it stays as it is.

    python -m train.named_click --data DATA --names vit_b_32_names.npz --crops crops.safetensors --out runs/named

The data are those of `train.tiny`. The frozen model is asked for each object by a click, by its name or its crop's
embedding, and by both; the part learns to draw the object from the answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import textsam
from textsam.model import TextSamModel
from train.data import CocoSamples, Sample
from train.losses import balance, bce_loss, mask_iou
from train.mask_detail import soft_iou
from train.ocr import copy_encoders
from train.parts import add_run_arguments, rebuilt, train_part
from train.step import Objects, TextSamStep
from train.tiny import NameIndex, embedding_table, sources_of

PART = "named_click."
CENTRED = 0.6  # of the clicks: at the deepest point of the thing, the others anywhere in it
CROP_SHARE, NOISE = 0.3, 0.1


class NamedClickStep(TextSamStep):
    """Losses of things drawn from a click and a name."""

    def forward(self, samples: list[Sample], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, and under names that begin with "_" the mean IoU of clicks alone, before and after."""
        config, device = self.model.config, self.model.device
        self.model.eval()  # all but the part is as in use
        pixels = torch.stack([sample.pixels for sample in samples]).float()
        mean, std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
        objects, known = self._objects(samples, generator)
        objects = objects.take(known.nonzero()[:, 0].to(device))
        if not len(objects.masks):
            return {"bce": 0.0 * self.model.named_click.out.bias.sum()}
        clicks = _centred(objects, torch.rand(len(objects.masks), generator=generator) < CENTRED)
        labels = torch.ones(len(clicks), 1, dtype=torch.int64, device=device)
        with torch.no_grad():
            image = self.model.encode_image(((pixels - mean) / std).contiguous(memory_format=torch.channels_last))
            asked = (image, clicks[:, None], labels, objects.text, objects.image_index)
            answers = self.model.ask_named_clicks(*asked)
        logits = self.model.draw_named_clicks(image, answers, objects.image_index).float()[:, 0]
        masks, weights = objects.masks, objects.weights
        rows = torch.arange(len(masks), device=device)
        best = 1 + answers.click.iou_predictions[:, 1:].argmax(dim=1)
        return {
            "bce": bce_loss(logits, masks, balance(masks, weights)).mean(),
            "iou": 2 * (1 - soft_iou(*(each[:, None] for each in (logits.sigmoid(), masks, weights))).mean()),
            "_click": mask_iou(answers.click.low_res_logits[rows, best], masks, weights).mean(),
            "_before": mask_iou(answers.again.low_res_logits[:, 0], masks, weights).mean(),
            "_after": mask_iou(logits, masks, weights).mean(),
        }


def _centred(objects: Objects, chosen: Tensor) -> Tensor:
    """The clicks (N, 2), of the chosen objects at the point that is farthest from the mask's outline."""
    clicks = objects.clicks.clone()
    known = ((objects.masks > 0.5) & (objects.weights > 0)).cpu().numpy()
    for row in chosen.nonzero()[:, 0].tolist():
        if known[row].any():
            depth = cv2.distanceTransform(np.pad(known[row].astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            clicks[row] = torch.tensor([4.0 * x + 2, 4.0 * y + 2])
    return clicks


def with_named_click(model: TextSamModel) -> TextSamModel:
    """The model with the part, which adds nothing as yet."""
    return model if model.config.named_click else rebuilt(model, PART, named_click=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="textsam-tiny", help="name or folder of the model")
    parser.add_argument("--data", required=True, type=Path, help="folder with a folder per set")
    parser.add_argument("--names", required=True, help="npz of CLIP text embeddings")
    parser.add_argument("--crops", help="crop embeddings made by train.crop_embeddings, safetensors")
    parser.add_argument("--instances", type=int, default=4, help="of each picture and step")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    add_run_arguments(parser, steps=1500, batch_size=8, lr=1.5e-3)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    sam = textsam.load(args.model, dtype="float32", device="cpu")
    model = with_named_click(sam.model)
    table, names = embedding_table(args.names, args.crops)
    data = CocoSamples(
        sources_of(args.data),
        NameIndex(sam.text_encoder.vocabulary, {name: i for i, name in enumerate(names)}),
        size=model.config.image_size,
        instances=args.instances,
        seed=args.seed,
        length=args.steps * args.batch_size * 64,
    )
    step = NamedClickStep(model, table, crop_share=CROP_SHARE, noise=NOISE)
    train_part(step, PART, data, args, warmup=60, decay_from=0.33, workers=args.workers)
    copy_encoders(args.model, args.out / "model")


if __name__ == "__main__":
    main()
