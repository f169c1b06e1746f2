"""Trains the part that joins a click and a name (`named_click`) of a model; all else of it stays as it is.

    python -m train.named_click --data DATA --names vit_b_32_names.npz --crops crops.safetensors --out runs/named

The data are those of `train.tiny`. In a first part the model is asked for objects by a click, by their name or their
crop's embedding, and by both; its answers go to `OUT/answers`. In the second the part learns to draw the objects from
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

import textsam
from textsam.evaluation.geometry import farthest_from_boundary
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
FILE_PICTURES = 8


@dataclass
class Answered:
    """What the frozen model said to one click and name; half precision but for the truth."""

    maps: Tensor  # (MAPS, S/4, S/4), of `NamedClickAnswers`
    stride4: Tensor  # (C/8, S/4, S/4) and
    stride8: Tensor  # (C/4, S/8, S/8) and
    stride16: Tensor  # (C, S/16, S/16) of the picture
    mask: Tensor  # (S/4, S/4) uint8, the share of each cell in 1/255
    known: Tensor  # (S/4, S/4) bool

    def mirrored(self) -> Answered:
        """Left and right changed; the picture's features are about those of the mirrored picture."""
        return Answered(*(each.flip(-1) for each in vars(self).values()))


class Asker(TextSamStep):
    """Asks the model for the objects of samples."""

    @torch.no_grad()
    def forward(self, samples: list[Sample], generator: torch.Generator) -> dict[str, Tensor]:
        """The fields of `Answered` of N objects, the pictures' own for B pictures, and "picture", (N,)."""
        config, device = self.model.config, self.model.device
        pixels = torch.stack([sample.pixels for sample in samples]).float()
        mean, std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
        image = self.model.encode_image(((pixels - mean) / std).contiguous(memory_format=torch.channels_last))
        objects, named = self._objects(samples, generator)
        objects = objects.take(named.nonzero()[:, 0].to(device))
        clicks = _centred(objects, torch.rand(len(objects.masks), generator=generator) < CENTRED)
        labels = torch.ones(len(clicks), 1, dtype=torch.int64, device=device)
        answers = self.model.ask_named_clicks(image, clicks[:, None], labels, objects.text, objects.image_index)
        assert image.high_res_features is not None  # noqa: S101 (for the type checker)
        return {
            "maps": answers.maps().half(),
            "stride4": image.high_res_features[0].half(),
            "stride8": image.high_res_features[1].half(),
            "stride16": image.image_embeddings.half(),
            "mask": (255 * objects.masks).round().to(torch.uint8),
            "known": objects.weights > 0,
            "picture": objects.image_index,
        }


def write_answers(asker: Asker, data: CocoSamples, pictures: int, folder: Path) -> list[Path]:
    """Answers to the objects of so many pictures, a file for each 8 of them; files that are there are left."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{first:06d}.safetensors" for first in range(0, pictures, FILE_PICTURES)]
    for number, file in enumerate(track(files, description="asking")):
        if not file.exists():
            first = number * FILE_PICTURES
            samples = [data[i] for i in range(first, min(first + FILE_PICTURES, pictures))]
            tensors = asker(samples, torch.Generator().manual_seed(number))
            save_file({name: each.contiguous() for name, each in tensors.items()}, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    return files


class Answers(Dataset):
    """Answers of files, drawn at random, half of them mirrored."""

    def __init__(self, files: Sequence[Path], length: int, seed: int) -> None:
        self.files, self.length, self.seed = [safe_open(file, "pt") for file in files], length, seed
        counts = [file.get_slice("mask").get_shape()[0] for file in self.files]
        self.places = [(number, row) for number, count in enumerate(counts) for row in range(count)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Answered:
        rng = np.random.default_rng((self.seed, index))
        number, row = self.places[rng.integers(len(self.places))]
        file = self.files[number]
        picture = int(file.get_slice("picture")[row])
        rows = {"stride4": picture, "stride8": picture, "stride16": picture}
        answered = Answered(
            **{each.name: file.get_slice(each.name)[rows.get(each.name, row)] for each in fields(Answered)}
        )
        return answered.mirrored() if rng.random() < 0.5 else answered


class NamedClickStep(nn.Module):
    """Losses of things drawn from a click and a name."""

    samples_on_device = True

    def __init__(self, model: TextSamModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: list[Answered], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, and under names that begin with "_" the mean IoU of clicks alone, before and after."""
        values = [torch.stack([getattr(sample, each.name) for sample in samples]).float() for each in fields(Answered)]
        maps, mask, known = values[0], values[-2][:, None] / 255, values[-1][:, None]
        logits = self.model.named_click.correct(*values[:-2]).float()
        return {
            "bce": bce_loss(logits, mask, balance(mask, known)).mean(),
            "iou": 2 * (1 - soft_iou(logits.sigmoid(), mask, known).mean()),
            "_click": mask_iou(maps[:, 2:3], mask, known).mean(),
            "_before": mask_iou(maps[:, :1], mask, known).mean(),
            "_after": mask_iou(logits, mask, known).mean(),
        }


def _centred(objects: Objects, chosen: Tensor) -> Tensor:
    """The clicks (N, 2), of the chosen objects at the point that is farthest from the mask's outline."""
    clicks = objects.clicks.clone()
    known = ((objects.masks > 0.5) & (objects.weights > 0)).cpu().numpy()
    for row in chosen.nonzero()[:, 0].tolist():
        if known[row].any():
            x, y, _ = farthest_from_boundary(known[row])
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
    parser.add_argument("--pictures", type=int, default=4000, help="to ask about, as training sees them")
    add_run_arguments(parser, steps=4000, batch_size=24, lr=1.5e-3)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    sam = textsam.load(args.model, dtype="float32", device="cpu")
    model = with_named_click(sam.model).eval()
    table, names = embedding_table(args.names, args.crops)
    data = CocoSamples(
        sources_of(args.data),
        NameIndex(sam.text_encoder.vocabulary, {name: i for i, name in enumerate(names)}),
        size=model.config.image_size,
        instances=args.instances,
        seed=args.seed,
        length=args.pictures,
    )
    asker = Asker(model, table, crop_share=CROP_SHARE, noise=NOISE)
    files = write_answers(asker, data, args.pictures, args.out / "answers")
    answers = Answers(files, args.steps * args.batch_size, args.seed)
    train_part(NamedClickStep(model), PART, answers, args, warmup=60, decay_from=0.33)
    copy_encoders(args.model, args.out / "model")


if __name__ == "__main__":
    main()
