"""Tux Paint's stamps, photos of things with a transparent ground, as training objects to be pasted into photos.

    apt-get install tuxpaint-stamps-default     # public domain, GPL and CC licences, told in its copyright file
    python -m train.stamp_objects --stamps /usr/share/tuxpaint/stamps --text-encoder weights/text_encoder \\
        --out DATA/stamps

What is drawn rather than photographed is left out, as is what is no known name. Writes `train.json` (COCO instances,
one object a picture) and `images/`.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

from textsam.language.vocabulary import Vocabulary
from train import command
from train.cutouts import CutoutSet, known_name

DRAWN = ("symbols", "cartoon", "toys", "space", "seasonal", "monuments", "flags", "arttools")
# Paths below the stamps' folder -> name.
SAME = {
    r"animals/birds/.*": "bird",
    r"animals/mammals/bears/.*": "bear",
    r"animals/mammals/bovines/(bull|cow|cow_white|zebu)": "cow",
    r"animals/mammals/bovines/(ram|sheep|sheep_lamb)": "sheep",
    r"animals/mammals/bovines/(gnu|indian).*": "",
    r"animals/mammals/dogs/dog": "dog",
    r"animals/mammals/rodents/mouse": "",  # COCO's mouse is a computer's
    r".*/(hoverfly|cementmixer|lightningbolt|eye)": "",
    r".*/toilet": "toilet",
    r"plants/.*(lettuce|eggplant|rambutan|lavender|thyme|chuvanna|poo).*": "",
    r"food/fruit/apple.*": "apple",
    r"food/fruit/(orange.*|mandarine|sliced_orange)": "orange",
    r"food/pizza": "pizza",
    r"food/vegetables/broccoli": "broccoli",
    r"sports/(basketball|soccer|tennis_ball|cricketball|football|australian_rules_football)": "sports ball",
    r"town/roadsigns/stop": "stop sign",
    r"town/roadsigns/stoplight.*": "traffic light",
    r"town/roadsigns/(?!traffic_cone).*": "",
    r"vehicles/auto/(beetle|sedan|sportscar2)|vehicles/race/.*": "car",
    r"vehicles/auto/truck|vehicles/(garbagetruck|emergency/firetruck)": "truck",
    r"vehicles/(7spoke256|wheel_tractor)": "wheel",
    r"vehicles/emergency/sedan_police": "",
    r"vehicles/flight/planes/.*": "airplane",
    r"vehicles/masstransit/.*": "bus",
    r"vehicles/ship/.*": "boat",
    r".*(wineglass|wine_glass).*": "wine glass",
    r".*(coffee_?cup|teacup|mug).*": "cup",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", required=True, type=command.folder)
    parser.add_argument("--text-encoder", required=True, type=command.folder, help="folder of the trained text encoder")
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--side", type=command.at_least(32), default=320, help="px at most")
    args = parser.parse_args(arguments)
    vocabulary = Vocabulary.load(args.text_encoder / "vocabulary.json")
    found = CutoutSet(args.out)
    for file in sorted(args.stamps.rglob("*.png")):
        path, text = file.relative_to(args.stamps), file.with_suffix(".txt")
        if set(path.parts) & set(DRAWN) or not text.exists():
            continue
        said = text.read_text("utf-8", errors="replace").partition("\n")[0].strip()  # "A ripe, red tomato!"
        name = known_name(str(path.with_suffix("")), said, SAME, vocabulary)
        if name is None:
            continue
        try:
            with Image.open(file) as opened:
                picture = opened.convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:  # of Pillow, by format and place of the damage
            print(f"skipped: {file}: {error}")
            continue
        picture.thumbnail((args.side, args.side))
        pixels = np.asarray(picture)
        mask = pixels[..., 3] > 127
        if mask.sum() > 400:
            found.add(pixels[..., :3], mask, name)
    found.write()
    print(f"{len(found)} pictures of {len(found.names())} names")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
