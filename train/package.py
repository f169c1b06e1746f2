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
from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder
from textsam.model import TextSamModel
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
        ValueError: it would be larger than 24 MB, or than 12 MB without encoders; it has no encoders at all; there
            is no photo.
    """
    trained = TextSamModel.from_pretrained(model, dtype=torch.float32)
    if start is not None:
        before = TextSamModel.from_pretrained(start, dtype=torch.float32).state_dict()
        with torch.no_grad():
            for name, value in trained.state_dict().items():
                value.lerp_(before[name], 1 - share)
    if photos:
        size, mean, std = (getattr(trained.config, name) for name in ("image_size", "pixel_mean", "pixel_std"))
        round_trunk(trained.image_encoder.trunk, read_photos(photos, image_size or size, mean, std), print)
    trained.to(torch.bfloat16 if photos else torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors leaves it to the owner alone, and packages keep that
    if text_encoder is not None and crop_encoder is not None:
        SmallTextEncoder.from_pretrained(text_encoder).save_pretrained(out / TEXT_ENCODER)
        SmallCropEncoder.from_pretrained(crop_encoder).save_pretrained(out / CROP_ENCODER)
        limit = MAX_BYTES
    elif (model / EXTRA_NAMES).is_file():
        shutil.copyfile(model / EXTRA_NAMES, out / EXTRA_NAMES)
        limit = MAX_SHARING_BYTES
    else:
        raise ValueError(f"{model} has no {EXTRA_NAMES}: give --text-encoder and --crop-encoder")
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"  # stored in half the size, computed in full
    config["image_size"] = image_size or config["image_size"]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(model / "training.json", out / "training.json")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if size > limit:
        raise ValueError(f"{out} has {size / 1e6:.1f} MB, expected at most {limit / 1e6:.0f} MB")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text-encoder", "crop-encoder", "out"):
        parser.add_argument(f"--{name}", required=name in ("model", "out"), type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument(
        "--photos", type=Path, nargs="*", default=[], help="training's COCO files, to round the weights for"
    )
    parser.add_argument("--start", type=Path, help="the model that training began with, to be averaged with its result")
    parser.add_argument("--share", type=float, default=0.5, help="of the trained model in that average")
    args = parser.parse_args()
    size = package(
        args.model, args.text_encoder, args.crop_encoder, args.out, args.image_size, args.start, args.share, args.photos
    )
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
