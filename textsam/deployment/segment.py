"""From a photo and words to masks with NumPy, onnxruntime and Pillow alone, beside the graphs of `textsam export`.

    python segment.py PHOTO WORD [WORD ...]

writes WORD.png ("-" for "/"; mask-WORD.png where that is the photo), everything in the photo that WORD names, and
prints how likely it is there at all. Simpler than TextSAM itself: names must be spelled as in config.json, and a word's
instances are one mask, with the decoder's own presence.
"""

import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
SESSIONS: dict = {}


def config() -> dict:
    return json.loads((HERE / "config.json").read_text("utf-8"))


def run(graph: str, inputs: dict) -> list:
    if (HERE, graph) not in SESSIONS:
        SESSIONS[HERE, graph] = onnxruntime.InferenceSession(str(HERE / graph), providers=["CPUExecutionProvider"])
    return SESSIONS[HERE, graph].run(None, inputs)


def read_photo(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright; 16 bits are scaled to 8, and transparent pixels lie on white."""
    photo = ImageOps.exif_transpose(Image.open(path))
    if photo.mode.startswith("I"):
        return np.repeat((np.asarray(photo) / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    rgba = photo.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def encode_image(photo: np.ndarray) -> tuple[dict, tuple[int, int]]:
    """(H, W, 3) uint8 RGB -> the encoder's outputs by name, and (height, width) after resizing."""
    sizes = config()
    side, scale = sizes["image_size"], sizes["image_size"] / max(photo.shape[:2])
    h, w = (max(int(n * scale + 0.5), 1) for n in photo.shape[:2])
    resized = np.asarray(Image.fromarray(photo).resize((w, h), Image.Resampling.BILINEAR), np.float32)
    pixels = np.zeros((1, 3, side, side), np.float32)
    pixels[0, :, :h, :w] = ((resized - np.float32(sizes["pixel_mean"])) / np.float32(sizes["pixel_std"])).transpose(
        2, 0, 1
    )
    return dict(zip(sizes["image_outputs"], run("image_encoder.onnx", {"pixel_values": pixels}), strict=True)), (h, w)


def encode_texts(texts: list[str]) -> np.ndarray:
    """Q known names -> (Q, D): each word is its 3- to 5-letter pieces, hashed; some names have vectors of their own."""
    sizes = config()
    unknown = [text for text in texts if text.lower() not in sizes["names"]]
    if unknown:
        raise SystemExit(f"{unknown[0]!r} is not among the {len(sizes['names'])} names in config.json.")
    rows, names = [], [sizes["names"][text.lower()] for text in texts]
    for name in names:
        words = [f"<{word}>" for word in reversed(name.split()[-sizes["max_words"] :])]
        pieces = [{word, *(word[i : i + n] for n in (3, 4, 5) for i in range(len(word) - n + 1))} for word in words]
        rows.append([[zlib.crc32(piece.encode()) % sizes["num_buckets"] for piece in word] for word in pieces])
    shape = (len(rows), max(map(len, rows)), max(len(word) for row in rows for word in row))
    ngrams = np.full(shape, -1, np.int64)
    for q, row in enumerate(rows):
        for w, word in enumerate(row):
            ngrams[q, w, : len(word)] = word
    embeddings = run("text_encoder.onnx", {"ngrams": ngrams})[0]
    for q, name in enumerate(names):
        embeddings[q] = sizes["vectors"].get(name, embeddings[q])
    return embeddings


def decode(
    image: dict, coords: np.ndarray, labels: np.ndarray, text: np.ndarray, mask: np.ndarray | None = None
) -> list:
    """N objects: coords (N, K, 2) px of the resized photo, labels (N, K) (1 on it, 0 not, 2 and 3 corners of a box, -1
    once behind points without a box), text (N, 0 or 1, D), mask (N, 1, 4h, 4w) logits -> logits (N, 4, 4h, 4w), single
    mask first, predicted IoU (N, 4), presence logits (N, 0 or 1)."""
    side = config()["image_size"] // 4
    given = np.full(len(coords), mask is not None, np.float32)
    inputs = {"point_coords": coords.astype(np.float32), "point_labels": labels.astype(np.int64), "has_mask": given}
    inputs["mask_input"] = (
        np.zeros((len(coords), 1, side, side), np.float32) if mask is None else mask.astype(np.float32)
    )
    return run("prompt_decoder.onnx", image | inputs | {"text_embeddings": text.astype(np.float32)})


def sample(maps: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear, (..., h, w) at rows y and columns x, of which the first has its centre at 0.5 -> (..., Y, X)."""
    for axis, places in ((-2, y), (-1, x)):
        at = np.clip(places - 0.5, 0, maps.shape[axis] - 1).astype(np.float32)
        low, part = at.astype(int), at - at.astype(int)
        part = part[:, None] if axis == -2 else part
        high = np.minimum(low + 1, maps.shape[axis] - 1)
        maps = maps.take(low, axis) * (1 - part) + maps.take(high, axis) * part
    return maps


def resize(maps: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear, (..., h, w) -> (..., H, W)."""
    y, x = (
        (np.arange(size, dtype=np.float32) + 0.5) * (old / size)
        for old, size in zip(maps.shape[-2:], size_hw, strict=True)
    )
    return sample(maps, y, x)


def to_masks(logits: np.ndarray, resized_hw: tuple[int, int], photo_hw: tuple[int, int]) -> np.ndarray:
    """(..., 4h, 4w) logits -> (..., H, W) bool on the photo's own pixels."""
    padded = resize(logits, (4 * logits.shape[-2], 4 * logits.shape[-1]))
    return resize(padded[..., : resized_hw[0], : resized_hw[1]], photo_hw) > 0


def crop_around(inside: np.ndarray, points: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Left, top and side, in px of the photo, of a square around a mask and its prompt.

    inside: (4,) xyxy of the mask. points: (K, 2) and labels: (K,) as `decode` takes them, in px of the photo.
    """
    corners, growth = points[(labels == 2) | (labels == 3)], 1.3
    if not len(corners):
        corners, growth = np.concatenate([inside.reshape(2, 2), points[labels == 1]]), 1.5
    low, high = corners.min(axis=0), corners.max(axis=0)
    side = max(growth * float((high - low).max()) + 8, 24)
    left, top = ((low + high - side) / 2).tolist()
    return left, top, side


def cut(photo: Image.Image, left: float, top: float, side: float, cells: int) -> np.ndarray:
    """That square as (3, cells, cells), black outside of the photo."""
    scale, size = side / cells, (cells, cells)
    if scale <= 1:
        part = photo.transform(size, Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), Image.Resampling.BILINEAR)
        return np.asarray(part, np.float32).transpose(2, 0, 1)
    spans = []  # of the cells that see the photo: the first, how many, and from where to where in the photo
    for start, length in ((left, photo.width), (top, photo.height)):
        ends = np.floor(-start / scale) - 2, np.ceil((length - start) / scale) + 2
        first, last = np.clip(ends, 0, cells).astype(int).tolist()
        low, high = start + first * scale, start + last * scale
        spans.append((first, last - first, low, high, int(np.floor(low)), int(np.ceil(high))))
    (column, columns, left, right, x1, x2), (row, rows, top, bottom, y1, y2) = spans
    part = Image.new("RGB", (x2 - x1, y2 - y1))  # `crop` would take a large one for an attack
    part.paste(photo, (-x1, -y1))
    box = (left - x1, top - y1, right - x1, bottom - y1)
    whole = Image.new("RGB", size)
    whole.paste(part.resize((columns, rows), Image.Resampling.BILINEAR, box=box), (column, row))
    return np.asarray(whole, np.float32).transpose(2, 0, 1)


def redraw(
    photo: np.ndarray,
    logits: np.ndarray,
    resized_hw: tuple[int, int],
    coords: np.ndarray,
    labels: np.ndarray,
    text: np.ndarray,
) -> np.ndarray:
    """(N, 4h, 4w) logits of N objects, and what `decode` was asked -> (N, H, W) bool, each mask drawn again near by."""
    cells, masks = config()["detail_size"], np.zeros((len(logits), *photo.shape[:2]), bool)
    if not cells:
        return to_masks(logits, resized_hw, photo.shape[:2])
    picture, height, width = Image.fromarray(photo), *photo.shape[:2]
    scale = np.array([width / resized_hw[1], height / resized_hw[0]])
    for i in range(len(logits)):
        drawn = logits[i, : -(-resized_hw[0] // 4), : -(-resized_hw[1] // 4)] > 0
        y, x = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        if not len(y):
            continue
        inside = 4 * np.tile(scale, 2) * [x[0], y[0], x[-1] + 1, y[-1] + 1]
        inside = inside.clip(0, [width, height, width, height])
        points = coords[i].reshape(-1, 2) * scale
        left, top, side = crop_around(inside, points, labels[i])
        centres = (np.arange(cells) + 0.5) * (side / cells)
        low = sample(logits[i], (top + centres) / scale[1] / 4, (left + centres) / scale[0] / 4)
        inputs = {
            "pixels": cut(picture, left, top, side, cells)[None],
            "logits": low[None, None].astype(np.float32),
            "point_coords": ((points - [left, top]) * (cells / side)).astype(np.float32)[None],
            "point_labels": labels[i].astype(np.int64)[None],
            "text_embeddings": text[i : i + 1].astype(np.float32),
        }
        near = run("mask_detail.onnx", inputs)[0][0, 0]
        rows = slice(max(int(np.floor(top)), 0), min(int(np.ceil(top + side)), height))
        columns = slice(max(int(np.floor(left)), 0), min(int(np.ceil(left + side)), width))
        down, right = np.arange(rows.start, rows.stop) + 0.5 - top, np.arange(columns.start, columns.stop) + 0.5 - left
        masks[i, rows, columns] = sample(near, down * (cells / side), right * (cells / side)) > 0
        if not masks[i].any():  # a mask is corrected, not lost
            masks[i] = to_masks(logits[i], resized_hw, photo.shape[:2])
    return masks


def main(photo_path: str, *texts: str) -> None:
    try:
        photo = read_photo(photo_path)
    except OSError as error:
        raise SystemExit(f"{photo_path}: {error}") from error
    image, resized_hw = encode_image(photo)
    asked = np.zeros((len(texts), 0, 2)), np.zeros((len(texts), 0)), encode_texts(list(texts))[:, None]
    logits, _, presence = decode(image, *asked)
    masks = redraw(photo, logits[:, 0], resized_hw, *asked)
    for text, mask, score in zip(texts, masks, presence[:, 0], strict=True):
        file = f"{text.replace('/', '-')}.png"
        if os.path.exists(file) and os.path.samefile(file, photo_path):
            file = f"mask-{file}"
        Image.fromarray(mask).save(file)
        sys.stdout.write(f"{text}: there with {1 / (1 + np.exp(-score)):.2f}, {mask.mean():.1%} of the photo\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
