"""Masks redrawn near by: crops and back, what the part adds, masks of a photo, and its training in miniature."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import randomize

import textsam
from textsam.model import TextSamConfig, TextSamModel
from textsam.modeling.mask_detail import MaskDetail, draw_boxes, draw_clicks
from textsam.modeling.structures import ImageEmbeddings
from textsam.predictor import TextSam
from textsam.prompting.automatic import generate
from textsam.prompting.automatic_options import AutomaticOptions
from textsam.prompting.detections import boxes_of_masks
from textsam.prompting.mask_details import (
    CLICK_SIDE,
    DETAIL_SIDE,
    Asked,
    Crop,
    extents_of_logits,
    masks_of_photo,
    redraw,
)
from textsam.prompting.transforms import ImageGeometry, masks_at_original_size
from train.mask_detail import DetailCrop, DetailCrops, main, with_detail, write_crops

MASK = np.zeros((90, 120), bool)
MASK[20:50, 30:100] = True
AROUND = Crop(65 - 113 / 2, 35 - 113 / 2, 113.0)  # 1.5 * 70 + 8


def rings(height: int, width: int) -> np.ndarray:
    """A picture whose red says x, whose green says y."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([2 * x, 2 * y, 0 * x], -1).astype(np.uint8)


def test_a_crop_is_a_square_around_the_mask_and_its_prompt() -> None:
    extent = np.array([30.0, 20.0, 100.0, 50.0])
    assert Crop.around(extent) == AROUND
    assert Crop.around(np.array([4.0, 4.0, 5.0, 5.0])).side == 24
    by_box = Asked(boxes=np.array([[10.0, 20.0, 110.0, 60.0]]))
    assert Crop.around(extent, by_box) == Crop(60 - 69, 40 - 69, 138.0)  # 1.3 * 100 + 8
    points = np.array([[[40.0, 30.0], [110.0, 30.0], [5.0, 5.0]]])
    clicked = Crop.around(extent, Asked(points=points, labels=np.array([[1, 1, 0]])), CLICK_SIDE)
    assert clicked == Crop(70 - 64, 35 - 64, 128.0, CLICK_SIDE)  # x from 30 to 110


@pytest.mark.parametrize("size_hw", [(60, 700), (700, 60)])
def test_a_crop_that_reaches_far_beyond_the_photo(size_hw: tuple[int, int]) -> None:
    """A panorama's square is mostly black; its cells are those of a picture that has the black around it."""
    pixels, margin = rings(*size_hw), 500
    crop = Crop(-170.3, -420.6, 1000.5, 64)
    if size_hw[0] > size_hw[1]:
        crop = Crop(crop.top, crop.left, crop.side, crop.cells)
    wide = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0))))
    expected = Crop(crop.left + margin, crop.top + margin, crop.side, crop.cells).of_picture(wide)
    found = crop.of_picture(Image.fromarray(pixels))
    assert found.shape == (64, 64, 3)
    assert found.any()
    np.testing.assert_allclose(found.astype(int), expected, rtol=0, atol=1)
    assert not Crop(2000.0, 0.0, 300.0).of_picture(Image.fromarray(pixels)).any()


def test_a_panorama(monkeypatch: pytest.MonkeyPatch) -> None:
    """The square around it has more pixels than Pillow takes for safe, which are not those of any file."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    photo = np.zeros((40, 1200, 3), np.uint8)
    found = textsam.load(device="cpu").predict(photo, boxes=[0, 0, 1200, 40])
    assert found.mask.shape == (1, 40, 1200)


def test_extents_of_logits_hold_the_masks() -> None:
    """A 90 x 120 photo in an input of 64 px: 48 rows of it, 12 of 16 rows of cells."""
    geometry = ImageGeometry.of((90, 120), 64)
    logits = torch.full((3, 16, 16), -1.0)
    logits[0, 2:5, 3:9] = 1
    logits[1, 13:, :] = 1  # in the padding
    found, beyond, nothing = extents_of_logits(logits, geometry)
    np.testing.assert_allclose(found, [3 * 7.5, 2 * 7.5, 9 * 7.5, 5 * 7.5])
    assert beyond is None
    assert nothing is None
    mask = masks_at_original_size(logits[:1], geometry)[0]
    ys, xs = np.nonzero(mask)
    assert found[0] - 1 <= xs.min() < xs.max() < found[2] + 1
    assert found[1] - 1 <= ys.min() < ys.max() < found[3] + 1


@pytest.mark.parametrize("side", [40.0, 200.0])
def test_pixels_logits_and_prompts_fall_on_the_same_places(side: float) -> None:
    """Enlarged and shrunk. The photo is 120 x 90, the encoder's input 64 px wide, its cells 4 px."""
    crop = Crop(10.5, 7.25, side)
    x, y = crop.centres()
    assert x[0] == pytest.approx(10.5 + side / 2 / DETAIL_SIDE)
    inside = (x > 3) & (x < 117), (y > 3) & (y < 87)
    place = np.ix_(inside[1], inside[0])
    colours = crop.of_picture(Image.fromarray(rings(90, 120)))
    assert colours.shape == (DETAIL_SIDE, DETAIL_SIDE, 3)
    np.testing.assert_allclose(colours[place][..., 0] - (2 * x[inside[0]] - 1), 0, atol=1.1)
    np.testing.assert_allclose(colours[place][..., 1] - (2 * y[inside[1]] - 1)[:, None], 0, atol=1.1)
    geometry = ImageGeometry.of((90, 120), 64)
    cells = torch.arange(16.0)[None].expand(16, 16) + 0.5  # x in cells
    found = crop.of_logits(cells, geometry).numpy()[place]
    expected = np.clip(x[inside[0]] * 64 / 120 / 4, 0.5, 15.5)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-3)
    asked = Asked(np.array([[30.0, 20.0, 100.0, 50.0]]), np.array([[[40.0, 30.0], [20.0, 25.0]]]), np.array([[1, 0]]))
    box, points, labels = (each[None] for each in crop.of_prompt(asked))
    drawn = draw_boxes(box, DETAIL_SIDE)
    assert drawn.sum() * (side / DETAIL_SIDE) ** 2 == pytest.approx(
        (min(100, 10.5 + side) - 30) * (min(50, 7.25 + side) - 20), rel=0.02
    )
    spots = draw_clicks(points, labels, DETAIL_SIDE)[0, 0]
    for value, (px, py) in ((spots.max(), (40, 30)), (spots.min(), (20, 25))):
        row, column = (spots == value).nonzero()[0].tolist()
        assert (x[column], y[row]) == (
            pytest.approx(px, abs=side / DETAIL_SIDE),
            pytest.approx(py, abs=side / DETAIL_SIDE),
        )
        assert abs(value) == pytest.approx(1, abs=0.02)


def test_nothing_asked_is_drawn_as_such() -> None:
    box, points, labels = (each[None] for each in Crop(0, 0, 50).of_prompt(Asked()))
    assert (draw_boxes(box, 32) == 0.5).all()
    assert (draw_clicks(points, labels, 32) == 0).all()
    padding = draw_clicks(torch.full((1, 1, 2), 0.5), torch.tensor([[-1]]), 32)
    assert (padding == 0).all()


def test_pasting_undoes_cutting() -> None:
    cut = AROUND.of_picture(Image.fromarray(MASK.astype(np.uint8) * 255))
    mask = np.zeros_like(MASK)
    assert AROUND.paste(torch.from_numpy(cut.astype(np.float32)) - 127.5, mask)
    assert (mask != MASK).sum() <= 2
    assert not AROUND.paste(torch.full((DETAIL_SIDE, DETAIL_SIDE), -1.0), np.zeros_like(MASK))


@torch.no_grad()
def test_the_part_starts_from_nothing_and_sees_everything() -> None:
    torch.manual_seed(0)
    part = MaskDetail(32, 16).eval()
    image = ImageEmbeddings(
        torch.randn(2, 32, 2, 2), (32, 32), (torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)), torch.randn(2, 16, 4, 4)
    )
    pixels, logits = 255 * torch.rand(2, 3, 32, 32), 4 * torch.randn(2, 1, 32, 32)
    boxes, clicks = torch.full((2, 1, 32, 32), 0.5), torch.zeros(2, 1, 32, 32)
    torch.testing.assert_close(part(pixels, image, logits, boxes, clicks), logits)
    randomize(part)
    first = part(pixels, image, logits, boxes, clicks)
    others = [
        part(255 - pixels, image, logits, boxes, clicks),
        part(pixels, image, logits, boxes * 0, clicks),
        part(pixels, image, logits, boxes, clicks + 1),
        part(pixels, replace(image, image_embeddings=-image.image_embeddings), logits, boxes, clicks),
        part(pixels, replace(image, similarity_features=-image.similarity_features), logits, boxes, clicks),
        part(pixels, image, logits + 1, boxes, clicks) - 1,
        part(pixels, image, logits, boxes, clicks, torch.ones(2, 1, 4, 4)),
    ]
    for other in others:
        assert (other - first).abs().max() > 1e-4
    alone = part(pixels[1:], image.select(1), logits[1:], boxes[1:], clicks[1:])
    torch.testing.assert_close(alone, first[1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="high_res_skips"):
        part(pixels, replace(image, high_res_features=None), logits, boxes, clicks)
    with pytest.raises(ValueError, match="high_res_skips"):
        TextSamConfig(mask_detail=True)


def test_masks_are_the_decoders_until_it_is_trained() -> None:
    geometry = ImageGeometry.of((90, 120), 64)
    torch.manual_seed(0)
    logits = torch.nn.functional.interpolate(4 * torch.randn(1, 3, 4, 4), (16, 16), mode="bilinear")[0]
    logits = torch.cat([logits, torch.full((1, 16, 16), -9.0)])  # an empty one
    plain = TextSamModel(TextSamConfig.tiny(image_size=64)).eval()
    pixels = rings(90, 120)
    expected = masks_at_original_size(logits, geometry)
    with torch.inference_mode():
        np.testing.assert_array_equal(masks_of_photo(plain, pixels, logits, geometry), expected)
        model = with_detail(plain)
        near = masks_of_photo(model, pixels, logits, geometry)  # asked for by nothing: no second answer either
        assert (near == expected).mean() > 0.98  # sampled anew
        assert not near[3].any()
        model.mask_detail.out.bias.fill_(-1e4)  # draws nothing: a mask is corrected, not lost
        np.testing.assert_array_equal(masks_of_photo(model, pixels, logits, geometry), expected)
        randomize(model.mask_detail)
        first = masks_of_photo(model, pixels, logits, geometry)
        by_box = Asked(boxes=np.tile([10.0, 10.0, 60.0, 80.0], (4, 1)))
        by_click = Asked(points=np.full((4, 1, 2), 40.0), labels=np.ones((4, 1), int))
        texts = torch.nn.functional.normalize(torch.randn(4, 512), dim=-1)
        for asked in (by_box, by_click, Asked(texts=texts)):
            assert (masks_of_photo(model, pixels, logits, geometry, asked) != first).any()
        unsaid = masks_of_photo(model, pixels, logits, geometry, Asked(texts=0 * texts))
        np.testing.assert_array_equal(unsaid, first)
    assert masks_of_photo(model, pixels, logits[:0], geometry).shape == (0, 90, 120)
    assert with_detail(model) is model
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())


def test_the_decoder_is_asked_again_near_by() -> None:
    """Every row by its own prompt, with its former answer; further clicks are not."""
    torch.manual_seed(0)
    model = with_detail(TextSamModel(TextSamConfig.tiny(image_size=64, text_trained=True))).eval()
    randomize(model)
    with torch.no_grad():
        for parameter in model.mask_detail.out.parameters():
            parameter.zero_()  # only the decoder's answers are left
    side, nan = 64, float("nan")
    colours, logits = 255 * torch.rand(5, 3, side, side), 4 * torch.randn(5, 1, side, side)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.8], [nan] * 4, [nan] * 4, [nan] * 4, [nan] * 4])
    points = torch.full((5, 2, 2), 0.4)
    points[1, 0] = 0  # padding comes first there
    labels = torch.tensor([[-1, -1], [-1, 1], [1, 0], [-1, -1], [-1, -1]])
    texts = torch.nn.functional.normalize(torch.randn(5, 512), dim=-1) * torch.tensor([0, 1, 0, 1, 0])[:, None]
    with torch.no_grad():
        drawn = redraw(model, colours, logits, boxes, points, labels, texts)
        torch.testing.assert_close(drawn[[2, 4]], logits[[2, 4]])  # several clicks; no prompt of its own
        image = model.encode_image((colours - 127.5) / 127.5)
        low = torch.nn.functional.interpolate(logits, (16, 16), mode="area")
        click = {"point_coords": torch.full((1, 1, 2), 0.4 * side), "point_labels": torch.tensor([[1]])}
        asked = {
            0: {"boxes": boxes[:1] * side},
            1: {**click, "text_embeddings": texts[1:2]},
            3: {"text_embeddings": texts[3:4]},
        }
        for row, prompt in asked.items():
            near = image.select(row)
            prompts = model.encode_prompts(near, mask_input=low[row : row + 1], **prompt)
            answer = model.decode_masks(near, prompts, multimask_output=False).low_res_logits
            again = torch.nn.functional.interpolate(answer, (side, side), mode="bilinear")
            torch.testing.assert_close(drawn[row], (logits[row] + again[0]) / 2, rtol=1e-3, atol=1e-3)
            assert (again[0] - logits[row]).abs().max() > 1e-2


def test_automatic_masks_are_redrawn_where_they_were_found() -> None:
    """As `predict` redraws a click on the same point, in crops of the photo, too; unless that is not wanted."""
    torch.manual_seed(0)
    model = with_detail(TextSamModel(TextSamConfig.tiny(image_size=64))).eval()
    randomize(model)
    pixels = rings(90, 120)
    options = AutomaticOptions(
        points_per_side=3, pred_iou_thresh=-9, stability_score_thresh=0.0, crop_n_layers=1, box_nms_thresh=1.0,
        crop_nms_thresh=1.0,
    )  # fmt: skip
    plain = generate(model, pixels, replace(options, redraw=False))
    found = generate(model, pixels, options)
    assert 0 < len(found) <= len(plain)
    former = {rle["counts"] for rle in plain.rles}
    assert sum(rle["counts"] not in former for rle in found.rles) > len(found) / 2
    masks = found.masks()
    np.testing.assert_array_equal(found.boxes_xyxy, boxes_of_masks(masks))
    for mask, (x1, y1, x2, y2), point in zip(masks, found.crop_boxes_xyxy, found.points_xy, strict=True):
        part = pixels[y1:y2, x1:x2]
        sam = TextSam(model)
        drawn = sam.predict(part, points=[[point - [x1, y1]]], multimask_output=True)
        assert any(np.array_equal(mask[y1:y2, x1:x2], each) for each in drawn.mask)
        assert mask.sum() == mask[y1:y2, x1:x2].sum()


def test_clicks_alone_are_answered_quickly() -> None:
    clicks = Asked(points=np.zeros((1, 2, 2)), labels=np.ones((1, 2), int))
    assert clicks.cells == CLICK_SIDE
    assert replace(clicks, boxes=np.zeros((1, 4))).cells == DETAIL_SIDE
    assert replace(clicks, texts=torch.zeros(1, 4)).cells == DETAIL_SIDE
    assert Asked().cells == DETAIL_SIDE


def test_the_embedded_model_follows_an_outline() -> None:
    """A circle much smaller than the cells of the decoder's map would draw it."""
    photo = np.full((480, 640, 3), (90, 120, 70), np.uint8)
    y, x = np.mgrid[:480, :640]
    circle = (x - 300) ** 2 + (y - 200) ** 2 < 20**2
    photo[circle] = (220, 40, 40)
    sam = textsam.load()
    assert sam.model.config.mask_detail
    found = sam.predict(photo, boxes=[280, 180, 320, 220]).mask[0]
    assert (found & circle).sum() / (found | circle).sum() > 0.9


@pytest.fixture
def data(tmp_path: Path, cat_photo: np.ndarray) -> Path:
    """One photo with two things in a set that training knows."""
    folder = tmp_path / "data" / "coco"
    (folder / "images").mkdir(parents=True)
    photo = cat_photo[:200, :300]
    Image.fromarray(photo).save(folder / "images" / "1.png")
    entries: list[dict[str, Any]] = []
    for number, (x1, y1, x2, y2) in enumerate(((30, 20, 100, 90), (60, 110, 280, 180)), start=1):
        entries.append(
            {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": (x2 - x1) * (y2 - y1), "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        )  # fmt: skip
    images = [{"id": 1, "file_name": "1.png", "width": 300, "height": 200}]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "train.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_crops_of_another_model_are_made_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    crop = DetailCrop(**{field.name: torch.ones(1) for field in fields(DetailCrop)})
    monkeypatch.setattr("train.mask_detail.crops_of", lambda *_: made.append(1) or [crop])
    for model, times in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        [file] = write_crops(None, data, tmp_path / "crops", {"model": model})
        assert (file.name, len(made)) == ("coco.safetensors", times)


def test_training_in_miniature(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.mask_detail.LEAST_CLICK_IOU", -1.0)
    arguments = ["--data", str(data), "--out", str(tmp_path / "run"), "--batch-size", "2", "--save-every", "1"]
    main([*arguments, "--steps", "2"])
    file = tmp_path / "run" / "crops" / "coco.safetensors"
    written = file.stat().st_mtime_ns
    crops = DetailCrops([file], 40, 0)
    kinds = {(bool(crops[i].box.isfinite().all()), int((crops[i].labels >= 0).sum())) for i in range(40)}
    assert {(True, 0), (False, 1)} < kinds  # by boxes, by first clicks, by several
    assert {bool(crops[i].text.any()) for i in range(40)} == {True, False}
    by_box = next(crops[i] for i in range(40) if crops[i].box.isfinite().all())
    turned = by_box.mirrored()
    drawn = [draw_boxes(crop.box[None], DETAIL_SIDE) for crop in (by_box, turned)]
    torch.testing.assert_close(drawn[1], drawn[0].flip(-1), rtol=0, atol=1e-4)
    clicked = next(crops[i] for i in range(40) if (crops[i].labels >= 0).sum() > 1)
    drawn = [draw_clicks(c.points[None], c.labels[None], DETAIL_SIDE) for c in (clicked, clicked.mirrored())]
    torch.testing.assert_close(drawn[1], drawn[0].flip(-1), rtol=0, atol=1e-4)
    assert crops[0].pixels.shape == (3, DETAIL_SIDE, DETAIL_SIDE)
    assert all(crops[i].mask.any() for i in range(10))
    trained = textsam.load(tmp_path / "run" / "model", dtype="float32")
    assert trained.text_encoder.encode(["cat"]).shape == (1, 512)
    start = with_detail(textsam.load("textsam-tiny", dtype="float32").model).state_dict()
    changed = {name for name, value in trained.model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed
    assert all(name.startswith("mask_detail.") for name in changed)
    main([*arguments, "--steps", "3", "--resume"])
    assert file.stat().st_mtime_ns == written
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["step"] == 3
    with pytest.raises(FileNotFoundError, match=r"no train\.json of coco"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "none")])
