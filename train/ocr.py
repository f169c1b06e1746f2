"""Fine-tune a TextSAM on written text: "text", "text stroke", "word", "text line" and "text block" as prompts.

    python -m train.ocr --photos PHOTOS --out runs/ocr                                 synthetic text alone
    python -m train.ocr --photos PHOTOS --words ICDAR/train.json --out runs/ocr        with real photos
    python -m train.ocr --words MY/train.json --train text+decoder --out runs/mine     one's own photos alone
    python -m train.ocr ... --resume

PHOTOS are folders of photos without text, to write on. Words come as a COCO file with a polygon for each word (four
corners, clockwise from the top left of the text; `iscrowd` 1 where it cannot be read), or as a folder of pictures with
ICDAR's text files; see `train.text_photos`.
The result, `OUT/model`, is a folder that `textsam.load` takes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import textsam
from textsam.checkpoints.devices import has_fast_bfloat16, resolve_device
from textsam.checkpoints.encoders import CROP_ENCODER, EXTRA_NAMES, TEXT_ENCODER, packaged_folder, read_extra_names
from textsam.checkpoints.hub import download
from textsam.checkpoints.loading import PACKAGED
from textsam.checkpoints.weights_io import read_tensors
from textsam.language.vocabulary import UnknownNameError, Vocabulary
from textsam.model import TextSamModel
from textsam.text_regions.levels import LEVELS
from train import command
from train.data import CocoSamples, Source
from train.embedding_table import EmbeddingTable
from train.loop import LoopOptions, refuse_a_new_start, train
from train.parts import rebuilt
from train.step import TextSamStep
from train.synthetic_text import SyntheticText
from train.text_data import MixedSamples, SyntheticSamples
from train.text_encoder import load_targets
from train.text_looks import SCRIPT_HELP, script_shares
from train.text_photos import TextPhotos
from train.text_scenes import SceneOptions
from train.text_step import WrittenTextStep
from train.text_targets import CORES, INSET
from train.tiny import SETS, NameIndex, draw_from, first_blocks

# Share of a core's short side by which it is grown when it is read. INSET alone would say 0.5; cores come out a little
# wide, as training pictures show.
GROWTH = 0.42
# Of MobileNetV2: the first blocks see edges, and their gradients at high resolution cost more than all the rest.
FROZEN = first_blocks(3)


def load_start(args: argparse.Namespace) -> tuple[TextSamModel, Tensor, Any]:
    """The model to start from, the levels' embeddings (5, D), and the encoder of words that gave them and will be asked
    for them later.

    Raises:
        ValueError: the encoder does not know the levels.
    """
    sam = textsam.load(args.model, clip=args.clip, dtype="float32", device="cpu")
    encoder = sam.text_encoder
    if args.levels:
        if not hasattr(encoder, "with_names"):
            raise ValueError("--levels is for embedded models, and a public CLIP knows the levels as any words")
        read_tensors(args.levels)  # tells a damaged file
        encoder = encoder.with_names(*read_extra_names(args.levels))
    try:
        levels = encoder.encode(list(LEVELS))
    except UnknownNameError as error:
        raise ValueError(
            f"the text encoder of {args.model} does not know the levels ({error}) Start from textsam-tiny-ocr, or give "
            "--levels, a file that train.level_names writes."
        ) from error
    model = with_fine_masks(sam.model) if args.fine_masks else sam.model
    return model, levels, encoder


def with_fine_masks(model: TextSamModel) -> TextSamModel:
    """The model with a head for strokes at full resolution, which starts afresh where it had none."""
    return model if model.config.fine_masks else rebuilt(model, "fine_masks.", fine_masks=True)


def build(args: argparse.Namespace) -> tuple[WrittenTextStep, MixedSamples, LoopOptions]:
    """What `train.loop.train` takes.

    Raises:
        ValueError: nothing to train on, or a size that does not suit the model.
        FileNotFoundError: no photos, or no fonts.
    """
    torch.manual_seed(args.seed)
    model, levels, encoder = load_start(args)
    patch = model.config.patch_size
    if args.size < patch or args.size % patch:
        raise ValueError(
            f"Expected --size to be a multiple of {patch} px, got {args.size}: the model reads in patches."
        )
    vocabulary = getattr(encoder, "vocabulary", None)  # a public CLIP reads any text
    model.config.text_trained = True
    model.config.text_regions = {
        "levels": list(LEVELS),
        "tile": 448,
        "shrink": dict.fromkeys(CORES, INSET),
        "growth": dict.fromkeys(CORES, GROWTH),
        "presence_threshold": 0.95,
    }
    mobile = model.config.encoder_type == "mobile"
    if mobile:
        model.image_encoder.to(memory_format=torch.channels_last)
    options = LoopOptions(
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        trunk_lr=args.trunk_lr if args.trunk_lr is not None else args.lr / 5,
        train=args.train,
        frozen=FROZEN if mobile else (),
        faster=(("fine_masks.", args.fine_factor),),
        lora_rank=args.lora_rank,
        decay_from=args.decay_from,
        seed=args.seed,
        save_every=args.save_every,
        minutes=args.minutes,
        workers=args.workers,
        warmup=args.warmup,
        ema_decay=args.ema_decay,
        stop_after=args.stop_after,
        mixed_precision="bf16" if has_fast_bfloat16(resolve_device(None)) else "no",
    )
    length = options.steps * options.batch_size
    sets = []
    if args.photos:
        scenes = SyntheticText(
            args.photos, SceneOptions((args.size, args.size), scripts=script_shares(args.script)), args.seed
        )
        sets.append((SyntheticSamples(scenes, length), args.synthetic_share))
    for file in args.words or ():
        sets.append((TextPhotos(file, args.size, length, args.seed), args.words_share))
    if not any(share > 0 for _, share in sets):
        raise ValueError(
            "there is no text to train on: give --photos (synthetic text), --words, or both, with shares above 0"
        )
    objects = None
    if args.objects:
        objects, data = build_objects(args, model, vocabulary, length)
        sets.append((data, 1))
    if args.transcripts and vocabulary is not None:
        raise ValueError("--transcripts needs --clip: the embedded text encoder knows names alone")
    transcripts = encoder.encode if args.transcripts and vocabulary is None else None
    fixed = torch.cuda.is_available()
    step = WrittenTextStep(model, levels, objects, transcripts=transcripts, fixed_count=fixed)
    return step, MixedSamples(sets, options.batch_size, length), options


def build_objects(
    args: argparse.Namespace, model: TextSamModel, vocabulary: Vocabulary | None, length: int
) -> tuple[TextSamStep, CocoSamples]:
    """Everyday objects by names, boxes and clicks, as in the training of the small model."""
    if not args.names or vocabulary is None:
        raise ValueError("--objects needs --names, the npz of CLIP embeddings of their names, and an embedded model")
    names, embeddings = load_targets(args.names)
    index = NameIndex(vocabulary, {name: i for i, name in enumerate(names)})
    root = Path(args.objects)
    sources = [Source(root / folder, *rest) for folder, *rest in SETS if (root / folder / "train.json").exists()]
    if not sources:
        raise FileNotFoundError(
            f"{root} has no train.json in any of the folders {', '.join(name for name, *_ in SETS)}"
        )
    data = CocoSamples(sources, index, size=args.size, instances=3, seed=args.seed, length=length)
    table = EmbeddingTable(embeddings, {}, torch.tensor(draw_from(names)), embeddings.mean(0))
    return TextSamStep(model, table, rounds=1), data


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="textsam-tiny-ocr", help="name, folder or file to start from")
    parser.add_argument("--clip", help="open_clip's name:tag, for a model without encoders of its own")
    parser.add_argument(
        "--levels", type=command.file, help="names of the levels, for an embedded model that lacks them"
    )
    parser.add_argument("--fine-masks", action="store_true", help="add the head for strokes at full resolution")
    parser.add_argument("--photos", nargs="+", help="folders of photos without text, to write on")
    parser.add_argument("--script", action="append", help=SCRIPT_HELP)
    parser.add_argument("--words", nargs="+", type=Path, help="COCO files or ICDAR folders with outlines of words")
    parser.add_argument("--transcripts", action="store_true", help="also ask for words by what they say; needs --clip")
    parser.add_argument(
        "--objects", type=command.folder, help="folder of sets with names, to keep what the model knew; needs --names"
    )
    parser.add_argument("--names", type=command.file, help="npz of CLIP text embeddings")
    parser.add_argument(
        "--synthetic-share", type=command.at_least(0), default=5, help="batches of synthetic text in a row"
    )
    parser.add_argument(
        "--words-share", type=command.at_least(0), default=1, help="batches of each words file in a row"
    )
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--train", choices=("all", "text+decoder", "text"), default="all")
    parser.add_argument("--lora-rank", type=int, default=0, help="of adapters on a ViT's attention")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--trunk-lr", type=float)
    parser.add_argument("--fine-factor", type=float, default=1.0, help="on the rate of the head for strokes")
    parser.add_argument("--decay-from", type=float, default=0.6)
    parser.add_argument("--warmup", type=int, default=60, help="steps until the full learning rate")
    parser.add_argument("--ema-decay", type=float, default=0.995, help="of the averaged weights")
    parser.add_argument("--size", type=int, default=320, help="side of the training pictures, px")
    parser.add_argument("--minutes", type=command.above_zero, help="to train for, where the steps would take longer")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--workers", type=command.at_least(0), default=1, help="processes that load data")
    parser.add_argument("--stop-after", type=command.at_least(1))
    parser.add_argument("--seed", type=command.at_least(0), default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(arguments)
    for option, needed in (("script", "photos"), ("names", "objects")):
        if getattr(args, option) and not getattr(args, needed):
            parser.error(f"--{option} does nothing without --{needed}")
    refuse_a_new_start(args.out, args.resume)
    step, data, options = build(args)
    train(step, data, options, args.out, args.resume)
    copy_encoders(args.model, args.out / "model", args.levels)


def copy_encoders(model: str, folder: Path, names: Path | None = None) -> None:
    """The embedded encoders of the model that was started from, or the names added to them, beside the trained weights.

    Args:
        model: name, folder or Hub id. names: a file of added names, if not the model's own.
    """
    start = packaged_folder(model) if model in PACKAGED else Path(model)
    if not start.is_dir():
        start = download(model, [f"{TEXT_ENCODER}/*", f"{CROP_ENCODER}/*", EXTRA_NAMES])
    extra = names or start / EXTRA_NAMES
    if extra.is_file():
        shutil.copyfile(extra, folder / EXTRA_NAMES)
        return
    for name in (TEXT_ENCODER, CROP_ENCODER):
        if (start / name).is_dir():
            shutil.copytree(start / name, folder / name, dirs_exist_ok=True)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
