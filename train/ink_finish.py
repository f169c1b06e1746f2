"""Trains the last drawing of ink (`finish_masks`) of a model that draws ink; all else of it stays as it is.

    python -m train.ink_finish --photos PHOTOS --out runs/finish          # --resume goes on

In a first part scenes of synthetic text are read as in use, each tile in two places, and crops of what was drawn go to
`OUT/crops`. The second part trains on them, which takes minutes: the model itself is no longer needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import textsam
from textsam.files.runs import weights_identity
from textsam.model import TextSamModel
from textsam.modeling.fine_masks import FineDrawing
from textsam.text_regions.maps import STROKE, LastDrawing, join_views, model_reader
from textsam.text_regions.reader import TextRegionReader
from textsam.text_regions.tiles import TileGrid
from train import command
from train.loop import refuse_a_new_start
from train.ocr import copy_encoders
from train.parts import add_run_arguments, rebuilt, train_part
from train.synthetic_text import SyntheticText
from train.text_scenes import SceneOptions

PART = "fine_masks.finish."
SIDE, CROPS, TRIES, LEAST_INK = 160, 2, 30, 0.02
FILE_SCENES = 25
FRAME = (1280, 720)


@dataclass
class InkCrop:
    """A part of a tile, S px square."""

    pixels: Tensor  # (3, S, S), normalised
    features: Tensor  # (F, S/2, S/2)
    logits: Tensor  # (S, S), the mean of two views
    difference: Tensor  # (S, S) >= 0, of the views
    strokes: Tensor  # (S, S) bool, the truth


def crops_of(reader: TextRegionReader, picture: np.ndarray, strokes: np.ndarray, seed: int) -> Iterator[InkCrop]:
    """Some crops with ink of each tile of a picture (H, W, 3) uint8, whose ink is (H, W) bool."""
    side, options = reader.config.tile, reader.options
    sides = [int(side * factor) // 16 * 16 for factor in options.tile_range]
    every = sorted(range(sides[0], sides[1] + 1, 16), key=lambda each: abs(each - side))
    grid = TileGrid.cheapest(strokes.shape, every, options.overlap)
    least = options.least_presence(STROKE)
    read = model_reader(reader.model, reader.encode, [STROKE], reader.embed([STROKE]), least)
    fill = reader.model.config.pixel_mean
    rng = np.random.default_rng((5, seed))
    for left, top in grid:
        answer = read(grid.cut(picture, left, top, fill))
        if answer.strokes is None or not isinstance(answer.finish, LastDrawing):
            continue
        moved = {
            (right, down): read(grid.cut(picture, left + right, top + down, fill)).strokes
            for right, down in options.stroke_shifts
            if left + right < strokes.shape[1] and top + down < strokes.shape[0]
        }
        mean, difference = join_views(answer.strokes, moved)
        true = strokes[top : top + grid.side, left : left + grid.side]
        yield from _inked(answer.finish.drawing, mean, difference, true, rng)


def _inked(
    drawing: FineDrawing, mean: np.ndarray, difference: np.ndarray, true: np.ndarray, rng: np.random.Generator
) -> Iterator[InkCrop]:
    height, width = true.shape
    ink = (mean[:height, :width] > 0) | true
    kept = 0
    for _ in range(TRIES if min(height, width) >= SIDE else 0):
        # Even, so that the halves of pixels of the features are whole.
        y, x = (2 * int(rng.integers((length - SIDE) // 2 + 1)) for length in (height, width))
        place, half = np.s_[y : y + SIDE, x : x + SIDE], np.s_[y // 2 : (y + SIDE) // 2, x // 2 : (x + SIDE) // 2]
        if ink[place].mean() < LEAST_INK:
            continue
        yield InkCrop(
            drawing.pixels[0][(slice(None), *place)].half(),
            drawing.features[0][(slice(None), *half)].half(),
            torch.from_numpy(mean[place]).half(),
            torch.from_numpy(difference[place]).half(),
            torch.from_numpy(true[place].copy()),
        )
        kept += 1
        if kept == CROPS:
            return


def write_crops(
    reader: TextRegionReader, scenes: SyntheticText, count: int, folder: Path, source: dict[str, str]
) -> list[Path]:
    """Crops of the first scenes, a file for each 25 of them; files of the same source that are there are left.

    Args:
        source: what the crops are made of, kept in the files: those of another model would be wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [range(first, min(first + FILE_SCENES, count)) for first in range(0, count, FILE_SCENES)]
    files = [folder / f"{part[0]:06d}-{part[-1]:06d}.safetensors" for part in parts]
    for part, file in track(list(zip(parts, files, strict=True)), description="reading scenes"):
        if file.exists() and safe_open(file, "pt").metadata() == source:
            continue
        crops: list[InkCrop] = []
        for index in part:
            scene = scenes[index]
            crops += crops_of(reader, scene.pixels, scene.strokes > 0, index)
        names = vars(crops[0]) if crops else ()  # no ink in any of them: a file all the same, or they are read again
        tensors = {name: torch.stack([getattr(crop, name) for crop in crops]).contiguous() for name in names}
        save_file(tensors, file.with_suffix(".part"), source)
        file.with_suffix(".part").replace(file)
    return files


class InkCrops(Dataset):
    """Crops of files, drawn at random.

    Raises:
        ValueError: the files hold none.
    """

    def __init__(self, files: Sequence[Path], length: int, seed: int) -> None:
        opened = [safe_open(file, "pt") for file in files]
        self.files, self.length, self.seed = [file for file in opened if file.keys()], length, seed
        counts = [file.get_slice("strokes").get_shape()[0] for file in self.files]
        self.places = [(number, row) for number, count in enumerate(counts) for row in range(count)]
        if not self.places:
            raise ValueError("the model found no ink in any scene: give more --scenes, or another --model")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> InkCrop:
        number, row = self.places[np.random.default_rng((self.seed, index)).integers(len(self.places))]
        file = self.files[number]
        return InkCrop(**{name: file.get_slice(name)[row] for name in file.keys()})  # noqa: SIM118 (not a dict)


class InkFinishStep(nn.Module):
    """Losses of the last drawing."""

    samples_on_device = True

    def __init__(self, model: TextSamModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: list[InkCrop], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, and under names that begin with "_" the IoU before and after."""
        pixels, features, logits, difference, strokes = (
            torch.stack([getattr(sample, name) for sample in samples]).float() for name in vars(samples[0])
        )
        logits, difference, strokes = (x[:, None] for x in (logits, difference, strokes))
        last = self.model.fine_masks.finish_drawing(FineDrawing(logits, features, pixels), logits, difference).float()
        probability = last.sigmoid()
        return {
            "bce": 2 * F.binary_cross_entropy_with_logits(last, strokes),
            # Of the whole batch, as the score is of all pictures together: an empty crop weighs by what is wrong in it.
            "iou": 1 - _iou(probability, strokes),
            "_before": _iou((logits > 0).float(), strokes),
            "_after": _iou((last > 0).float(), strokes),
        }


def _iou(one: Tensor, other: Tensor) -> Tensor:
    both = (one * other).sum()
    return both / (one.sum() + other.sum() - both)


def with_finish(model: TextSamModel) -> TextSamModel:
    """The model with the part for a last drawing, which starts as what the drawing before it has learned, adding
    nothing.

    Raises:
        ValueError: the model draws no ink.
    """
    if not model.config.fine_masks:
        raise ValueError("the last drawing goes on from a first: train the model with --fine-masks of train.ocr before")
    if model.config.finish_masks:
        return model
    wider = rebuilt(model, PART, finish_masks=True)
    finish, redraw = wider.fine_masks.finish, model.fine_masks.redraw
    with torch.no_grad():
        finish.first.weight[:, : redraw.first.in_channels] = redraw.first.weight
        finish.first.weight[:, redraw.first.in_channels :] = 0  # the differences, which it has yet to learn of
        finish.first.bias.copy_(redraw.first.bias)
        finish.second.load_state_dict(redraw.second.state_dict())
    return wider


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="textsam-tiny-ocr", help="name or folder of a model that draws ink")
    parser.add_argument("--photos", nargs="+", required=True, help="folders of photos without text, to write on")
    parser.add_argument(
        "--scenes", type=command.at_least(1), default=800, help=f"of {FRAME[0]} x {FRAME[1]} px, to read"
    )
    parser.add_argument(
        "--hangul-scenes", type=command.at_least(0), default=0, help="further ones, with Hangul and nothing else"
    )
    add_run_arguments(parser, steps=4000, batch_size=12, lr=1.5e-3)
    args = parser.parse_args(arguments)
    refuse_a_new_start(args.out, args.resume)
    sam = textsam.load(args.model, dtype="float32", device="cpu")
    if sam.text_reader is None:
        raise ValueError(f"{args.model} was not trained to find written text: start from textsam-tiny-ocr")
    torch.manual_seed(args.seed)
    sam.text_reader.model = model = with_finish(sam.model)
    photos = [str(Path(folder).resolve()) for folder in args.photos]
    source = {
        "model": json.dumps([args.model, weights_identity(args.model)]),
        "scenes": json.dumps([photos, args.seed]),
    }
    scenes = SyntheticText(args.photos, SceneOptions(FRAME, textless=0.05), args.seed)
    files = write_crops(sam.text_reader, scenes, args.scenes, args.out / "crops", source)
    if args.hangul_scenes:
        # Seeds are random streams: another one, or Hangul would stand where the other scenes have their words.
        of_hangul = SceneOptions(FRAME, textless=0.05, scripts=(("hangul", 1.0),))
        scenes = SyntheticText(args.photos, of_hangul, args.seed + 1)
        files += write_crops(sam.text_reader, scenes, args.hangul_scenes, args.out / "crops-hangul", source)
    crops = InkCrops(files, args.steps * args.batch_size, args.seed)
    train_part(InkFinishStep(model), PART, crops, args, warmup=50, decay_from=0.3, weight_decay=0.01)
    copy_encoders(args.model, args.out / "model")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
