"""Train by a recipe.

    python -m train RECIPE DATA... --out DIR [--resume]
    accelerate launch -m train RECIPE DATA... --out DIR      (several GPUs: DDP)

DATA: COCO instances .json; SA-1B's .tar files, or their folder, or a folder of .jpg and .json pairs; a folder with
images/ and masks/; hf:NAME[:SPLIT]. `textsam-tiny` has options of its own: python -m train textsam-tiny --help.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace

from textsam.files.coco import MAX_BAD_SHARE
from train import command
from train.recipes import RECIPES, TINY, TINY_COMMAND, TINY_EXPECTED, Recipe

PARTS = ("text", "text+decoder", "all")
SETTABLE = ("step", "samples", "loop", "prompt")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: trained, or stopped by SIGTERM with everything saved; others: see `train.command`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [TINY]:
        from train.tiny import main as train_tiny

        # The data folder has no option name here, as in the other recipes.
        rest = arguments[1:]
        return command.run(lambda: train_tiny(["--data", *rest] if rest and not rest[0].startswith("-") else rest))
    return command.run(lambda: _run(_parse(arguments)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    recipes = "\n".join(f"{r.name}\n  {r.command}\n  {r.expected}" for r in RECIPES.values())
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=__doc__,
        epilog=f"{recipes}\n{TINY}\n  {TINY_COMMAND}\n  {TINY_EXPECTED}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", choices=[*RECIPES, TINY])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--val", type=command.file, help="COCO instances file to evaluate on now and then")
    parser.add_argument("--val-limit", type=command.at_least(1), default=200, help="pictures of it")
    parser.add_argument("--init", help="start from this model instead: name, file or folder")
    parser.add_argument("--random-weights", action="store_true", help="start from nothing, to try the machinery")
    parser.add_argument("--clip", help="open_clip's MODEL:TAG or MODEL:FILE, instead of the recipe's")
    parser.add_argument("--columns", help="of a Hugging Face data set: image=..,masks=..,names=..,id=..")
    parser.add_argument("--streaming", action="store_true", help="read a Hugging Face data set as a stream")
    parser.add_argument("--max-bad-share", type=float, default=MAX_BAD_SHARE, help="of pictures or masks")
    for name, kind in (("steps", int), ("batch-size", int), ("accumulate", int), ("lr", float), ("lora-rank", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--train", choices=PARTS, help="which part trains")
    parser.add_argument("--stop-after", type=int, help="save and leave after this step")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), dest="mixed_precision")
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--set", action="append", default=[], metavar="PART.OPTION=VALUE", dest="settings",
        help="any option of the recipe's step, samples, loop or prompt, its value as JSON: --set step.noise=0.1",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args(arguments)


def _run(args: argparse.Namespace) -> None:
    from train.readers import Columns, open_source
    from train.run_recipe import load_start, run_recipe

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    recipe = RECIPES[args.recipe]
    names = ("steps", "batch_size", "accumulate", "lr", "lora_rank", "train", "stop_after", "mixed_precision", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    samples = recipe.samples if args.seed is None else replace(recipe.samples, seed=args.seed)
    recipe = replace(
        recipe,
        init=args.init or recipe.init,
        clip=args.clip or recipe.clip,
        loop=replace(recipe.loop, **given),
        samples=samples,
    )
    for setting in args.settings:
        recipe = with_setting(recipe, setting)
    columns = Columns.parse(args.columns) if args.columns else None
    sources = [
        open_source(text, columns=columns, streaming=args.streaming, max_bad_share=args.max_bad_share)
        for text in args.data
    ]
    model = load_start(recipe, random_weights=True) if args.random_weights else None
    run_recipe(recipe, sources, args.out, model=model, val=args.val, val_limit=args.val_limit, resume=args.resume)


def with_setting(recipe: Recipe, setting: str) -> Recipe:
    """The recipe with one option changed, "step.noise=0.1".

    Raises:
        ValueError: there is no such option, naming those that there are, or the value is no JSON or of another type.
    """
    path, _, text = setting.partition("=")
    part, _, option = path.partition(".")
    if part not in SETTABLE or option not in vars(getattr(recipe, part)):
        options = vars(getattr(recipe, part)) if part in SETTABLE else SETTABLE
        raise ValueError(f"there is no option {path!r}; choose from {', '.join(options)}")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"the value in {setting!r} is not JSON: numbers and null as they are, words in quotes"
        ) from error
    value = tuple(value) if isinstance(value, list) else value
    default = getattr(getattr(recipe, part), option)
    fractional = getattr(recipe, part).__dataclass_fields__[option].type.startswith("float")
    kind = (int, float) if fractional else type(default)
    if None not in (default, value) and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
        raise ValueError(f"{path} takes a value such as {json.dumps(default)}, not {text}")
    return replace(recipe, **{part: replace(getattr(recipe, part), **{option: value})})


if __name__ == "__main__":
    raise SystemExit(main())
