"""Put a trained small model and its encoders into one folder, in half the size: what `textsam.load` takes.

    python -m train.package --model runs/tiny/model --text-encoder weights/text_encoder \\
        --crop-encoder weights/crop_encoder --image-size 448 --photos DATA/*/train.json \\
        --out textsam/weights/textsam-tiny
    python -m train.package --model runs/ocr/model --image-size 448 --out textsam/weights/textsam-tiny-ocr

A model that adds names to the embedded encoders (`extra_names.safetensors`) shares them and carries none of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from textsam.checkpoints.encoders import CROP_ENCODER, EXTRA_NAMES, TEXT_ENCODER
from textsam.checkpoints.loading import load_model
from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder
from train import command
from train.rounding import read_photos, round_trunk

MAX_BYTES, MAX_SHARING_BYTES = 24_000_000, 12_000_000


def package(
    model: Path,
    text_encoder: Path | None,
    crop_encoder: Path | None,
    out: Path,
    image_size: int | None = None,
    start: Path | None = None,
    share: float = 1.0,
    photos: Sequence[Path] = (),
) -> int:
    """Write the folder; returns its size in bytes.

    Args:
        text_encoder, crop_encoder: None where the model shares those of the embedded model.
        image_size: side in px that photos are resized to in use, where that is not the side of training.
        start, share: what the training began with; the weights become `share` of the trained and the rest of these.
            Between two such models often lies a better one (Wortsman et al. 2022, *Robust fine-tuning*).
        photos: COCO files of training's pictures. The weights become what bfloat16 holds, rounded so that on photos
            like these the encoder gives what it gave; without, they are stored in float16.
    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: it would be larger than 24 MB, or than 12 MB without encoders; it has no encoders at all; there
            is no photo; `start` has other parts; `out` is `model`.
    """
    # All that can be wrong comes before the first file is written.
    if not (model / "training.json").is_file():
        raise FileNotFoundError(f"{model} has no training.json: expected the folder model/ or best/ of a training")
    if out.exists() and out.samefile(model):
        raise ValueError(f"{out} is the model itself: name another folder")
    trained = load_model(model, dtype="float32", device="cpu")
    if image_size and image_size % trained.config.patch_size:
        raise ValueError(f"image_size has to be a multiple of {trained.config.patch_size} px, but is {image_size}")
    encoders: list[tuple[str, SmallTextEncoder | SmallCropEncoder]] = []
    if text_encoder is not None and crop_encoder is not None:
        encoders = [
            (TEXT_ENCODER, SmallTextEncoder.from_pretrained(text_encoder)),
            (CROP_ENCODER, SmallCropEncoder.from_pretrained(crop_encoder)),
        ]
    elif text_encoder is not None or crop_encoder is not None or not (model / EXTRA_NAMES).is_file():
        raise ValueError(f"give both --text-encoder and --crop-encoder; without, {model} has to hold {EXTRA_NAMES}")
    if start is not None:
        before = load_model(start, dtype="float32", device="cpu").state_dict()
        shapes = ({name: value.shape for name, value in state.items()} for state in (before, trained.state_dict()))
        if next(shapes) != next(shapes):
            raise ValueError(
                f"{start} and {model} have other parts: only a model and what it began with can be averaged"
            )
        with torch.no_grad():
            for name, value in trained.state_dict().items():
                value.lerp_(before[name], 1 - share)
    if photos:
        size, mean, std = (getattr(trained.config, name) for name in ("image_size", "pixel_mean", "pixel_std"))
        round_trunk(trained.image_encoder.trunk, read_photos(photos, image_size or size, mean, std), print)
    trained.to(torch.bfloat16 if photos else torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors leaves it to the owner alone, and packages keep that
    (out / EXTRA_NAMES).unlink(missing_ok=True)  # of a former package, which may have had the other kind
    for name in (TEXT_ENCODER, CROP_ENCODER):
        shutil.rmtree(out / name, ignore_errors=True)
    for name, encoder in encoders:
        encoder.save_pretrained(out / name)
    if not encoders:
        shutil.copyfile(model / EXTRA_NAMES, out / EXTRA_NAMES)
    limit = MAX_BYTES if encoders else MAX_SHARING_BYTES
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"  # stored in half the size, computed in full
    config["image_size"] = image_size or config["image_size"]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(model / "training.json", out / "training.json")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if size > limit:
        raise ValueError(f"{out} has {size / 1e6:.1f} MB, expected at most {limit / 1e6:.0f} MB")
    return size


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text-encoder", "crop-encoder"):
        parser.add_argument(f"--{name}", required=name == "model", type=command.folder)
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--image-size", type=command.at_least(1))
    parser.add_argument(
        "--photos", type=command.file, nargs="*", default=[], help="training's COCO files, to round the weights for"
    )
    parser.add_argument(
        "--start", type=command.folder, help="the model that training began with, to be averaged with its result"
    )
    parser.add_argument("--share", type=command.share, help="of the trained model in that average; default 0.5")
    args = parser.parse_args(arguments)
    if args.share is not None and args.start is None:
        parser.error("--share does nothing without --start")
    share = 0.5 if args.share is None else args.share
    size = package(
        args.model, args.text_encoder, args.crop_encoder, args.out, args.image_size, args.start, share, args.photos
    )
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
