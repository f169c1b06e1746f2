"""Exported graphs in onnxruntime against the model in torch, and the script that needs no torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import CLIP_DIM, mobile_miniature
from PIL import Image
from tiny_models import tiny_model, unit_text
from torch.nn import functional as F
from typer.testing import CliRunner

import textsam
from textsam import deployment
from textsam.commands.cli import app
from textsam.deployment import segment
from textsam.deployment.onnx_export import MASK_DETAIL, TEXT_ENCODER, _export, _export_detail, export_onnx, quantize
from textsam.deployment.onnx_timing import compare
from textsam.files.images import read_image
from textsam.language.small_clip import SmallTextEncoder
from textsam.language.vocabulary import Vocabulary
from textsam.prompting.mask_details import Asked, Crop, masks_of_photo
from textsam.prompting.transforms import ImageGeometry

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def load_script(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"segment_{folder.name}", folder / "segment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[textsam.TextSam, Path]:
    """The embedded model's structure, by the command."""
    out = tmp_path_factory.mktemp("onnx")
    result = CliRunner().invoke(app, ["export", "--onnx", str(out), "--model", str(tiny_folder)])
    assert result.exit_code == 0, result.output
    assert "prompt_decoder.onnx" in result.output
    return textsam.load(tiny_folder, device="cpu", dtype="float32"), out


def check_decoder(sam: Any, script: ModuleType, photo: np.ndarray, text: torch.Tensor | None) -> None:
    """Any number of prompts and points, boxes, a mask, with and without text: all four masks as in torch."""
    sam.set_image(photo)
    image, (height, width) = script.encode_image(photo)
    encoded = sam._image
    assert encoded.geometry.resized_size_hw == (height, width)
    model, count = sam.model, 2
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 3, 2, generator=generator) * min(height, width)
    labels = torch.tensor([[1, 0, 1], [0, 1, -1]])
    boxes = torch.tensor([[10.0, 12.0, 60.0, 50.0], [4.0, 5.0, 80.0, 70.0]])
    side = model.config.image_size // 4
    mask = torch.randn(count, 1, side, side, generator=generator)
    corners, ends = boxes.reshape(count, 2, 2), torch.tensor([[2, 3]]).expand(count, -1)
    padding, end = torch.zeros(count, 1, 2), -torch.ones(count, 1, dtype=torch.int64)
    cases: list[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]] = [
        (
            {"point_coords": points, "point_labels": labels},
            torch.cat([points, padding], 1),
            torch.cat([labels, end], 1),
        ),
        ({"boxes": boxes}, corners, ends),
        (
            {"point_coords": points, "point_labels": labels, "boxes": boxes},
            torch.cat([points, corners], 1),
            torch.cat([labels, ends], 1),
        ),
        ({"boxes": boxes, "mask_input": mask}, corners, ends),
        ({"boxes": boxes[:1]}, corners[:1], ends[:1]),
    ]
    if text is not None:
        cases.append(({}, torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.int64)))
    for given, coords, kinds in cases:
        for words in (None, text) if given else (text,):
            rows = len(coords)
            asked = given if words is None else {**given, "text_embeddings": words[:rows]}
            with torch.inference_mode():
                prompts = model.encode_prompts(encoded.embeddings, **asked)
                expected = model.decode_masks(encoded.embeddings, prompts, multimask_output=None)
            tokens = (
                np.zeros((rows, 0, model.config.clip_dim), np.float32) if words is None else words[:rows, None].numpy()
            )
            former = mask.numpy() if "mask_input" in given else None
            logits, iou, presence = script.decode(image, coords.numpy(), kinds.numpy(), tokens, former)
            scale = float(np.abs(logits).max())
            np.testing.assert_allclose(logits, expected.low_res_logits, rtol=0, atol=1e-5 * max(scale, 1))
            np.testing.assert_allclose(iou, expected.iou_predictions, **TOLERANCE)
            assert presence.shape == (rows, 0 if words is None else 1)
            if words is not None:
                np.testing.assert_allclose(presence[:, 0], expected.presence_logits, **TOLERANCE)


def test_mobile_model(exported: tuple[textsam.TextSam, Path], cat_photo: np.ndarray) -> None:
    sam, folder = exported
    script = load_script(folder)
    names = ["cat", "dog"]
    embeddings = script.encode_texts(names)
    np.testing.assert_allclose(embeddings, sam.text_encoder.encode(names), **TOLERANCE)
    check_decoder(sam, script, cat_photo, torch.from_numpy(embeddings))


def test_masks_of_words(exported: tuple[textsam.TextSam, Path], cat_photo: np.ndarray) -> None:
    """The mask of a word alone, on the photo's own pixels, as TextSam reads it."""
    from textsam.prompting.text_reading import read_texts
    from textsam.prompting.transforms import masks_at_original_size

    sam, folder = exported
    script = load_script(folder)
    image, resized = script.encode_image(cat_photo)
    texts = script.encode_texts(["cat", "person"])
    logits, _, _ = script.decode(image, np.zeros((2, 0, 2)), np.zeros((2, 0)), texts[:, None])
    masks = script.to_masks(logits[:, 0], resized, cat_photo.shape[:2])
    sam.set_image(cat_photo)
    with torch.inference_mode():
        reading = read_texts(sam.model, sam._image.embeddings, sam._image.geometry, torch.from_numpy(texts))
    expected = masks_at_original_size(reading.region_logits, sam._image.geometry)
    assert expected.any()
    assert not expected.all()
    assert (masks != expected).mean() < 0.002  # the padding's logits bleed over its edge here


def test_masks_are_redrawn_near_by(tmp_path: Path, cat_photo: np.ndarray) -> None:
    """By words, clicks, boxes and several at once: as `predict` does it, in crops of the size of the graph."""
    model = mobile_miniature(mask_detail=True)
    _export_detail(model, tmp_path / MASK_DETAIL, int8=False)
    (tmp_path / "config.json").write_text('{"detail_size": 192}')
    shutil.copy(deployment.__path__[0] + "/segment.py", tmp_path)
    script = load_script(tmp_path)
    geometry = ImageGeometry.of(cat_photo.shape[:2], model.config.image_size)
    resized = geometry.resized_size_hw
    low = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    side = model.config.image_size // 4
    logits = 3 * F.interpolate(low, (side, side), mode="bilinear")[:, 0]
    scale = np.array(cat_photo.shape[1::-1]) / resized[::-1]
    text, silent = unit_text(CLIP_DIM).numpy()[:, None], np.zeros((2, 0, CLIP_DIM), np.float32)
    nowhere, click = np.zeros((2, 0, 2)), np.array([[[30.0, 20.0], [0, 0]]] * 2)
    clicks, box = np.array([[[30.0, 20.0], [12.0, 9.0], [0, 0]]] * 2), np.array([[[5.0, 6.0], [50.0, 40.0]]] * 2)
    cases: list[tuple[np.ndarray, list[int], np.ndarray]] = [
        (nowhere, [], text),
        (click, [1, -1], silent),
        (click, [1, -1], text),
        (clicks, [1, 0, -1], silent),
        (box, [2, 3], silent),
        (box, [2, 3], text),
    ]
    for coords, kinds, words in cases:
        labels = np.array([kinds] * 2, int)
        number = sum(kind in (0, 1) for kind in kinds)
        asked = Asked(
            boxes=(coords * scale).reshape(2, 4) if 2 in kinds else None,
            points=coords[:, :number] * scale if number else None,
            labels=labels[:, :number] if number else None,
            texts=torch.from_numpy(words[:, 0]) if words.shape[1] else None,
        )
        with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Asked, "cells", 192)
            expected = masks_of_photo(model, cat_photo, logits, geometry, asked)
        found = script.redraw(cat_photo, logits.numpy(), resized, coords, labels, words)
        assert found.any(axis=(1, 2)).all()
        assert not found.all(axis=(1, 2)).any()
        assert (found != expected).mean() < 1e-3


def test_script_runs_without_torch(exported: tuple[textsam.TextSam, Path], in_tmp: Path, cat_photo: np.ndarray) -> None:
    _, folder = exported
    Image.fromarray(cat_photo).save("cat.jpg")
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['segment.py', 'cat.jpg', *sys.argv[2:]]; "
        f"runpy.run_path({str(folder / 'segment.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, "-", "cat", "Zebra"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cat: there with 0.")
    assert np.asarray(Image.open("cat.png")).shape == cat_photo.shape[:2]
    done = subprocess.run([sys.executable, "-c", code, "-", "unicorn"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "'unicorn' is not among the 5 names" in done.stderr
    before = Path("cat.png").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", code.replace("cat.jpg", "cat.png"), "-", "cat"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path("cat.png").read_bytes() == before
    assert Path("mask-cat.png").is_file()


def test_script_turns_photos_upright_and_writes_names_with_a_slash(
    exported: tuple[textsam.TextSam, Path], in_tmp: Path, cat_photo: np.ndarray
) -> None:
    shutil.copytree(exported[1], "exported")
    content = json.loads(Path("exported/config.json").read_text())
    content["names"]["cup/mug"] = "cup"
    Path("exported/config.json").write_text(json.dumps(content))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(cat_photo)).save("turned.jpg", exif=turned)
    load_script(in_tmp / "exported").main("turned.jpg", "cup/mug")
    assert np.asarray(Image.open("cup-mug.png")).shape == cat_photo.shape[:2]


def test_script_reads_photos_as_the_package_does(in_tmp: Path, cat_photo: np.ndarray) -> None:
    rgba = np.dstack([cat_photo, np.linspace(0, 255, cat_photo.shape[1]).astype(np.uint8)[None].repeat(300, 0)])
    pictures = {
        "deep.png": Image.fromarray(cat_photo[..., 0].astype(np.uint16) * 257),
        "clear.png": Image.fromarray(rgba),
        "palette.png": Image.fromarray(cat_photo).convert("P"),
        "grey.png": Image.fromarray(cat_photo[..., 0]),
        "cmyk.jpg": Image.fromarray(cat_photo).convert("CMYK"),
    }
    for name, picture in pictures.items():
        picture.save(name)
        found = segment.read_photo(name)
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found.astype(int), read_image(name), rtol=0, atol=1, err_msg=name)


def test_script_cuts_as_the_package_does() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 900, 3), dtype=np.uint8))
    for left, top, side in ((-170.3, -420.6, 1000.5), (100.5, 3.25, 30.0), (400.0, 10.0, 300.0)):
        expected = Crop(left, top, side, 64).of_picture(picture).transpose(2, 0, 1)
        np.testing.assert_array_equal(segment.cut(picture, left, top, side, 64), expected)


def test_script_takes_numbers_of_any_precision(exported: tuple[textsam.TextSam, Path], cat_photo: np.ndarray) -> None:
    script = load_script(exported[1])
    image, _ = script.encode_image(cat_photo)
    coords, labels, side = (
        np.array([[[40.0, 30.0], [0.0, 0.0]]]),
        np.array([[1, -1]]),
        4 * image["image_embeddings"].shape[-1],
    )
    results = []
    for kind in (np.float32, np.float64):
        text, mask = np.zeros((1, 0, CLIP_DIM), kind), np.ones((1, 1, side, side), kind)
        results.append(script.decode(image, coords.astype(kind), labels, text, mask)[0])
    np.testing.assert_array_equal(*results)


def words_of_miniature(**sizes: int) -> SmallTextEncoder:
    sizes = {"num_buckets": 64, "width": 16, "mlp_dim": 16, "embed_dim": CLIP_DIM, **sizes}
    return SmallTextEncoder(Vocabulary(["cat", "dog"]), **sizes)


def test_names_with_vectors_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked up, by any spelling, beside names that are computed."""

    def export_words(module: Any, examples: Any, free: Any, path: Path, *rest: Any, **names: Any) -> None:
        if path.name == TEXT_ENCODER:
            _export(module, examples, free, path, *rest, **names)

    monkeypatch.setattr("textsam.deployment.onnx_export._export", export_words)
    words = words_of_miniature().with_names(["text", "text line"], unit_text(CLIP_DIM), {"row": "text line"})
    export_onnx(textsam.TextSam(mobile_miniature(), words), tmp_path)
    asked = ["text line", "cat", "Text", "row"]
    np.testing.assert_allclose(load_script(tmp_path).encode_texts(asked), words.encode(asked), **TOLERANCE)


def test_the_model_goes_on_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cat_photo: np.ndarray) -> None:
    monkeypatch.setattr("textsam.deployment.onnx_export._export", lambda *_, **__: None)
    sam = textsam.TextSam(mobile_miniature().bfloat16(), words_of_miniature().bfloat16())
    sam.set_image(cat_photo)
    expected = sam.predict(points=[[230, 150]])
    export_onnx(sam, tmp_path)
    np.testing.assert_array_equal(sam.predict(points=[[230, 150]]).mask, expected.mask)
    assert {each.dtype for part in (sam.network, sam.text_encoder) for each in part.parameters()} == {torch.bfloat16}


def test_comparison(exported: tuple[textsam.TextSam, Path]) -> None:
    """The model may be of another type than the graphs."""
    sam, folder = exported
    other = textsam.TextSam(mobile_miniature().bfloat16())
    other.network.load_state_dict(sam.network.state_dict())
    for each in (sam, other):
        for row in compare(each, folder, prompts=3, rounds=1):
            assert 0 < row.difference < (1e-4 if each is sam else 0.1) * row.scale
            assert min(row.onnx_seconds, row.torch_seconds) > 0
    assert other.network.dtype == torch.bfloat16


def test_vit(tmp_path: Path, cat_photo: np.ndarray) -> None:
    """SAM's own structure. There is no small text encoder, so embeddings come from elsewhere."""
    sam = textsam.TextSam(tiny_model(text_trained=True))
    export_onnx(sam, tmp_path / "float")
    assert not (tmp_path / "float" / "text_encoder.onnx").exists()
    check_decoder(sam, load_script(tmp_path / "float"), cat_photo, unit_text())


def test_int8(exported: tuple[textsam.TextSam, Path], tmp_path: Path, cat_photo: np.ndarray) -> None:
    """Smaller files, other numbers, near ones."""
    _, folder = exported
    small_folder = tmp_path / "int8"
    shutil.copytree(folder, small_folder)
    for name in ("text_encoder.onnx", "prompt_decoder.onnx"):
        quantize(small_folder / name)
        # Miniatures are mostly not weights.
        assert (small_folder / name).stat().st_size < (folder / name).stat().st_size
    assert sorted(path.name for path in small_folder.iterdir()) == sorted(path.name for path in folder.iterdir())
    whole, small = (load_script(each).encode_texts(["cat", "dog"]) for each in (folder, small_folder))
    assert ((whole * small).sum(1) > 0.98).all()
    assert not np.array_equal(whole, small)


def test_export_says_that_it_does_not_read(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textsam.commands.export.export_onnx", lambda *arguments, **options: [])
    for model, told in ((str(tiny_folder), False), ("textsam-tiny-ocr", True)):
        result = CliRunner().invoke(app, ["export", "--onnx", str(tmp_path / "out"), "--model", model])
        assert result.exit_code == 0, result.output
        assert ("one rough mask of all text" in " ".join(result.output.split())) == told


def test_what_is_of_no_export_stays(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"config\.json is of no export, and would be replaced"):
        export_onnx(textsam.load(tmp_path / "model", device="cpu"), tmp_path / "model")
    textsam.load(tmp_path / "model", device="cpu")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx, onnxscript, onnxruntime: pip install 'textsam\[onnx\]'"):
        export_onnx(textsam.TextSam(tiny_model()), tmp_path)
