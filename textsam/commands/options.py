"""The options that commands share: their help, and from the text on the command line to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import numpy as np

Source = Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER", help="A picture, or a folder of pictures.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", file_okay=False, help="Output folder; made when missing.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="textsam-tiny-ocr (written text), facebook/sam-vit-base (-large, -huge), a folder, a Hub id or a "
        "sam_vit_*.pth. Default: the embedded one, textsam-tiny.",
        show_default=False,
    ),
]
Clip = Annotated[
    str | None, typer.Option("--clip", metavar="NAME:TAG", help="Another open_clip model, such as ViT-B-32:openai.")
]
Adapter = Annotated[str | None, typer.Option("--adapter", metavar="PATH|ID", help="A trained text prompt to add.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps. Default: the best one there.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option("--dtype", help="Default: what suits the device.", show_default=False),
]
Quantize = Annotated[
    Literal["int8", "int8-dynamic", "float8"] | None,
    typer.Option("--quantize", help="A ViT's matrices in eight bits, through torchao.", show_default=False),
]
NegativeText = Annotated[
    list[str] | None, typer.Option("--negative-text", metavar="TEXT", help="What not to find instead; as --text.")
]
Threshold = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Least confidence. Default: the model's own.")
]
Slice = Annotated[
    int | None,
    typer.Option(
        "--slice",
        metavar="PX",
        min=32,
        help="Ask slices of this side, too: small things in large pictures.",
        show_default=False,
    ),
]
Format = Annotated[
    Literal["coco", "yolo", "voc"] | None,
    typer.Option("--format", help="Also write DIR/dataset in this form.", show_default=False),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Do pictures again that are done, and replace files that no run wrote.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        file_okay=False,
        help="Keep embeddings there: a second run only decodes.",
        show_default=False,
    ),
]


def parse_names(values: list[str] | None, option: str) -> list[str]:
    """`--text cat --text "dog, red bus"` to ["cat", "dog", "red bus"], each once."""
    if values is None:
        return []
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise typer.BadParameter("expected words, got an empty text.", param_hint=option)
    return list(dict.fromkeys(names))


def parse_points(values: list[str] | None) -> tuple[list[list[float]], list[int]]:
    """`x,y` or `x,y,label` to points (K, 2) in pixels and labels (K,), 1 when not given."""
    points, labels = [], []
    for value in values or []:
        numbers = _numbers(value, "--point", "x,y or x,y,0 (background), such as 120,80", (2, 3))
        label = numbers[2] if len(numbers) == 3 else 1
        if label not in (0, 1):
            raise typer.BadParameter(f"the label in {value!r} is 1 (object) or 0 (background).", param_hint="--point")
        points.append(numbers[:2])
        labels.append(int(label))
    return points, labels


def parse_boxes(values: list[str] | None) -> list[list[float]]:
    """`x1,y1,x2,y2` to boxes (N, 4), xyxy in pixels."""
    return [_numbers(value, "--box", "x1,y1,x2,y2, such as 10,20,200,180", (4,)) for value in values or []]


def read_mask(path: Path) -> np.ndarray:
    """A mask prompt: a picture, light and not transparent on the object, to (H, W) bool; or low-res logits that
    `numpy.save` wrote."""
    import numpy as np
    from PIL import Image

    from textsam.files.images import read_image, upright

    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not an array saved with numpy.save ({error}).") from error
    light = read_image(path).max(axis=2)
    with Image.open(path) as opened:
        if opened.has_transparency_data:  # `read_image` lays it on white
            pixels = np.asarray(upright(opened).convert("RGBA")).astype(np.uint16)
            light = pixels[:, :, :3].max(axis=2) * pixels[:, :, 3] // 255
    mask = light > 127
    if mask.all() or not mask.any():
        shade = "light" if mask.all() else "dark"
        raise ValueError(f"{path} is {shade} everywhere; expected white on the object and black elsewhere.")
    return mask


def geometry(point: list[str] | None, box: list[str] | None, mask: Path | None, *, multimask: bool) -> dict[str, Any]:
    """The keyword arguments of `TextSam.predict` for points, boxes and a mask; empty without any."""
    points, labels = parse_points(point)
    boxes = parse_boxes(box)
    if points and len(boxes) > 1:
        raise typer.BadParameter(
            f"points belong to one object, and here are {len(boxes)} boxes; give one box, or run once for each object.",
            param_hint="--point",
        )
    if mask is not None and len(boxes) > 1:
        raise typer.BadParameter(f"one mask cannot go with {len(boxes)} boxes.", param_hint="--mask")
    prompts: dict[str, Any] = {}
    if points:
        prompts |= {"points": points, "point_labels": labels}
    if boxes:
        prompts["boxes"] = boxes
    if mask is not None:
        prompts["mask_input"] = read_mask(mask)
    if multimask:
        if not prompts:
            raise typer.BadParameter("goes with --point, --box or --mask.", param_hint="--multimask")
        prompts["multimask_output"] = True
    return prompts


def _numbers(value: str, option: str, expected: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise typer.BadParameter(f"expected {expected}, got {value!r}.", param_hint=option)
    return numbers
