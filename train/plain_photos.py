"""Photos on which nothing is likely to be written, as a set for `textsam evaluate --ocr`: a model should mark nothing.

    python -m train.plain_photos DATA/voc/val.json DATA/coco/val.json DATA/ccp/val.json DATA/ecssd/val.json --out PLAIN

The choice goes by names: left out is every photo annotated with something that usually carries print. A few of the
others show a sign, a date stamp or a watermark all the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from textsam.files.coco import load_coco
from train import command
from train.synthetic_text import OUTLINED

PRINTED = [
    "aeroplane",
    "airplane",
    "baseball glove",
    "boat",
    "book",
    "bottle",
    "bus",
    "car",
    "cell phone",
    "clock",
    "keyboard",
    "kite",
    "laptop",
    "microwave",
    "motorbike",
    "parking meter",
    "refrigerator",
    "remote",
    "skateboard",
    "snowboard",
    "sports ball",
    "stop sign",
    "surfboard",
    "t-shirt",
    "traffic light",
    "train",
    "truck",
    "tv",
    "tv monitor",
    "vending machine",
]


def write_plain(files: list[Path], out: Path) -> int:
    """Copies the photos to `out/images` and writes `out/instances.json`; returns how many there are.

    Args:
        files: COCO instance files; a photo without any annotation counts as without print.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    taken: set[str] = set()
    for file in files:
        dataset = load_coco(file)
        for image in dataset:
            # Crowds count, too: a shelf of books is one.
            names = {(dataset.name_of(region) or "").lower() for region in (*image.instances, *image.ignore)}
            if names & set(PRINTED):
                continue
            name = f"{file.parent.name}_{image.path.name}"
            if name in taken:  # of another folder
                name = f"{len(images) + 1}_{name}"
            taken.add(name)
            shutil.copyfile(image.path, out / "images" / name)
            images.append({"id": len(images) + 1, "file_name": name, "width": image.width, "height": image.height})
    categories = [{"id": number, "name": name} for number, name in enumerate(OUTLINED, start=1)]
    content = {"images": images, "annotations": [], "categories": categories}
    (out / "instances.json").write_text(json.dumps(content))
    return len(images)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=command.file, help="COCO instance files")
    parser.add_argument("--out", required=True, type=command.new_folder)
    args = parser.parse_args(arguments)
    print(f"{write_plain(args.files, args.out)} photos in {args.out}")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
