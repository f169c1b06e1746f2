"""Endless pictures with text, and the truth about them at four levels.

    python -m train.synthetic_text --photos PHOTOS --out synthetic --count 500 --size 1280x720

Writes `images/`, `strokes/` (PNG masks of the glyphs) and `instances.json` (COCO: categories "word", "text line",
"text block"; each annotation with its `text`, `script`, `quad` and whether it is `legible`). Scene number i of a seed
is the same whoever asks for it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.progress import track

from textsam.files.coco import load_coco
from train import command
from train.fonts import faces_for
from train.text_looks import SCRIPT_HELP, script_shares
from train.text_scenes import Scene, SceneOptions, Written, draw_scene

logger = logging.getLogger("train")
PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
OUTLINED = ("word", "text line", "text block")


class SyntheticText:
    """Scenes by number.

    Args:
        photos: folders of photos without text, or files. seed: of everything that is drawn.
    Raises:
        FileNotFoundError: there is no photo, or no font for a script that is asked for.
    """

    def __init__(self, photos: Sequence[str | Path], options: SceneOptions | None = None, seed: int = 0) -> None:
        self.options, self.seed = options or SceneOptions(), seed
        self.files = find_photos(photos)
        for script, _ in self.options.scripts:  # now, not in the middle of a run
            faces_for("latin" if script == "digits" else script, self.options.held_out)
        self._bad: set[Path] = set()  # told already

    def __getitem__(self, number: int) -> Scene:
        """
        Raises:
            ValueError: no photo can be read. One that cannot is named and gives way to the next.
        """
        rng = np.random.default_rng((self.seed, number))
        first = int(rng.integers(len(self.files)))
        for step in range(len(self.files)):
            file = self.files[(first + step) % len(self.files)]
            try:
                photo = read_background(file, self.options.size, rng)
            except (OSError, SyntaxError, ValueError) as error:  # of Pillow, by format and place of the damage
                if file not in self._bad:
                    logger.warning("skipped: %s: %s", file, error)
                self._bad.add(file)
            else:
                return draw_scene(photo, self.options, rng)
        raise ValueError(f"none of the {len(self.files)} photos can be read")

    def __iter__(self) -> Iterator[Scene]:
        """Endless."""
        number = 0
        while True:
            yield self[number]
            number += 1


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """Photos named one by one, in folders, or listed in COCO files (the part of a set that may be trained on)."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.suffix == ".json":
            found += [image.path for image in load_coco(path)]
            continue
        inside = path.rglob("*") if path.is_dir() else [path]
        found += sorted(file for file in inside if file.suffix.lower() in PHOTO_ENDINGS and file.is_file())
    if not found:
        raise FileNotFoundError(
            f"no photo ({', '.join(PHOTO_ENDINGS)}) in {', '.join(map(str, paths))}: "
            "name a folder of photos without text"
        )
    return found


def read_background(file: Path, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random part of a photo, in the scene's proportions, mirrored half of the time: (H, W, 3) uint8."""
    image = _open_photo(file, size)
    fit = min(image.width / size[0], image.height / size[1])
    share = fit * float(rng.uniform(0.6, 1.0))
    width, height = size[0] * share, size[1] * share
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    part = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    pixels = np.asarray(part)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _open_photo(file: Path, size: tuple[int, int]) -> Image.Image:
    """A photo, or a smaller version that still holds `size` px where the file gives one quickly."""
    if file.suffix.lower() == ".webp":  # the same pixels as PIL's, in three quarters of its time
        pixels = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return Image.fromarray(pixels)
    with Image.open(file) as image:
        image.draft("RGB", size)
        return image.convert("RGB")


def annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene's words, lines and blocks."""
    entries = []
    for category, group in enumerate((scene.words, scene.lines, scene.blocks), start=1):
        for written in group:
            entries.append(_annotation(written, category, image_id, first_id + len(entries), scene.strokes.shape))
    return entries


def _annotation(written: Written, category: int, image_id: int, number: int, hw: tuple[int, ...]) -> dict[str, Any]:
    polygon = written.polygon.clip(0, [hw[1], hw[0]])
    low, high = polygon.min(0), polygon.max(0)
    top, bottom = written.strip
    x, y = polygon.T
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "segmentation": [polygon.ravel().round(2).tolist()],
        "bbox": [*low.round(2).tolist(), *(high - low).round(2).tolist()],
        "area": round(float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2, 2),
        "iscrowd": 0 if written.legible else 1,
        "text": written.text,
        "legible": written.legible,
        "script": written.script,
        "line": written.line,
        "block": written.block,
        # Clockwise from the top left of the text, not of the picture; it may reach over the border.
        "quad": np.stack([top[0], top[-1], bottom[-1], bottom[0]]).round(2).tolist(),
    }


def write_coco(scenes: SyntheticText, count: int, out: Path) -> None:
    """Write `count` scenes as a COCO set with stroke masks beside it."""
    for name in ("images", "strokes"):
        (out / name).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for number in track(range(count), description="scenes"):
        scene = scenes[number]
        name = f"{number:06d}.png"
        Image.fromarray(scene.pixels).save(out / "images" / name)
        Image.fromarray(scene.strokes).save(out / "strokes" / name)
        height, width = scene.strokes.shape
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        entries += annotations(scene, number + 1, len(entries) + 1)
    categories = [{"id": i, "name": name} for i, name in enumerate(OUTLINED, start=1)]
    content = {"images": images, "annotations": entries, "categories": categories}
    (out / "instances.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def as_dataset(scenes: SyntheticText, count: int, cache_dir: str | Path | None = None) -> Any:
    """The scenes as a `datasets.Dataset`: image, strokes, and the annotations' fields as lists."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    fields = {"text": Value("string"), "category": Value("string"), "script": Value("string"),
              "legible": Value("bool"), "line": Value("int32"), "block": Value("int32"),
              "quad": List(List(Value("float32")))}  # fmt: skip
    features = Features({"image": ImageFeature(), "strokes": ImageFeature(), "written": List(fields)})

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(count):
            scene = scenes[number]
            written = [
                {name: OUTLINED[entry["category_id"] - 1] if name == "category" else entry[name] for name in fields}
                for entry in annotations(scene, 0, 0)
            ]
            yield {
                "image": Image.fromarray(scene.pixels),
                "strokes": Image.fromarray(scene.strokes),
                "written": written,
            }

    return Dataset.from_generator(rows, features=features, cache_dir=None if cache_dir is None else str(cache_dir))


def parse_size(text: str) -> tuple[int, int]:
    """ "1280x720" to (width, height) px.

    Raises:
        argparse.ArgumentTypeError: another form, or a side below 16 px.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) >= 16 for part in parts):
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT of at least 16 px each, such as 1280x720, got {text!r}"
        )
    return int(parts[0]), int(parts[1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, nargs="+", help="folders of photos without text")
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--count", type=command.at_least(1), default=100)
    parser.add_argument("--size", type=parse_size, default="448x448", help="WIDTHxHEIGHT in px")
    parser.add_argument("--blocks", type=command.at_least(1), default=4, help="most blocks of text in a scene")
    parser.add_argument("--textless", type=command.share, default=0.12, help="share of scenes without text")
    parser.add_argument("--script", action="append", help=SCRIPT_HELP)
    parser.add_argument("--held-out", action="store_true", help="fonts and words that training never draws")
    parser.add_argument("--seed", type=command.at_least(0), default=0)
    args = parser.parse_args(arguments)
    options = SceneOptions(args.size, args.blocks, args.textless, args.held_out, script_shares(args.script))
    write_coco(SyntheticText(args.photos, options, args.seed), args.count, args.out)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
