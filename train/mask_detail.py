"""Trains the part that redraws masks near by (`mask_detail`) of a model; all else of it stays as it is.

    python -m train.mask_detail --data DATA --out runs/detail             # --resume goes on

DATA holds a folder per set with `train.json` (COCO instances) and `images/`; VOC's `train_semantic.json` tells what
is unknown. In a first part the model is asked for objects by exact and noisy boxes, clicks and names, and the crops
around its masks go to `OUT/crops`. The second part trains on them: the model itself is no longer needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import textsam
from textsam.files.coco import load_coco
from textsam.files.coco_structures import CocoImage, Region
from textsam.language.vocabulary import UnknownNameError
from textsam.model import TextSamModel
from textsam.predictor import TextSam
from textsam.prompting.mask_details import Crop
from train.losses import mask_iou
from train.ocr import copy_encoders
from train.parts import add_run_arguments, rebuilt, train_part

PART = "mask_detail."
# Set -> every how many of its photos are used: those with many photos, or the same again, would drown the others.
SETS = {"coco": 1, "voc": 3, "ccp": 3, "facade": 3, "ecssd": 2, "balloon": 1, "pennfudan": 3}
EXACT, NOISY, CLICKED, NAMED = 3, 2, 2, 2  # masks of each photo by these prompts
CLICK_TRIES, LEAST_CLICK_IOU, LEAST_NAME_IOU = 4, 0.35, 0.4
BOX_NOISE, MOST_BOX_NOISE_PX = 0.1, 20


@dataclass
class DetailCrop:
    """A crop around one mask, S px square."""

    pixels: Tensor  # (3, S, S) uint8
    logits: Tensor  # (S, S) float16, the decoder's
    box: Tensor  # (S, S) uint8: 255 inside of the box asked for, 128 everywhere without one
    mask: Tensor  # (S, S) bool, the truth
    unknown: Tensor  # (S, S) bool, not to be scored


def crops_of(
    sam: TextSam, image: CocoImage, void: np.ndarray, by_name: bool, names: dict[int, str], unions: bool
) -> Iterator[DetailCrop]:
    """Crops of some objects of one photo.

    Args:
        void: (H, W) bool, where the truth is not known. by_name: ask for names, too. names: of the category ids.
        unions: of a name, all its objects together are a truth, too: some of them touch.
    """
    regions, rng = list(image.instances), np.random.default_rng((7, image.id))
    if not regions:
        return
    pixels = image.read()
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels)
    sam.set_image(pixels)
    chosen = rng.permutation(len(regions))[: EXACT + NOISY + 1]
    masks = [regions[i].mask() for i in chosen]
    masks = [mask for mask in masks if mask.any()]
    if not masks:
        return

    def crop(found: object, row: int, truth: np.ndarray, box: np.ndarray | None) -> Iterator[DetailCrop]:
        around = Crop.around(found.mask[row])  # type: ignore[attr-defined]
        if around is not None:
            logits = torch.from_numpy(found.data["low_res_logits"][row])  # type: ignore[attr-defined]
            cuts = [around.of_picture(Image.fromarray(each.astype(np.uint8) * 255)) > 127 for each in (truth, ~void)]
            cuts[1] = ~cuts[1]  # beyond the photo nothing is known either
            inside = np.full(cuts[0].shape, 128) if box is None else around.of_box(box) * 255
            yield DetailCrop(
                torch.from_numpy(around.of_picture(picture).copy()).permute(2, 0, 1),
                around.of_logits(logits, sam._current_image().geometry).half(),
                torch.from_numpy(inside.astype(np.uint8)),
                *map(torch.from_numpy, cuts),
            )

    boxes = np.array([_box(mask) for mask in masks], float)
    noise = rng.normal(0, BOX_NOISE, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noise = noise.clip(-MOST_BOX_NOISE_PX, MOST_BOX_NOISE_PX)
    noise[:EXACT] = 0
    boxes = (boxes + noise).clip(0, [width, height, width, height])
    boxes[:, :2] = np.minimum(boxes[:, :2], boxes[:, 2:] - 1).clip(0)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1).clip(0, [width, height])
    found = sam.predict(boxes=boxes[: EXACT + NOISY], return_logits=True)
    for row, number in enumerate(found.data["prompt_index"]):
        yield from crop(found, row, masks[number], boxes[number])

    points = []
    for mask in masks[:CLICK_TRIES]:
        ys, xs = np.nonzero(mask)
        place = rng.integers(len(ys))
        points.append([[xs[place] + 0.5, ys[place] + 0.5]])
    found = sam.predict(points=np.array(points), return_logits=True)
    ious = [_iou(found.mask[row], masks[number]) for row, number in enumerate(found.data["prompt_index"])]
    for row in [row for row, iou in enumerate(ious) if iou > LEAST_CLICK_IOU][:CLICKED]:
        yield from crop(found, row, masks[found.data["prompt_index"][row]], None)
    if by_name:
        yield from _named(sam, regions, names, rng, unions, crop)


def _named(sam, regions: Sequence[Region], names, rng, unions: bool, crop) -> Iterator[DetailCrop]:  # type: ignore[no-untyped-def]
    by_name: dict[str, list[Region]] = {}
    for region in regions:
        by_name.setdefault(names[region.category_id], []).append(region)
    asked = [str(name) for name in rng.permutation(sorted(by_name))[:NAMED]]
    try:
        found = sam.predict(text=asked, return_logits=True)
    except UnknownNameError:
        return
    kept = 0
    for row in range(len(found)):
        truths = [region.mask() for region in by_name[asked[int(found.class_id[row])]]]
        if unions:
            truths.append(np.any(truths, axis=0))
        ious = [_iou(found.mask[row], truth) for truth in truths]
        if kept < NAMED and max(ious) > LEAST_NAME_IOU:
            kept += 1
            yield from crop(found, row, truths[int(np.argmax(ious))], None)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def write_crops(sam: TextSam, data: Path, folder: Path) -> list[Path]:
    """Crops of each set in a file of its own; files that are there are left.

    Raises:
        FileNotFoundError: none of the sets is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, step in SETS.items():
        source = data / name / "train.json"
        if not source.exists():
            continue
        file = folder / f"{name}.safetensors"
        files.append(file)
        if file.exists():
            continue
        dataset = load_coco(source)
        semantic = source.with_name("train_semantic.json")
        unknown = {image.id: image for image in load_coco(semantic)} if semantic.exists() else {}
        crops: list[DetailCrop] = []
        for number, image in enumerate(track(list(dataset)[::step], description=name)):
            void = unknown.get(image.id, image).ignore_mask()
            by_name = semantic.exists() or number % 2 == 0
            crops += crops_of(sam, image, void, by_name, dataset.categories, name in ("voc", "ecssd"))
        tensors = {key: torch.stack([getattr(crop, key) for crop in crops]).contiguous() for key in vars(crops[0])}
        save_file(tensors, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    if not files:
        raise FileNotFoundError(f"there is no train.json of {', '.join(SETS)} under {data}")
    return files


class DetailCrops(Dataset):
    """Crops of files, drawn at random, half of them mirrored."""

    def __init__(self, files: Sequence[Path], length: int, seed: int) -> None:
        parts = [load_file(file) for file in files]
        self.tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> DetailCrop:
        rng = np.random.default_rng((self.seed, index))
        row, mirrored = rng.integers(len(self.tensors["mask"])), rng.random() < 0.5
        crop = {name: values[row] for name, values in self.tensors.items()}
        return DetailCrop(**{name: value.flip(-1) if mirrored else value for name, value in crop.items()})


class MaskDetailStep(nn.Module):
    """Losses of masks redrawn near by. Colours are changed a little, each channel for itself."""

    samples_on_device = True

    def __init__(self, model: TextSamModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: list[DetailCrop], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, and under names that begin with "_" the mean IoU before and after."""
        pixels, logits, box, mask, unknown = (
            torch.stack([getattr(sample, name) for sample in samples]).float() for name in vars(samples[0])
        )
        logits, box, mask, known = (x[:, None] for x in (logits, box / 255, mask, 1 - unknown))
        draws = torch.rand(2, len(pixels), 3, 1, 1, generator=generator).to(pixels) - 0.5
        pixels = 120 + (pixels - 120) * (1 + 0.2 * draws[0]) + 12 * draws[1]
        drawn = self.model.mask_detail(pixels, logits, box).float()
        each = F.binary_cross_entropy_with_logits(drawn, mask, reduction="none")
        return {
            "bce": (each * known).mean(),
            "iou": 1 - _soft_iou(drawn.sigmoid(), mask, known).mean(),
            "_before": mask_iou(logits, mask, known).mean(),
            "_after": mask_iou(drawn, mask, known).mean(),
        }


def _soft_iou(probability: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """(N,), differentiable: what is shared counts by its probability."""
    both = (probability * mask * known).sum((1, 2, 3))
    return both / (((probability + mask) * known).sum((1, 2, 3)) - both + 1e-6)


def with_detail(model: TextSamModel) -> TextSamModel:
    """The model with the part, which adds nothing as yet."""
    return model if model.config.mask_detail else rebuilt(model, PART, mask_detail=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="textsam-tiny", help="name or folder of the model")
    parser.add_argument("--data", required=True, type=Path)
    add_run_arguments(parser, steps=2200, batch_size=24, lr=2e-3)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    sam = textsam.load(args.model, dtype="float32", device="cpu")
    files = write_crops(sam, args.data, args.out / "crops")
    model = with_detail(sam.model)
    crops = DetailCrops(files, args.steps * args.batch_size, args.seed)
    train_part(MaskDetailStep(model), PART, crops, args, warmup=60, decay_from=0.33)
    copy_encoders(args.model, args.out / "model")


if __name__ == "__main__":
    main()
