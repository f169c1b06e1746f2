"""An exported folder beside the model that it came from: how far results differ, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textsam.deployment.onnx_modules import as_exported, image_parts
from textsam.predictor import TextSam

ROUNDS = 5


@dataclass(frozen=True)
class Comparison:
    """One graph. seconds: minima of `ROUNDS` alternating runs; difference: largest of any output."""

    graph: str
    onnx_seconds: float
    torch_seconds: float
    difference: float
    scale: float  # largest absolute value of the outputs, which the difference is to be seen beside


@torch.inference_mode()
def compare(sam: TextSam, folder: Path, prompts: int = 1, rounds: int = ROUNDS) -> list[Comparison]:
    """Image encoder and prompt decoder (one click and, where text was trained, one text for each of `prompts`).

    Both on the CPU with as many threads as torch has, on random pixels.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

    with torch.inference_mode(False):  # the kernels do not take weights that were made within
        model = as_exported(sam.network)
    generator = torch.Generator().manual_seed(0)
    side, queries = model.config.image_size, int(model.config.text_trained)
    pixels = torch.randn(1, 3, side, side, generator=generator)
    encode = session("image_encoder.onnx")
    found = [
        _compare(
            "image encoder",
            lambda: encode.run(None, {"pixel_values": pixels.numpy()}),
            lambda: [part.numpy() for part in image_parts(model.encode_image(pixels)).values()],
            rounds,
        )
    ]
    image = model.encode_image(pixels)
    coords = torch.rand(prompts, 1, 2, generator=generator) * side
    labels = torch.ones(prompts, 1, dtype=torch.int64)
    text = torch.nn.functional.normalize(
        torch.randn(prompts, queries, model.config.clip_dim, generator=generator), dim=-1
    )
    low = side // 4
    inputs = {name: part.numpy() for name, part in image_parts(image).items()} | {
        "point_coords": np.concatenate([coords.numpy(), np.zeros((prompts, 1, 2), np.float32)], axis=1),
        "point_labels": np.concatenate([labels.numpy(), -np.ones((prompts, 1), np.int64)], axis=1),
        "mask_input": np.zeros((prompts, 1, low, low), np.float32),
        "has_mask": np.zeros(prompts, np.float32),
        "text_embeddings": text.numpy(),
    }
    decode = session("prompt_decoder.onnx")

    def by_torch() -> list[np.ndarray]:
        embedded = model.encode_prompts(
            image, point_coords=coords, point_labels=labels, text_embeddings=text[:, 0] if queries else None
        )
        masks = model.decode_masks(image, embedded, multimask_output=None)
        presence = torch.zeros(prompts, 0) if masks.presence_logits is None else masks.presence_logits[:, None]
        return [masks.low_res_logits.numpy(), masks.iou_predictions.numpy(), presence.numpy()]

    found.append(_compare(f"prompt decoder, {prompts}", lambda: decode.run(None, inputs), by_torch, rounds))
    return found


def _compare(
    name: str, by_onnx: Callable[[], list[np.ndarray]], by_torch: Callable[[], list[np.ndarray]], rounds: int
) -> Comparison:
    seconds: dict[str, list[float]] = {"onnx": [], "torch": []}
    results: dict[str, list[np.ndarray]] = {}
    for turn in range(rounds + 1):  # the first warms up
        for kind, run in (("onnx", by_onnx), ("torch", by_torch)):
            start = time.perf_counter()
            results[kind] = run()
            if turn:
                seconds[kind].append(time.perf_counter() - start)
    pairs = [(a, b) for a, b in zip(results["onnx"], results["torch"], strict=True) if a.size]
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    scale = max(float(np.abs(b).max()) for _, b in pairs)
    return Comparison(name, min(seconds["onnx"]), min(seconds["torch"]), difference, scale)
