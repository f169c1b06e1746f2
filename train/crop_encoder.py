"""Fit the head of the embedded crop encoder to CLIP's embeddings of the names of cropped objects, and measure it.

    python -m train.crop_encoder cache --data DATA --vocabulary weights/text_encoder/vocabulary.json \\
        --trunk mobilenet_v2_imagenet.safetensors --out crops.pt                            (about 6 minutes, 1 core)
    python -m train.crop_encoder fit --crops crops.pt --names vit_b_32_names.npz \\
        --trunk mobilenet_v2_imagenet.safetensors --out weights/crop_encoder                (half a minute)
    python -m train.crop_encoder score --crops crops.pt --names vit_b_32_names.npz --weights weights/crop_encoder

The trunk stays as ImageNet left it, so the pooled features of every crop are computed once. DATA holds folders with
`train.json`, `val.json` (COCO instances) and `images/`; or `labels.json` (file_name, name, split) for whole pictures.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from textsam.files.coco import load_coco
from textsam.files.images import read_image
from textsam.language.crops import square_crop
from textsam.language.small_clip import SmallCropEncoder
from textsam.language.vocabulary import Vocabulary
from train import command
from train.text_encoder import load_targets
from train.trunk_weights import CLASSIFIER, read_trunk

# Crops for training, by data set; the rest of a large set shows more of the same (windows of facades).
CAPS = {"voc": 4300, "coco": 2400, "ccp": 1500, "facade": 250, "pennfudan": 150, "balloon": 120, "caltech101": 1400}
MAX_SHARE_OF_NAME = {"facade": 100, "ccp": 120}  # crops of one name in one set
Crop = tuple[Path, dict[str, Any] | None, str]  # picture, mask (RLE; None: all of it), known name


def list_crops(data: Path, split: str, vocabulary: Vocabulary, rng: random.Random) -> dict[str, list[Crop]]:
    """Crops with a known name by data set; capped in training, whole in validation."""
    crops: dict[str, list[Crop]] = {}
    sets = {name: cap for name, cap in CAPS.items() if (data / name).is_dir()}
    if not sets:
        raise FileNotFoundError(f"{data} holds none of the folders {', '.join(CAPS)}")
    for name, cap in sets.items():
        found = list(_whole_pictures(data / name, split) if name == "caltech101" else _objects(data / name, split))
        known = [(path, rle, vocabulary.find(text)) for path, rle, text in found if text in vocabulary]
        rng.shuffle(known)
        if split == "train" or name in MAX_SHARE_OF_NAME:
            counts: dict[str, int] = defaultdict(int)
            kept = []
            for crop in known:
                counts[crop[2]] += 1
                if counts[crop[2]] <= MAX_SHARE_OF_NAME.get(name, cap):
                    kept.append(crop)
            known = kept[:cap]
        crops[name] = sorted(known, key=lambda crop: crop[0])
    return crops


def _objects(folder: Path, split: str) -> Iterator[Crop]:
    content = load_coco(folder / f"{split}.json")
    for image in content:
        for region in image.instances:
            yield image.path, region.rle, str(content.name_of(region))


def _whole_pictures(folder: Path, split: str) -> Iterator[Crop]:
    for row in json.loads((folder / "labels.json").read_text()):
        if row["split"] == split:
            yield folder / "images" / row["file_name"], None, row["name"]


@torch.no_grad()
def cache_features(model: SmallCropEncoder, crops: list[Crop], *, augment: bool, rng: random.Random) -> Tensor:
    """Pooled trunk features (K, 1280) of crops; augmented: 1 to 2x, half with the outside zeroed, half mirrored."""
    features, pixels, coverages = [], [], []
    path, image = None, np.zeros((1, 1, 3), np.uint8)
    for index, (file, rle, _) in enumerate(crops):
        if file != path:
            path, image = file, read_image(file)
        mask = np.ones(image.shape[:2], bool) if rle is None else coco_mask.decode(rle).astype(bool)
        expand = rng.uniform(1, 2) if augment else 1.25
        if rle is None:
            expand = 1.0
        zero = augment and rng.random() < 0.5
        crop, coverage = square_crop(
            image, mask, model.image_size, expand=expand, zero_outside=zero, fill=(model.pixel_mean,) * 3
        )
        if augment and rng.random() < 0.5:
            crop, coverage = crop[:, ::-1], coverage[:, ::-1]
        pixels.append(crop)
        coverages.append(coverage)
        if len(pixels) == 16 or index == len(crops) - 1:
            batch = (torch.from_numpy(np.stack(part)) for part in (pixels, coverages))
            features.append(model.pooled_features(*batch))
            pixels, coverages = [], []
    return torch.cat(features) if features else torch.zeros(0, model.visual_projection.in_features)


def cache(args: argparse.Namespace) -> None:
    """Write {split: {set: {"features", "names"}}} and the trunk's file name."""
    vocabulary = Vocabulary.load(args.vocabulary)
    model = SmallCropEncoder().eval()
    load_trunk(model, args.trunk)
    rng = random.Random(args.seed)
    stored: dict[str, Any] = {}
    for split in ("val", "train"):
        for name, crops in list_crops(args.data, split, vocabulary, rng).items():
            features = cache_features(model, crops, augment=split == "train", rng=rng)
            stored[f"{split}/{name}"] = {"features": features.half(), "names": [crop[2] for crop in crops]}
            print(f"{split} {name}: {len(crops)} crops", flush=True)
    torch.save(stored, args.out)


def read_crops(path: Path, names: list[str]) -> dict[str, Any]:
    """What `cache` wrote.

    Raises:
        ValueError: it is another file, or holds crops of names without an embedding.
    """
    try:
        stored = torch.load(path, weights_only=True)
        shown = {name for part in stored.values() for name in part["names"]}
    except (AttributeError, EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} must be what `train.crop_encoder cache` wrote, but cannot be read as such") from error
    if unknown := sorted(shown - set(names)):
        raise ValueError(
            f"{path} has crops of {unknown[0]!r}, of which --names has no embedding: give the names that the "
            "vocabulary of `cache` was made of"
        )
    return stored


def load_trunk(model: SmallCropEncoder, path: str | Path) -> None:
    """Put ImageNet weights into the trunk, all but the classifier."""
    state = {name: value for name, value in read_trunk(path).items() if name not in CLASSIFIER}
    model.trunk.load_state_dict(state, strict=True)


def fit_head(
    features: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    steps: int = 900,
    lr: float = 7e-4,
    weight_decay: float = 0.5,
    dropout: float = 0.4,
    cosine_weight: float = 10.0,
    batch_size: int = 256,
) -> torch.nn.Linear:
    """Linear head by softmax over the names of the training crops (each name drawn by the root of its count) + cosine.

    Args:
        features: (K, 1280).
        labels: (K,) index into targets.
        targets: (names, D) unit vectors.
    """
    mean, std = features.mean(0), features.std(0) + 0.05
    normalised = (features - mean) / std
    head = torch.nn.Linear(features.shape[1], targets.shape[1])
    torch.nn.init.zeros_(head.weight)
    # Names that no crop shows may be right as well ("table" for "dining table"): they do not compete.
    present, labels = labels.unique(return_inverse=True)
    targets = targets[present]
    with torch.no_grad():
        head.bias.copy_(targets.mean(0))
    weights = torch.bincount(labels)[labels].float() ** -0.5
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        batch = torch.multinomial(weights, batch_size, replacement=True)
        embeddings = F.normalize(head(F.dropout(normalised[batch], dropout)), dim=-1)
        own = targets[labels[batch]]
        loss = F.cross_entropy(50.0 * embeddings @ targets.T, labels[batch])
        loss = loss + cosine_weight * (1 - (embeddings * own).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # fold the normalisation of the features into the head
        head.bias -= head.weight @ (mean / std)
        head.weight /= std
    return head


@torch.no_grad()
def evaluate(head: torch.nn.Module, stored: dict[str, Any], names: list[str], targets: Tensor) -> dict[str, float]:
    """Top-1 on the validation crops among the names of their own set, and the mean cosine to their name."""
    scores = {}
    index_of = {name: index for index, name in enumerate(names)}
    for key in sorted(key for key in stored if key.startswith("val/")):
        part = stored[key]
        if not part["names"]:
            continue
        labels = torch.tensor([index_of[name] for name in part["names"]])
        every = {*part["names"], *stored[key.replace("val/", "train/")]["names"]}
        own = torch.tensor(sorted(index_of[name] for name in every))
        embeddings = F.normalize(head(part["features"].float()), dim=-1)
        right = own[(embeddings @ targets[own].T).argmax(-1)] == labels
        title = f"{key[4:]} ({len(labels)} crops, {len(own)} names)"
        scores[f"{title}: top-1"] = right.float().mean().item()
        scores[f"{title}: top-1, mean over names"] = float(
            np.mean([right[labels == i].float().mean() for i in labels.unique()])
        )
        scores[f"{title}: cosine"] = (embeddings * targets[labels]).sum(-1).mean().item()
    return scores


def fit(args: argparse.Namespace) -> None:
    """Fit the head on cached features, print the scores, write the encoder."""
    model = SmallCropEncoder()
    load_trunk(model, args.trunk)
    torch.manual_seed(args.seed)
    names, targets = load_targets(args.names)
    stored = read_crops(args.crops, names)
    index_of = {name: index for index, name in enumerate(names)}
    parts = [part for key, part in stored.items() if key.startswith("train/")]
    features = torch.cat([part["features"] for part in parts]).float()
    labels = torch.tensor([index_of[name] for part in parts for name in part["names"]])
    if not len(labels):
        raise ValueError(f"{args.crops} holds no crop to train on: none of the objects in DATA has a known name")
    head = fit_head(
        features,
        labels,
        targets,
        steps=args.steps,
        lr=args.lr,
        weight_decay=args.weight_decay,
        dropout=args.dropout,
        cosine_weight=args.cosine_weight,
    )
    print(f"{len(labels)} crops of {len(labels.unique())} names")
    for name, value in evaluate(head, stored, names, targets).items():
        print(f"{value:7.4f}  {name}")
    if args.out:
        model.visual_projection.load_state_dict(head.state_dict())
        model.save_pretrained(args.out)


def score(args: argparse.Namespace) -> None:
    """Print the scores of saved weights on the cached validation crops."""
    names, targets = load_targets(args.names)
    head = SmallCropEncoder.from_pretrained(args.weights).visual_projection
    for name, value in evaluate(head, read_crops(args.crops, names), names, targets).items():
        print(f"{value:7.4f}  {name}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=command.at_least(1), default=1)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("cache", help="compute the pooled features of the crops")
    one.add_argument("--data", required=True, type=command.folder)
    one.add_argument("--vocabulary", required=True, type=command.file)
    one.add_argument("--trunk", required=True, type=command.file)
    one.add_argument("--out", required=True, type=command.new_file)
    one.set_defaults(run=cache)
    one = commands.add_parser("fit", help="fit and score the head")
    one.add_argument("--crops", required=True, type=command.file)
    one.add_argument("--names", required=True, type=command.file)
    one.add_argument("--trunk", required=True, type=command.file)
    one.add_argument(
        "--out", type=command.new_folder, help="folder of the weights; without it the scores are only printed"
    )
    one.add_argument("--steps", type=command.at_least(1), default=900)
    one.add_argument("--lr", type=float, default=7e-4)
    one.add_argument("--weight-decay", type=float, default=0.5)
    one.add_argument("--dropout", type=command.share, default=0.4)
    one.add_argument("--cosine-weight", type=float, default=10.0)
    one.set_defaults(run=fit)
    one = commands.add_parser("score", help="score saved weights")
    one.add_argument("--crops", required=True, type=command.file)
    one.add_argument("--names", required=True, type=command.file)
    one.add_argument("--weights", required=True, type=command.folder)
    one.set_defaults(run=score)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
