"""Embed the crop of every annotated mask, once: the training prompts of the paper's appendix D.5.

    python -m train.crop_embeddings --data DATA --crop-encoder weights/crop_encoder --out crops.safetensors \\
        voc coco ccp facade pennfudan balloon ecssd

Each mask gets two variants: its square crop at a random 1-2x, as it is and with the pixels outside the mask zeroed.
Written as (2, D) float16 tensors named "SET/ANNOTATION_ID".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from textsam.files.coco import load_coco
from textsam.language.small_clip import SmallCropEncoder
from train import command


def embed_set(encoder: SmallCropEncoder, folder: Path, per_image: int, seed: int) -> dict[str, Tensor]:
    """Embeddings of at most `per_image` masks of each picture of `folder/train.json`."""
    rng, images = np.random.default_rng(seed), load_coco(folder / "train.json")
    keys: list[str] = []
    # Small tensors that stay between the large ones of each picture would keep those from being used again (glibc's
    # malloc), about 10 MB a picture: one tensor for all.
    kept = sum(min(len(image.instances), per_image) for image in images)
    rows = torch.empty(kept, 2, encoder.embed_dim, dtype=torch.float16)
    for image in track(images, description=folder.name):
        order = rng.permutation(len(image.instances))[:per_image]
        regions = [image.instances[i] for i in order]
        masks = [region.mask() for region in regions]
        if not masks:
            continue
        pixels = image.read()
        variants = [
            encoder.encode(pixels, np.stack(masks), expand=float(rng.uniform(1, 2)), zero_outside=zero)
            for zero in (False, True)
        ]
        rows[len(keys) : len(keys) + len(regions)] = torch.stack(variants, dim=1)
        keys += [f"{folder.name}/{region.id}" for region in regions]
    return {key: row.clone() for key, row in zip(keys, rows, strict=True)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="folders in DATA")
    parser.add_argument("--data", required=True, type=command.folder)
    parser.add_argument("--crop-encoder", required=True, type=command.folder)
    parser.add_argument("--out", required=True, type=command.new_file)
    parser.add_argument("--per-image", type=command.at_least(1), default=12)
    parser.add_argument("--seed", type=command.at_least(0), default=0)
    args = parser.parse_args(arguments)
    encoder = SmallCropEncoder.from_pretrained(args.crop_encoder)
    table: dict[str, Tensor] = {}
    for name in args.sets:
        table.update(embed_set(encoder, args.data / name, args.per_image, args.seed))
        print(f"{name}: {len(table)} masks so far", flush=True)
    if not table:
        raise ValueError(f"none of the sets {', '.join(args.sets)} has a mask to embed: name sets with objects")
    save_file(table, args.out)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
