"""`textsam export --onnx`: a folder that onnxruntime runs without PyTorch."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from textsam.deployment.onnx_modules import (
    OnnxImageEncoder,
    OnnxMaskDetail,
    OnnxPromptDecoder,
    OnnxTextEncoder,
    as_exported,
    image_parts,
)
from textsam.language.small_clip import MAX_WORDS, SmallTextEncoder
from textsam.predictor import TextSam
from textsam.prompting.mask_details import DETAIL_SIDE

OPSET = 20
IMAGE_ENCODER, TEXT_ENCODER, PROMPT_DECODER = "image_encoder.onnx", "text_encoder.onnx", "prompt_decoder.onnx"
MASK_DETAIL, SCRIPT = "mask_detail.onnx", "segment.py"


def export_onnx(
    sam: TextSam, folder: str | Path, *, int8: bool = False, on_graph: Callable[[str], None] = lambda name: None
) -> list[Path]:
    """Writes the graphs, their configuration and a script that uses them, whole or not at all.

    The numbers of prompts N, points K and texts T (0 or 1 for each prompt) are free; the input is the padded square of
    the model's side, one image at a time. What each graph takes and gives is said in
    `textsam.deployment.onnx_modules`. Weights are float32 whatever the model's dtype.

    Args:
        sam: a model with the small text encoder; with another one, or without, text_encoder.onnx is left out and the
            decoder still takes embeddings of texts, where its text prompt was trained. Of a model that reads written
            text, such as textsam-tiny-ocr, the graphs are those of any model: they do not read it by tiles, so that
            "word" is one rough mask of all words.
        folder: made when missing; files of the same names are replaced.
        int8: weights of matrix products in 8 bits (dynamic quantisation); convolutions stay in float32.
        on_graph: called with the name of each file before it is made.
    Returns:
        The files.
    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing, naming the extra to install.
        FileExistsError: the folder holds something else under the names of an export, such as the model itself.
        ValueError: the model takes the dense form of a text prompt, which needs its CLIP's image tower; or it is
            quantised.
    """
    if sam.network.config.dense_text:
        raise ValueError(
            "A model with dense_text cannot be exported: its CLIP's image tower looks at every photo, and is not among "
            "the graphs; train the text prompt without prompt.dense for that."
        )
    if any(hasattr(parameter, "__tensor_flatten__") for parameter in sam.network.parameters()):
        raise ValueError("Expected plain weights to export, got quantised ones: load without quantize, use int8=True.")
    _require("onnx", "onnxscript", "onnxruntime")
    folder = Path(folder)
    there = [name for name in ("config.json", SCRIPT) if (folder / name).exists()]
    if there and not _is_export(folder):
        raise FileExistsError(f"{folder / there[0]} is of no export, and would be replaced: give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    model = as_exported(sam.network)
    encoder = sam.carried_encoders[0] if model.config.text_trained else None
    small = as_exported(encoder) if isinstance(encoder, SmallTextEncoder) else None
    side = model.config.image_size
    with tempfile.TemporaryDirectory(dir=folder) as scratch, torch.no_grad():
        part = Path(scratch)
        pixels = torch.zeros(1, 3, side, side)
        parts = image_parts(model.encode_image(pixels))
        on_graph(IMAGE_ENCODER)
        names = {"input_names": ["pixel_values"], "output_names": list(parts)}
        _export(OnnxImageEncoder(model), (pixels,), ({},), part / IMAGE_ENCODER, int8, **names)
        on_graph(PROMPT_DECODER)
        _export_decoder(model, parts, part / PROMPT_DECODER, int8)
        if model.config.mask_detail:
            on_graph(MASK_DETAIL)
            _export_detail(model, part / MASK_DETAIL, int8)
        if small is not None:
            on_graph(TEXT_ENCODER)
            free = ({0: Dim("queries"), 1: Dim("words"), 2: Dim("grams")},)
            names = {"input_names": ["ngrams"], "output_names": ["text_embeddings"]}
            example = torch.tensor([[[1, 2, 3], [4, 5, -1]], [[6, 7, 8], [-1, -1, -1]]])
            _export(OnnxTextEncoder(small), (example,), free, part / TEXT_ENCODER, int8, **names)
        (part / "config.json").write_text(json.dumps(_configuration(model.config, list(parts), small), indent=1))
        shutil.copyfile(str(files("textsam") / "deployment" / SCRIPT), part / SCRIPT)
        written = sorted(part.iterdir())
        for path in written:
            path.chmod(0o644)
            os.replace(path, folder / path.name)
    return [folder / path.name for path in written]


def _is_export(folder: Path) -> bool:
    try:
        return "image_outputs" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False


def _export_decoder(model: Any, parts: dict[str, Tensor], path: Path, int8: bool) -> None:
    """Examples have no axis of 1 that is to be free: the exporter would take it for fixed."""
    count, points, queries = Dim("prompts"), Dim("points"), Dim("queries")
    low = 4 * parts["image_embeddings"].shape[-1]
    examples: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "point_coords": (torch.rand(2, 3, 2) * model.config.image_size, {0: count, 1: points}),
        "point_labels": (torch.tensor([[1, 0, -1], [1, 2, 3]]), {0: count, 1: points}),
        "mask_input": (torch.randn(2, 1, low, low), {0: count}),
        "has_mask": (torch.tensor([1.0, 0.0]), {0: count}),
        "text_embeddings": (torch.randn(2, 2, model.config.clip_dim), {0: count, 1: queries}),
    }
    tensors, free = zip(*examples.values(), strict=True)
    _export(
        OnnxPromptDecoder(model, list(parts), model.config.image_size),
        (list(parts.values()), *tensors),
        ([{} for _ in parts], *free),
        path,
        int8,
        input_names=[*parts, *examples],
        output_names=["low_res_logits", "iou_predictions", "presence_logits"],
    )


def _export_detail(model: Any, path: Path, int8: bool) -> None:
    count, points, queries = Dim("masks"), Dim("points"), Dim("queries")
    side = DETAIL_SIDE
    examples: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "pixels": (torch.rand(2, 3, side, side) * 255, {0: count}),
        "logits": (torch.randn(2, 1, side, side), {0: count}),
        "point_coords": (torch.rand(2, 3, 2) * side, {0: count, 1: points}),
        "point_labels": (torch.tensor([[1, 0, -1], [1, 2, 3]]), {0: count, 1: points}),
        "text_embeddings": (torch.randn(2, 2, model.config.clip_dim), {0: count, 1: queries}),
    }
    tensors, free = zip(*examples.values(), strict=True)
    names = {"input_names": list(examples), "output_names": ["detailed_logits"]}
    _export(OnnxMaskDetail(model, side), tensors, free, path, int8, **names)


def _export(
    module: nn.Module,
    examples: tuple[Any, ...],
    free: tuple[Any, ...],
    path: Path,
    int8: bool,
    input_names: list[str],
    output_names: list[str],
) -> None:
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            dynamic_shapes=free,
            opset_version=OPSET,
            verbose=False,
            input_names=input_names,
            output_names=output_names,
        )
        program.save(path)  # type: ignore[union-attr]
        if int8:
            quantize(path)


def quantize(path: Path) -> None:
    """The weights of a graph's matrix products to 8 bits, in place; activations are scaled as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_suffix(".float.onnx")
    os.replace(path, whole)
    with _quiet():
        quantize_dynamic(whole, path, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    whole.unlink()


def _configuration(config: Any, parts: list[str], text_encoder: SmallTextEncoder | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "image_size": config.image_size,
        "pixel_mean": list(config.pixel_mean),
        "pixel_std": list(config.pixel_std),
        "image_outputs": parts,
        "detail_size": DETAIL_SIDE if config.mask_detail else 0,
        "text_trained": config.text_trained,
        "clip_name": config.clip_name,
        "names": {},
        "vectors": {},
    }
    if text_encoder is not None:
        vocabulary = text_encoder.vocabulary
        names = {name: name for name in vocabulary.names}
        content |= {"num_buckets": text_encoder.num_buckets, "max_words": MAX_WORDS}
        content["names"] = {spelling.lower(): name for spelling, name in (vocabulary.aliases | names).items()}
        if text_encoder.num_extra:
            vectors = F.normalize(text_encoder.extra, dim=-1).tolist()
            content["vectors"] = dict(zip(vocabulary.names[-text_encoder.num_extra :], vectors, strict=True))
    return content


def _require(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX export needs {', '.join(missing)}: pip install 'textsam[onnx]'.")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantiser report on themselves by warnings and on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
