"""Speed beside transformers' `SamModel`: same random weights, same process, outputs compared.

Runs alternate (ours, theirs, ours, ...), so that a busy machine slows both alike; ratios are of the minima. "generate"
is everything after the image encoder. Theirs is the released order of steps on transformers' decoder: all masks are
upscaled to the photo, then scored, filtered, and run-length encoded, then suppressed.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.ops import nms

from textsam import bench_memory
from textsam.automatic import generate
from textsam.automatic_options import AutomaticOptions
from textsam.conversion import config_from_transformers, convert_transformers_state_dict
from textsam.detections import stability_scores
from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings
from textsam.rle import encode_mask
from textsam.transforms import ImageGeometry, postprocess_masks

# Sizes of the vision encoder. "tiny" only shows that the command works.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "global_attn_indexes": [1],
        "image_size": 128,
        "window_size": 3,
    },
    "b": {},
    "l": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "h": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    },
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what was done. dtype: of weights and activations.
        ours_s, theirs_s: seconds of each run. ratio: theirs over ours, of the minima.
        difference: largest difference of the outputs over the largest value; for `generate` the share of masks that
            are not the same to the pixel; for bfloat16 RMS of ours against float32 over RMS of float32.
        their_difference: for bfloat16, the same of theirs; else None.
        ours_mb, theirs_mb: peak memory above the weights and inputs in the first run; None where it is not known.
    """

    work: str
    dtype: str
    ours_s: list[float]
    theirs_s: list[float]
    ratio: float
    difference: float
    their_difference: float | None
    ours_mb: float | None
    theirs_mb: float | None


def run(
    size: str = typer.Option("b", help="b, l, h, or tiny (which only shows that the command works)."),
    rounds: int = typer.Option(5, min=1, help="Timed pairs of runs, after one warm-up each."),
    threads: int = typer.Option(0, min=0, help="Threads; 0: as torch chooses."),
    device: str = typer.Option("cpu", help="cpu, cuda, ..."),
    dtype: str = typer.Option("all", help="float32, bfloat16 or all."),
    work: str = typer.Option("all", help="encoder, decoder, generate or all."),
    json_path: Path = typer.Option(Path("bench.json"), "--json", help="Where the figures are written."),  # noqa: B008
) -> None:
    """Measure encoder, decoder and automatic masks against transformers' SamModel on random weights."""
    for name, value, known in (
        ("size", size, [*SIZES]),
        ("dtype", dtype, ["all", "float32", "bfloat16"]),
        ("work", work, ["all", "encoder", "decoder", "generate"]),
    ):
        if value not in known:
            raise typer.BadParameter(f"{name} must be one of {', '.join(known)}, but is {value!r}.")
    if threads:
        torch.set_num_threads(threads)
    dtypes = [torch.float32, torch.bfloat16] if dtype == "all" else [getattr(torch, dtype)]
    console = Console()
    rows = measure(size, rounds, torch.device(device), dtypes, work, console)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or device,
    }
    console.print(table_of(rows, f"ViT-{size.upper()}, {machine['device']}, {machine['threads']} threads"))
    json_path.write_text(json.dumps({"size": size, **machine, "rows": [asdict(row) for row in rows]}, indent=1))
    console.print(f"Figures: {json_path}")


@torch.inference_mode()
def measure(
    size: str, rounds: int, device: torch.device, dtypes: list[torch.dtype], work: str, console: Console
) -> list[Row]:
    """All rows of the table, largest work first."""
    theirs, ours = build_pair(size)
    theirs, ours = theirs.to(device), ours.to(device)
    side = ours.config.image_size
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, side, side, generator=generator).to(device)
    rows, reference = [], None
    for dtype in dtypes:
        theirs, ours = theirs.to(dtype), ours.to(dtype)
        jobs: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = []
        if work in ("all", "encoder"):
            x = pixels.to(dtype)
            jobs.append(("encoder", lambda x=x: ours.image_encoder(x), lambda x=x: theirs.get_image_embeddings(x)))
        embeddings = torch.randn(1, 256, side // 16, side // 16, generator=generator).to(device, dtype)
        if work in ("all", "decoder"):
            jobs += [decoder_job(ours, theirs, embeddings, count) for count in (1, 64)]
        if work in ("all", "generate") and dtype == torch.float32:
            jobs.append(generate_job(ours, theirs, embeddings, points_per_side=4 if size == "tiny" else 32))
        for name, our_job, their_job in jobs:
            with console.status(f"{name}, {str(dtype).removeprefix('torch.')}"):
                row, output = _measure_row(name, dtype, our_job, their_job, rounds, device, reference)
            reference = output if name == "encoder" and dtype == torch.float32 else reference
            rows.append(row)
    return rows


def build_pair(size: str) -> tuple[Any, TextSamModel]:
    """transformers' SAM with scaled-dot-product attention, and ours with the same random weights, norms included."""
    from transformers import SamConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    torch.manual_seed(0)
    vision = SamVisionConfig(**SIZES[size])
    prompt = SamPromptEncoderConfig(image_size=vision.image_size)
    config = SamConfig(vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict())
    theirs = SamModel._from_config(config, attn_implementation="sdpa").eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.1)
        elif "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.02)
    for module in theirs.mask_decoder.transformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5  # the original's; transformers' 1e-6 would show as a difference
    ours_config = config_from_transformers(config.to_dict())
    ours = TextSamModel(ours_config).eval()
    ours.load_state_dict(convert_transformers_state_dict(theirs.state_dict(), ours_config), strict=False)
    return theirs, ours


def decoder_job(
    ours: TextSamModel, theirs: Any, embeddings: Tensor, count: int
) -> tuple[str, Callable[[], Tensor], Callable[[], Tensor]]:
    """`count` prompts of one point each on an encoded image, in one call."""
    side = ours.config.image_size
    coords = (torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(2)) * side).to(embeddings.device)
    labels = torch.ones(count, 1, dtype=torch.int64, device=embeddings.device)
    image = ImageEmbeddings(embeddings, (side, side))

    def decode() -> Tensor:
        prompts = ours.encode_prompts(image, point_coords=coords, point_labels=labels)
        return ours.decode_masks(image, prompts, multimask_output=True).low_res_logits

    def decode_theirs() -> Tensor:
        return _their_masks(theirs, embeddings, coords)[0]

    return f"decoder, {count} point{'s' * (count > 1)}", decode, decode_theirs


def _their_masks(theirs: Any, embeddings: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.ones(1, len(coords), 1, dtype=torch.int64, device=coords.device)
    points = coords[None].to(embeddings.dtype)
    out = theirs(image_embeddings=embeddings, input_points=points, input_labels=labels, multimask_output=True)
    return out.pred_masks[0], out.iou_scores[0]


def generate_job(
    ours: TextSamModel, theirs: Any, embeddings: Tensor, points_per_side: int
) -> tuple[str, Callable[[], list[dict]], Callable[[], list[dict]]]:
    """Automatic masks of a 3:2 photo that is already encoded."""
    side = ours.config.image_size
    image = ImageEmbeddings(embeddings, (side, side))
    photo = np.zeros((round(side * 683 / 1024), side, 3), dtype=np.uint8)
    geometry = ImageGeometry.of(photo.shape[:2], side)
    grid = AutomaticOptions(points_per_side=points_per_side).grid(0) * np.array([photo.shape[1], photo.shape[0]])
    coords = torch.from_numpy(geometry.points_to_input(grid)).float().to(embeddings.device)[:, None]
    # Random weights have no opinion of their own: the thresholds let about a tenth of the masks through.
    logits, iou = _their_masks(theirs, embeddings, coords[:: max(len(coords) // 32, 1)])
    options = AutomaticOptions(
        points_per_side=points_per_side,
        pred_iou_thresh=max(iou.float().quantile(0.7).item(), 1e-3),
        stability_score_thresh=stability_scores(logits.float()).quantile(0.6).item(),
    )

    def released_order() -> list[dict]:
        boxes, scores, rles = [], [], []
        for start in range(0, len(coords), options.points_per_batch):
            low_res, iou = _their_masks(theirs, embeddings, coords[start : start + options.points_per_batch])
            masks, iou = postprocess_masks(low_res, geometry).flatten(0, 1), iou.flatten()
            keep = iou > options.pred_iou_thresh
            masks, iou = masks[keep], iou[keep]
            keep = stability_scores(masks) >= options.stability_score_thresh
            masks, iou = masks[keep] > 0, iou[keep]
            boxes.append(_mask_boxes(masks))
            scores.append(iou.float())
            rles += [encode_mask(mask) for mask in masks.cpu().numpy()]
        kept = nms(torch.cat(boxes), torch.cat(scores), options.box_nms_thresh)
        return [rles[i] for i in kept.tolist()]

    def ours_all() -> list[dict]:
        return generate(ours, photo, options, embeddings=image).rles

    return f"generate, {points_per_side} x {points_per_side} points", ours_all, released_order


def _mask_boxes(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, 4) float xyxy, zeros for an empty mask."""
    edges = []
    for axis in (1, 2):
        hit = masks.any(dim=axis).to(torch.uint8)
        size = hit.shape[1]
        edges.append((hit.argmax(1), size - 1 - hit.flip(1).argmax(1)))
    boxes = torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], dim=1).float()
    return boxes * masks.flatten(1).any(1)[:, None]


def _measure_row(
    name: str,
    dtype: torch.dtype,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    rounds: int,
    device: torch.device,
    reference: Any,
) -> tuple[Row, Any]:
    output, ours_mb = bench_memory.peak_mb(ours, device)
    expected, theirs_mb = bench_memory.peak_mb(theirs, device)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for job, seconds in zip((ours, theirs), times, strict=True):
            seconds.append(_seconds(job, device))
    ratio = min(times[1]) / min(times[0])
    their_difference = None
    if dtype == torch.bfloat16 and name == "encoder" and reference is not None:
        difference, their_difference = (_rms_difference(x, reference) for x in (output, expected))
    else:
        difference = _difference(output, expected)
    label = str(dtype).removeprefix("torch.")
    return Row(name, label, *times, ratio, difference, their_difference, ours_mb, theirs_mb), output


def _seconds(job: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _difference(output: Any, expected: Any) -> float:
    if isinstance(output, Tensor):
        return ((output.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
    same = {rle["counts"] for rle in output} & {rle["counts"] for rle in expected}
    return 1 - len(same) / max(len(output), len(expected), 1)


def _rms_difference(output: Tensor, reference: Tensor) -> float:
    return ((output.float() - reference).square().mean() / reference.square().mean()).sqrt().item()


def table_of(rows: list[Row], title: str) -> Table:
    """The figures for people."""
    table = Table(title=title, caption="seconds: minimum / median; MB: peak above the weights")
    for column in ("work", "dtype", "TextSAM, s", "transformers, s", "ratio", "difference", "TextSAM, MB", "tr., MB"):
        table.add_column(column, justify="left" if column in ("work", "dtype") else "right", no_wrap=True)
    for row in rows:
        seconds = [f"{min(x):.3f} / {statistics.median(x):.3f}" for x in (row.ours_s, row.theirs_s)]
        difference = f"{row.difference:.1e}"
        if row.their_difference is not None:
            difference += f" (theirs {row.their_difference:.1e})"
        memory = ["-" if x is None else f"{x:.0f}" for x in (row.ours_mb, row.theirs_mb)]
        table.add_row(row.work, row.dtype, *seconds, f"{row.ratio:.2f}", difference, *memory)
    return table


if __name__ == "__main__":
    typer.run(run)
