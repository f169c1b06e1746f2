"""Train `textsam-tiny`, the embedded model.

    python -m train.tiny --data DATA --names vit_b_32_names.npz --trunk mobilenet_v2_imagenet.safetensors \\
        --text-encoder weights/text_encoder --crops crops.safetensors --out runs/tiny
    python -m train.tiny ... --resume

DATA holds a folder per set with `train.json` (COCO instances) and `images/`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from textsam.config import TextSamConfig
from textsam.language.vocabulary import Vocabulary
from textsam.model import TextSamModel
from train.data import CocoSamples, Source
from train.loop import LoopOptions, train
from train.step import EmbeddingTable, TextSamStep
from train.text_encoder import load_targets

# (set, weight of a picture, names are exhaustive, file of the semantic masks, names that say nothing)
SETS = (
    ("voc", 1.0, True, "train_semantic.json", ()),
    ("coco", 2.5, True, None, ()),
    ("ccp", 0.7, False, None, ()),
    ("facade", 0.5, False, None, ()),
    ("pennfudan", 1.0, False, None, ()),
    ("balloon", 1.5, False, None, ()),
    ("ecssd", 1.5, False, None, ("salient object",)),
)
# Edges and textures of ImageNet serve as they are; their gradients at high resolution cost more than all the rest.
FROZEN = tuple(f"image_encoder.trunk.{part}." for part in ("conv0", *(f"block{i:02d}" for i in range(1, 7))))


def build(args: argparse.Namespace) -> tuple[TextSamStep, CocoSamples, LoopOptions]:
    torch.manual_seed(args.seed)
    options = LoopOptions(steps=args.steps, batch_size=args.batch_size, seed=args.seed, frozen=FROZEN)
    options = replace(options, decay_from=args.decay_from, lr=args.lr, trunk_lr=args.lr / 10)
    config = TextSamConfig.tiny(text_trained=True)
    model = TextSamModel(config)
    model.image_encoder.load_trunk(load_file(args.trunk))
    model.image_encoder.to(memory_format=torch.channels_last)

    names, embeddings = load_targets(args.names)
    # Known names sit in one narrow cone of CLIP's space; what tells them apart is the rest.
    model.prompt_encoder.modality_means[:] = embeddings.mean(0)
    vocabulary = Vocabulary.load(Path(args.text_encoder) / "vocabulary.json")
    position = {name: i for i, name in enumerate(names)}
    name_index = _NameIndex(vocabulary, position)
    crops = {}
    if args.crops:
        for key, value in load_file(args.crops).items():
            folder, number = key.rsplit("/", 1)
            crops[folder, int(number)] = value
    sources = [
        Source(Path(args.data) / folder, weight, exhaustive, semantic, unnamed)
        for folder, weight, exhaustive, semantic, unnamed in SETS
    ]
    data = CocoSamples(
        sources,
        name_index,
        size=config.image_size,
        instances=args.instances,
        seed=args.seed,
        length=options.steps * options.batch_size * 64,
    )
    step = TextSamStep(model, EmbeddingTable(embeddings, crops), rounds=args.rounds)
    return step, data, options


class _NameIndex(dict):
    """Name as annotated -> row of the embedding table, by way of the vocabulary ("tv monitor" is "monitor/tv")."""

    def __init__(self, vocabulary: Vocabulary, position: dict[str, int]) -> None:
        super().__init__(position)
        self.vocabulary = vocabulary

    def __contains__(self, name: object) -> bool:
        return name in self.vocabulary

    def __getitem__(self, name: str) -> int:
        return super().__getitem__(self.vocabulary.find(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with a folder per set")
    parser.add_argument("--names", required=True, help="npz of CLIP text embeddings")
    parser.add_argument("--trunk", required=True, help="ImageNet weights of MobileNetV2, safetensors")
    parser.add_argument("--text-encoder", required=True, help="folder of the trained text encoder")
    parser.add_argument("--crops", help="crop embeddings made by train.crop_embeddings, safetensors")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--decay-from", type=float, default=0.7)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--instances", type=int, default=3, help="of each picture and step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    step, data, options = build(args)
    train(step, data, options, args.out, args.resume)


if __name__ == "__main__":
    main()
