"""Render 3D models of named things as training objects, to be pasted into photos.

    apt-get install sweethome3d-furniture libosmesa6     # models under CC0 and CC BY 3.0
    pip install trimesh pyrender && pip install 'PyOpenGL>=3.1.7'      # of which pyrender pins another
    for f in /usr/share/sweethome3d/furniture/*.sh3f; do unzip -q "$f" -d "models/$(basename "$f" .sh3f)"; done
    python -m train.render_objects --models models --text-encoder weights/text_encoder --out DATA/render

Each model whose catalogue name is a known name is seen from several sides under a random light. Writes `train.json`
(COCO instances, one object a picture) and `images/`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")  # before pyrender chooses how to draw

import numpy as np
import pyrender
import trimesh
from rich.progress import track

from textsam.language.vocabulary import Vocabulary
from train import command
from train.cutouts import CutoutSet, known_name

vars(np).setdefault("infty", np.inf)  # pyrender 0.1.45 was written for NumPy 1

# Catalogue names -> what people call it.
SAME = {
    r"biplane": "airplane",
    r"(tv 16:9|wall flat tv|tv)": "tv",
    r"apple ibook": "laptop",
    r"(concept sedan.*|ford focus|car model|peugeot.*|renault.*|seat leon|chevrolet|vw .*|smart car|suv)": "car",
    r"((holding|sitting|lying down)? ?(fe)?male|(sitting |lying down )?(boy|girl))": "person",
    r"toilets unit": "toilet",
    r"(washbasin|sink|basin)": "sink",
    r".*(sofa|couch)( .*)?": "couch",
    r"(yamaha .*|motorbike)": "motorcycle",
    r"rowboat": "boat",
    r"(apple iphone|mobile phone)": "cell phone",
    r"(coffee mug|coffee cup|plastic cup|cup)": "cup",
    r"cocktail glass": "wine glass",
    r"(wine|beer) bottle": "bottle",
    r"kitchen knife": "knife",
    r"(.*stove|cooker|double oven|small oven)": "oven",
    r"(cup cake|birthday cake)": "cake",
    r"(basketball|soccer ball)": "sports ball",
    r"(large )?fridge": "refrigerator",
    r"((oak|round|glass|black|wooden.*) )?table|table with tablecloth": "dining table",
    r"(tulips|orchids|spathiphyllum|yucca|ficus|bamboo|.* plant|plant|flower box|plant box)": "potted plant",
    r".* beds?|bed": "bed",
    r".*window.*": "window",
    r"wheelchair": "wheelchair",
    r".*chair( with cushion)?|futon": "chair",
    r"bulldog": "dog",
    r"tv remote control": "remote",
    # What one of the sets' names may also be said of, though it is another in its lists.
    r".* table|.*desk|.*glass|van|hamburger|briefcase|urinal|bidet|armchair ottoman": "",
    r"(rocking|clothes) horse|(abdominal|piano) bench|(dog|doll) house|.*tower|toy train|table tennis( bat)?": "",
    r"indoor bike|punching ball|wall (hanger|spotlight)|entry bell ring|flipper|tape|cone|drill": "",
    r".*heater|.*swimming pool": "",
}


def catalogue(models: Path, vocabulary: Vocabulary) -> Iterator[tuple[Path, str]]:
    """OBJ files and the known names of what they show."""
    for file in sorted(models.glob("*/PluginFurnitureCatalog.properties")):
        entries: dict[str, dict[str, str]] = {}
        for line in file.read_text("latin-1").splitlines():
            if match := re.match(r"(name|model)#(\d+)=(.*)", line):
                entries.setdefault(match[2], {})[match[1]] = match[3].strip()
        for entry in entries.values():
            name = known_name(said := entry["name"].lower(), said, SAME, vocabulary)
            if name:
                yield file.parent / entry["model"].lstrip("/"), name


def views(path: Path, count: int, side: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures (H, W, 3) uint8 and masks (H, W) bool of a model, from the sides and from above."""
    loaded = trimesh.load(path, process=False)
    parts = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    parts = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    corners = np.concatenate([part.bounds for part in parts])
    centre, radius = (corners.min(0) + corners.max(0)) / 2, np.linalg.norm(corners.max(0) - corners.min(0)) / 2
    scene = pyrender.Scene(bg_color=(0, 0, 0, 0), ambient_light=np.full(3, rng.uniform(0.25, 0.5)))
    for part in parts:
        part.apply_translation(-centre)
        part.apply_scale(1 / max(radius, 1e-9))
        scene.add(pyrender.Mesh.from_trimesh(part, smooth=False))
    eye = scene.add(pyrender.PerspectiveCamera(yfov=np.radians(40)))
    lamps = [scene.add(pyrender.DirectionalLight(intensity=power)) for power in (4.0, 1.5)]
    renderer = pyrender.OffscreenRenderer(side, side)
    for _ in range(count):
        # Catalogues set the front of a thing along +z; people look at fronts, a little from above.
        turn, tilt = rng.normal(0, 50), rng.uniform(-5, 45)
        scene.set_pose(eye, _towards_centre(turn, tilt, rng.uniform(2.9, 3.6)))
        for lamp in lamps:
            scene.set_pose(lamp, _towards_centre(turn + rng.uniform(-70, 70), rng.uniform(15, 80), 4))
        pixels, depth = renderer.render(scene, flags=pyrender.RenderFlags.SKIP_CULL_FACES)
        mask = depth > 0
        if mask.mean() > 0.01:
            yield pixels, mask
    renderer.delete()


def _towards_centre(turn: float, tilt: float, distance: float) -> np.ndarray:
    """(4, 4) pose of what looks at the origin, `turn` degrees around +y and `tilt` degrees above."""
    pose = trimesh.transformations.rotation_matrix(np.radians(turn), [0, 1, 0])
    pose = pose @ trimesh.transformations.rotation_matrix(np.radians(-tilt), [1, 0, 0])
    pose[:3, 3] = pose[:3, 2] * distance
    return pose


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", required=True, type=command.folder, help="folder with a folder per unpacked library"
    )
    parser.add_argument("--text-encoder", required=True, type=command.folder, help="folder of the trained text encoder")
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--views", type=command.at_least(1), default=6, help="of each model")
    parser.add_argument("--side", type=command.at_least(32), default=320, help="px")
    parser.add_argument("--max-mb", type=float, default=12, help="models with larger files are left out")
    parser.add_argument("--seed", type=command.at_least(0), default=0)
    args = parser.parse_args(arguments)
    vocabulary = Vocabulary.load(args.text_encoder / "vocabulary.json")
    found, problems = CutoutSet(args.out), 0
    for number, (path, name) in enumerate(track(list(catalogue(args.models, vocabulary)))):
        if path.stat().st_size > args.max_mb * 2**20:
            continue
        try:
            for pixels, mask in views(path, args.views, args.side, np.random.default_rng((args.seed, number))):
                found.add(pixels, mask, name)
        # A model that the libraries cannot read is no reason to stop. A shader that does not compile is a RuntimeError.
        except (ValueError, LookupError, TypeError, RuntimeError, OSError) as error:
            problems += 1
            print(f"{path}: {type(error).__name__}: {str(error)[:200]}")
    found.write()
    print(f"{len(found)} pictures of {len(found.names())} names; {problems} models could not be read")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
