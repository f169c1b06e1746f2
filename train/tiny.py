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

from textsam.checkpoints.devices import has_fast_bfloat16, resolve_device
from textsam.checkpoints.loading import load_model
from textsam.checkpoints.weights_io import read_tensors
from textsam.language.vocabulary import Vocabulary
from textsam.model import TextSamConfig, TextSamModel
from train import command
from train.data import CocoSamples, Source
from train.embedding_table import EmbeddingTable, crop_key
from train.imagenet_teacher import ImageNetTeacher
from train.loop import LoopOptions, refuse_a_new_start, train
from train.step import LossWeights, TextSamStep
from train.text_encoder import load_targets
from train.trunk_weights import read_trunk

# (set, weight of a picture, names are exhaustive, file of the semantic masks, names that say nothing)
SETS = (
    ("voc", 1.0, True, "train_semantic.json", ()),
    ("coco", 2.5, True, None, ()),
    ("ccp", 1.2, False, None, ()),
    ("facade", 1.5, False, None, ()),
    ("pennfudan", 1.0, False, None, ()),
    ("balloon", 1.5, False, None, ()),
    ("ecssd", 1.5, False, None, ("salient object",)),
)

UNLABELLED_WEIGHT = 0.4  # of a picture that only the teacher says something of

# Known names that many photos show without anybody having annotated them: never taken as absent.
COMMON = (
    "man woman boy girl child person people face head hair arm leg hand foot body clothing clothes shirt pants jean "
    "jacket coat dress skirt shoe sneakers footwear boot hat cap glasses sunglasses goggles belt tie watch sock glove "
    "tree plant flower grass leaf houseplant building house window door wall floor ceiling roof fence pole stairs "
    "furniture table desk chair shelf cabinet drawer cupboard lamp light curtain blind picture frame mirror pillow "
    "cushion blanket carpet rug bed toy wheel tire vehicle license plate mirror road street sign poster banner "
    "book paper box bag backpack handbag cup glass bottle plate bowl food drink tableware kitchenware animal mammal "
    "pet carnivore container bench cloth handle button logo label trousers jeans suit necklace earring ring bracelet"
)


def first_blocks(count: int) -> tuple[str, ...]:
    """The trunk's parameters up to a block. Edges and textures of ImageNet serve as they are, and on a CPU their
    gradients at high resolution cost more than all the rest."""
    return tuple(f"image_encoder.trunk.{part}." for part in ("conv0", *(f"block{i:02d}" for i in range(1, count + 1))))


def draw_from(names: list[str]) -> list[int]:
    """Rows of the names that may be taken as absent where they are not annotated."""
    common = set(COMMON.split())
    return [i for i, name in enumerate(names) if not common & set(name.replace("/", " ").replace("(", " ").split())]


def build(args: argparse.Namespace) -> tuple[TextSamStep, CocoSamples, LoopOptions]:
    torch.manual_seed(args.seed)
    options = LoopOptions(
        steps=args.steps,
        minutes=args.minutes,
        batch_size=args.batch_size,
        workers=args.workers,
        save_every=args.save_every,
        seed=args.seed,
        # What redraws masks near by trains on what the rest answers (`train.mask_detail`), not beside it.
        frozen=(*first_blocks(args.frozen_blocks), "mask_detail."),
        weight_decay=args.weight_decay,
        ema_decay=args.ema_decay,
        warmup=args.warmup,
    )
    options = replace(options, decay_from=args.decay_from, lr=args.lr, trunk_lr=args.lr / 10, muon=args.muon)
    options = replace(
        options, faster=(("mask_decoder.refiner.", args.refiner_factor), ("mask_decoder.quality.", args.refiner_factor))
    )
    options = replace(options, mixed_precision="bf16" if has_fast_bfloat16(resolve_device(None)) else "no")
    start = load_model(args.init, dtype="float32", device="cpu") if args.init else None
    config = TextSamConfig.tiny(
        text_trained=True,
        image_size=args.size,
        mask_refinement=True,
        mask_detail=start is not None and start.config.mask_detail,
    )
    model = TextSamModel(config)
    if start is not None:
        start_from(model, start.state_dict())
    else:
        model.image_encoder.load_trunk(read_trunk(args.trunk))
    model.image_encoder.to(memory_format=torch.channels_last)

    names, embeddings = load_targets(args.names)
    # Known names sit in one narrow cone of CLIP's space; what tells them apart is the rest.
    model.prompt_encoder.modality_means[:] = embeddings.mean(0)
    vocabulary = Vocabulary.load(Path(args.text_encoder) / "vocabulary.json")
    position = {name: i for i, name in enumerate(names)}
    name_index = NameIndex(vocabulary, position)
    crops = read_crop_embeddings(args.crops) if args.crops else {}
    sources = [
        Source(Path(args.data) / folder, weight, exhaustive, semantic, unnamed)
        for folder, weight, exhaustive, semantic, unnamed in SETS
    ]
    sources += [Source(folder, UNLABELLED_WEIGHT, exhaustive=False) for folder in args.unlabelled]
    if crops and not {folder for folder, _ in crops} & {source.folder.name for source in sources}:
        raise ValueError(f"{args.crops} has crops of none of the sets in {args.data}: make it of them")
    data = CocoSamples(
        sources,
        name_index,
        size=config.image_size,
        instances=args.instances,
        scale_range=(args.min_scale, args.max_scale),
        paste_share=args.paste_share,
        cutouts=[Source(folder) for folder in args.cutouts],
        centred_clicks=args.centred_clicks,
        seed=args.seed,
        length=options.steps * options.batch_size * 64,
    )
    table = EmbeddingTable(embeddings, crops, torch.tensor(draw_from(names)), embeddings.mean(0))
    step = TextSamStep(
        model,
        table,
        rounds=args.rounds,
        fixed_count=torch.cuda.is_available(),
        crop_share=args.crop_share,
        named_clicks=args.named_clicks,
        loss_weights=LossWeights(text=args.text_weight),
        teacher=ImageNetTeacher(args.teacher, position) if args.teacher else None,
    )
    return step, data, options


def read_crop_embeddings(path: Path) -> dict[tuple[str, int | str], torch.Tensor]:
    """What `train.crop_embeddings` wrote: (set, annotation id) -> (V, D).

    Raises:
        ValueError: it is another file.
    """
    crops = {}
    for key, value in read_tensors(path).items():
        folder, _, number = key.rpartition("/")
        if not folder or value.ndim != 2:
            raise ValueError(f"{path} must be what train.crop_embeddings wrote, SET/ANNOTATION_ID, but holds {key!r}")
        crops[crop_key(folder, number)] = value
    return crops


def start_from(model: TextSamModel, state_dict: dict[str, torch.Tensor]) -> None:
    """Weights of a former model; parts that it did not have yet start afresh, anything else is an error."""
    new = (
        "image_encoder.presence_head.",
        "presence_projection.",
        "presence_bias",
        "mask_decoder.refiner.",
        "mask_decoder.quality.",
    )
    result = model.load_state_dict({name: value.float() for name, value in state_dict.items()}, strict=False)
    wrong = [name for name in result.missing_keys if not name.startswith(new)] + list(result.unexpected_keys)
    if wrong:
        raise ValueError(f"The weights to start from do not fit: {', '.join(wrong)}.")


class NameIndex(dict):
    """Name as annotated -> row of the embedding table, by way of the vocabulary ("tv monitor" is "monitor/tv")."""

    def __init__(self, vocabulary: Vocabulary, position: dict[str, int]) -> None:
        super().__init__(position)
        self.vocabulary = vocabulary

    def __contains__(self, name: object) -> bool:
        return name in self.vocabulary

    def __getitem__(self, name: str) -> int:
        return super().__getitem__(self.vocabulary.find(name))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=command.folder, help="folder with a folder per set")
    parser.add_argument("--names", required=True, type=command.file, help="npz of CLIP text embeddings")
    parser.add_argument("--trunk", type=command.file, help="ImageNet weights of MobileNetV2, safetensors")
    parser.add_argument(
        "--teacher", type=command.file, help="the same weights with their classifier, to learn from beside the data"
    )
    parser.add_argument("--unlabelled", nargs="*", default=[], type=command.folder, help="sets for the teacher alone")
    parser.add_argument("--text-encoder", required=True, type=command.folder, help="folder of the trained text encoder")
    parser.add_argument("--crops", type=command.file, help="crop embeddings made by train.crop_embeddings, safetensors")
    parser.add_argument("--init", help="name or folder of a former model to start from, instead of --trunk")
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--minutes", type=command.above_zero, help="to train for, where the steps would take longer")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--workers", type=command.at_least(0), default=1, help="processes that load data")
    parser.add_argument("--decay-from", type=float, default=0.7)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--refiner-factor", type=float, default=1.0, help="on the rate of the mask refiner")
    parser.add_argument("--warmup", type=int, default=60, help="steps until the full learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--ema-decay", type=float, default=0.995, help="of the averaged weights")
    parser.add_argument("--frozen-blocks", type=int, default=6, help="of the trunk, from the first on")
    parser.add_argument("--muon", action="store_true", help="matrices by Muon, the rest by AdamW")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--instances", type=command.at_least(1), default=3, help="of each picture and step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=command.at_least(16), default=384, help="side of the training pictures, px")
    parser.add_argument("--min-scale", type=command.above_zero, default=0.75, help="of the large-scale jitter")
    parser.add_argument("--max-scale", type=command.above_zero, default=2.0, help="of the large-scale jitter")
    parser.add_argument("--paste-share", type=command.share, default=0.0, help="of samples with an object pasted in")
    parser.add_argument(
        "--cutouts", nargs="*", default=[], type=command.folder, help="sets whose objects are pasted, too"
    )
    parser.add_argument(
        "--crop-share", type=command.share, default=0.5, help="of texts: a crop's embedding, not a name"
    )
    parser.add_argument("--named-clicks", type=command.share, default=0.3, help="of first prompts: a click with a text")
    parser.add_argument("--text-weight", type=float, default=1.0, help="of the loss of text alone")
    parser.add_argument("--centred-clicks", type=command.share, default=0.0, help="of clicks: deepest in the mask")
    parser.add_argument("--seed", type=command.at_least(0), default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(arguments)
    if not (args.trunk or args.init):
        parser.error("give --trunk, the weights to begin with, or --init, a former model to go on from")
    patch = TextSamConfig.tiny().patch_size
    if args.size % patch:
        parser.error(f"--size has to be a multiple of {patch} px, got {args.size}: the model reads in patches")
    if args.min_scale > args.max_scale:
        parser.error(f"--min-scale {args.min_scale} is above --max-scale {args.max_scale}")
    if args.unlabelled and not args.teacher:
        parser.error("--unlabelled is for the teacher alone: give --teacher, too")
    refuse_a_new_start(args.out, args.resume)
    step, data, options = build(args)
    train(step, data, options, args.out, args.resume)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
