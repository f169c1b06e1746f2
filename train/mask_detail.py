"""Trains the part that redraws masks near by (`mask_detail`) of a model; all else of it stays as it is.

    python -m train.mask_detail --data DATA --out runs/detail             # --resume goes on

DATA holds a folder per set with `train.json` (COCO instances) and `images/`; VOC's `train_semantic.json` tells what
is unknown. In a first part the model is asked for objects by exact and noisy boxes, clicks and names, and the crops
around its masks go to `OUT/crops`. The second part trains on them.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import textsam
from textsam.evaluation.geometry import farthest_from_boundary, next_click
from textsam.evaluation.metrics import mask_iou, tight_boxes
from textsam.files.coco import load_coco
from textsam.files.coco_structures import CocoImage
from textsam.files.runs import weights_identity
from textsam.language.vocabulary import UnknownNameError
from textsam.model import TextSamModel
from textsam.predictor import TextSam
from textsam.prompting.mask_details import CLICK_SIDE, DETAIL_SIDE, Asked, Crop, extents_of_logits, redraw
from train import command, losses
from train.loop import refuse_a_new_start
from train.ocr import copy_encoders
from train.parts import add_run_arguments, rebuilt, train_part

if TYPE_CHECKING:
    import supervision as sv

PART = "mask_detail."
# Set -> every how many of its photos are used: those with many photos, or the same again, would drown the others.
SETS = {"coco": 1, "voc": 1, "ccp": 2, "facade": 2, "ecssd": 1, "balloon": 1, "pennfudan": 1}
# Set -> how often a crop of it is drawn: VOC leaves its outlines unknown, of which there is most to learn.
SHARES = {"voc": 0.4}
EXACT, NOISY, CLICKED, NAMED = 3, 2, 3, 2  # objects of each photo by these prompts
MOST_CLICKS, CROPS_OF_CLICKS = 5, 2  # of one object
LEAST_CLICK_IOU, LEAST_NAME_IOU = 0.3, 0.4
BOX_NOISE, MOST_BOX_NOISE_PX = 0.1, 20
SAID = 0.5  # of clicks: the name of the thing
UNSAID = 0.5  # of boxes and clicks: redrawn as if nothing had been said
SIDES = (CLICK_SIDE, 160, DETAIL_SIDE)  # px of the crops of a batch; what holds between them holds for them


@dataclass
class DetailCrop:
    """A crop around one mask, S px square."""

    pixels: Tensor  # (3, S, S) uint8
    logits: Tensor  # (S/2, S/2) float16, the decoder's
    box: Tensor  # (4,) and
    points: Tensor  # (K, 2) and
    labels: Tensor  # (K,): the prompt, as `Crop.of_prompt` gives it
    text: Tensor  # (D,) float16, of its name; zeros where the model does not know it
    mask: Tensor  # (S, S) bool, the truth
    unknown: Tensor  # (S, S) bool, not to be scored

    def mirrored(self) -> DetailCrop:
        """Left and right changed."""
        left_right = (each.flip(-1) for each in (self.pixels, self.logits))
        box = torch.stack([1 - self.box[2], self.box[1], 1 - self.box[0], self.box[3]])
        points = torch.stack([1 - self.points[:, 0], self.points[:, 1]], dim=1)
        return DetailCrop(*left_right, box, points, self.labels, self.text, self.mask.flip(-1), self.unknown.flip(-1))

    def without_text(self) -> DetailCrop:
        """As if it had not been said what to look for."""
        return replace(self, text=self.text * 0)


@dataclass
class Truth:
    """An object, or all of a name."""

    mask: np.ndarray  # (H, W) bool
    name: str


@dataclass
class Photo:
    """A photo that is asked for its objects, and what is not known of it."""

    sam: TextSam
    picture: Image.Image
    void: np.ndarray  # (H, W) bool

    def crop(self, found: sv.Detections, row: int, truth: Truth, asked: Asked) -> Iterator[DetailCrop]:
        """Around one mask that was found, nothing around an empty one; asked: its prompt (N = 1)."""
        geometry = self.sam._current_image().geometry
        logits = torch.from_numpy(found.data["low_res_logits"][row])
        extent = extents_of_logits(logits[None], geometry)[0]
        if extent is None:
            return
        around = Crop.around(extent, asked)
        cuts = [
            around.of_picture(Image.fromarray(each.astype(np.uint8) * 255)) > 127 for each in (truth.mask, ~self.void)
        ]
        cuts[1] = ~cuts[1]  # beyond the photo nothing is known either
        box, points, labels = around.of_prompt(asked)
        more = MOST_CLICKS - len(labels)
        yield DetailCrop(
            torch.from_numpy(around.of_picture(self.picture).copy()).permute(2, 0, 1),
            F.avg_pool2d(around.of_logits(logits, geometry)[None], 2)[0].half(),
            box,
            F.pad(points, (0, 0, 0, more)),
            F.pad(labels, (0, more), value=-1),
            self.text(truth.name),
            *map(torch.from_numpy, cuts),
        )

    def text(self, name: str) -> Tensor:
        """(D,) float16 of a name, zeros when the model does not know it."""
        try:
            return self.sam._embed([name])[0].half()
        except UnknownNameError:
            return torch.zeros(self.sam.model.config.clip_dim, dtype=torch.float16)

    def boxed(self, truths: Sequence[Truth], rng: np.random.Generator) -> Iterator[DetailCrop]:
        """By boxes, those behind the first ones not exact."""
        width, height = self.picture.size
        boxes = tight_boxes(np.stack([truth.mask for truth in truths]))
        noise = rng.normal(0, BOX_NOISE, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        noise = noise.clip(-MOST_BOX_NOISE_PX, MOST_BOX_NOISE_PX)
        noise[:EXACT] = 0
        boxes = (boxes + noise).clip(0, [width, height, width, height])
        boxes[:, :2] = np.minimum(boxes[:, :2], boxes[:, 2:] - 1).clip(0)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1).clip(0, [width, height])
        found = self.sam.predict(boxes=boxes, return_logits=True)
        for row, number in enumerate(found.data["prompt_index"]):
            yield from self.crop(found, row, truths[number], Asked(boxes=boxes[number][None]))

    def clicked(self, truth: Truth, rng: np.random.Generator) -> Iterator[DetailCrop]:
        """By a first click, with its name or without, and then by corrections of what came; some of the masks on the
        way."""
        ys, xs = np.nonzero(truth.mask & ~self.void)
        if not len(ys):
            return
        place = rng.integers(len(ys))
        deepest = farthest_from_boundary(truth.mask & ~self.void)[:2]
        clicks = [(*deepest, 1) if rng.random() < 0.5 else (xs[place], ys[place], 1)]
        said = [truth.name] if self.text(truth.name).any() and rng.random() < SAID else None
        kept = {1, *rng.choice(np.arange(2, MOST_CLICKS + 1), CROPS_OF_CLICKS - 1, replace=False)}
        logits = None
        while len(clicks) <= max(kept):
            points, labels = np.array(clicks, float)[None, :, :2], np.array(clicks, int)[None, :, 2]
            found = self.sam.predict(
                text=said,
                points=points,
                point_labels=labels,
                mask_input=logits,
                multimask_output=logits is None and said is None,
                return_logits=True,
            )
            masks: Any = found.mask
            row = int(np.argmax(found.data["predicted_iou"]))
            logits = found.data["low_res_logits"][row][None]
            if len(clicks) in kept and mask_iou(masks[row][None], truth.mask[None])[0] > LEAST_CLICK_IOU:
                yield from self.crop(found, row, truth, Asked(points=points, labels=labels))
            click = next_click(masks[row], truth.mask, self.void)
            if click is None:
                return
            clicks.append(click)

    def named(self, names: Sequence[str], truths: Sequence[Sequence[np.ndarray]]) -> Iterator[DetailCrop]:
        """By names, the masks of each being its truths."""
        try:
            found = self.sam.predict(text=list(names), return_logits=True)
        except UnknownNameError:
            return
        kept = 0
        masks: Any = found.mask
        class_id: Any = found.class_id
        for row in range(len(found)):
            possible = np.stack(truths[int(class_id[row])])
            ious = mask_iou(np.broadcast_to(masks[row], possible.shape), possible)
            if kept < NAMED and ious.max() > LEAST_NAME_IOU:
                kept += 1
                name = names[int(class_id[row])]
                yield from self.crop(found, row, Truth(possible[int(ious.argmax())], name), Asked())


def crops_of(
    sam: TextSam, image: CocoImage, void: np.ndarray, by_name: bool, names: dict[int, str], unions: bool
) -> Iterator[DetailCrop]:
    """Crops of some objects of one photo.

    Args:
        void: (H, W) bool, where the truth is not known. by_name: ask for names, too. names: of the category ids.
        unions: of a name, all its objects together are a truth, too: some of them touch.
    """
    regions, rng = (
        list(image.instances),
        np.random.default_rng((7, image.id if isinstance(image.id, int) else zlib.crc32(image.id.encode()))),
    )
    chosen = [regions[i] for i in rng.permutation(len(regions))[: EXACT + NOISY]]
    truths = [Truth(region.mask(), names[region.category_id]) for region in chosen]
    truths = [truth for truth in truths if truth.mask.any()]
    if not truths:
        return
    pixels = image.read()
    sam.set_image(pixels)
    photo = Photo(sam, Image.fromarray(pixels), void)
    yield from photo.boxed(truths, rng)
    for truth in truths[::-1][:CLICKED]:
        yield from photo.clicked(truth, rng)
    if by_name:
        of_name: dict[str, list[np.ndarray]] = {}
        for region in regions:
            of_name.setdefault(names[region.category_id], []).append(region.mask())
        asked = [str(name) for name in rng.permutation(sorted(of_name))[:NAMED]]
        of_asked = [[*of_name[name], *([np.any(of_name[name], axis=0)] if unions else [])] for name in asked]
        yield from photo.named(asked, of_asked)


def write_crops(sam: TextSam, data: Path, folder: Path, source: dict[str, str]) -> list[Path]:
    """Crops of each set in a file of its own; files of the same source that are there are left.

    Args:
        source: what the crops are made of, kept in the files: those of another model would be wrong.
    Raises:
        FileNotFoundError: none of the sets is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, step in SETS.items():
        annotations = data / name / "train.json"
        if not annotations.exists():
            continue
        file = folder / f"{name}.safetensors"
        files.append(file)
        if file.exists() and safe_open(file, "pt").metadata() == source:
            continue
        dataset = load_coco(annotations)
        semantic = annotations.with_name("train_semantic.json")
        unknown = {image.id: image for image in load_coco(semantic)} if semantic.exists() else {}
        crops: list[DetailCrop] = []
        for number, image in enumerate(track(list(dataset)[::step], description=name)):
            void = unknown.get(image.id, image).ignore_mask()
            by_name = semantic.exists() or number % 2 == 0
            crops += crops_of(sam, image, void, by_name, dataset.categories, name in ("voc", "ecssd"))
        names = (
            vars(crops[0]) if crops else ()
        )  # no object in any of them: a file all the same, or they are asked again
        tensors = {key: torch.stack([getattr(crop, key) for crop in crops]).contiguous() for key in names}
        save_file(tensors, file.with_suffix(".part"), source)
        file.with_suffix(".part").replace(file)
    if not files:
        raise FileNotFoundError(f"there is no train.json of {', '.join(SETS)} under {data}")
    return files


class DetailCrops(Dataset):
    """Crops of files, drawn at random, half of them mirrored.

    Raises:
        ValueError: the files hold none.
    """

    def __init__(self, files: Sequence[Path], length: int, seed: int) -> None:
        filled = {file.stem: part for file in files if (part := load_file(file))}
        if not filled:
            raise ValueError("the model found no object in any photo: give --data with annotated objects")
        self.parts = list(filled.values())
        weights = [len(part["mask"]) * SHARES.get(name, 1.0) for name, part in filled.items()]
        self.chances = np.array(weights) / sum(weights)
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> DetailCrop:
        rng = np.random.default_rng((self.seed, index))
        part = self.parts[int(rng.choice(len(self.parts), p=self.chances))]
        row, mirrored = rng.integers(len(part["mask"])), rng.random() < 0.5
        crop = DetailCrop(**{name: values[row] for name, values in part.items()})
        if rng.random() < UNSAID and (crop.box.isfinite().all() or (crop.labels >= 0).any()):
            crop = crop.without_text()
        return crop.mirrored() if mirrored else crop


class MaskDetailStep(nn.Module):
    """Losses of masks redrawn near by. Colours are changed a little, each channel for itself, and so is the size."""

    samples_on_device = True

    def __init__(self, model: TextSamModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: list[DetailCrop], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, and under names that begin with "_" the mean IoU before and after."""
        fields = (torch.stack([getattr(sample, name) for sample in samples]).float() for name in vars(samples[0]))
        pixels, logits, boxes, points, labels, texts, mask, unknown = fields
        side = SIDES[int(torch.randint(len(SIDES), (1,), generator=generator))]
        pixels, logits, mask, unknown = (
            F.interpolate(each, (side, side), mode="bilinear", align_corners=False, antialias=each.shape[-1] > side)
            for each in (pixels, logits[:, None], mask[:, None], unknown[:, None])
        )
        mask, known = (mask > 0.5).float(), (unknown < 0.5).float()
        draws = torch.rand(2, len(pixels), 3, 1, 1, generator=generator).to(pixels) - 0.5
        pixels = (120 + (pixels - 120) * (1 + 0.2 * draws[0]) + 12 * draws[1]).clamp(0, 255)
        self.model.eval()  # all but the part is as in use
        drawn = redraw(self.model, pixels, logits, boxes, points, labels, texts).float()
        each = F.binary_cross_entropy_with_logits(drawn, mask, reduction="none")
        return {
            "bce": (each * known).mean(),
            "iou": 1 - _soft_iou(drawn.sigmoid(), mask, known).mean(),
            "_before": losses.mask_iou(logits, mask, known).mean(),
            "_after": losses.mask_iou(drawn, mask, known).mean(),
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
    parser.add_argument("--data", required=True, type=command.folder)
    add_run_arguments(parser, steps=2400, batch_size=16, lr=1.5e-3)
    args = parser.parse_args(arguments)
    refuse_a_new_start(args.out, args.resume)
    torch.manual_seed(args.seed)
    sam = textsam.load(args.model, dtype="float32", device="cpu")
    model, sam.model.config.mask_detail = with_detail(sam.model), False  # asked without the part
    source = {"model": json.dumps([args.model, weights_identity(args.model)]), "data": str(args.data.resolve())}
    files = write_crops(sam, args.data, args.out / "crops", source)
    model.config.mask_detail = True
    crops = DetailCrops(files, args.steps * args.batch_size, args.seed)
    train_part(MaskDetailStep(model), PART, crops, args, warmup=60, decay_from=0.33)
    copy_encoders(args.model, args.out / "model")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
