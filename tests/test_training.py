"""Losses by hand, simulated prompts, and a miniature training that learns, stops and goes on."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import textsam
from textsam.files.coco import load_coco
from textsam.model import TextSamConfig, TextSamModel
from train import ablation, tiny
from train.data import CocoSamples, Source, View, shrink
from train.embedding_table import EmbeddingTable
from train.interactive import noisy_boxes
from train.loop import LoopOptions, rate, train
from train.losses import balance, bce_loss, dice_loss, focal_loss, mask_iou
from train.optimization import build_optimizer
from train.packing import pack
from train.step import LossWeights, TextSamStep, _first_prompts

SIZE = 64


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)]]])  # probabilities 0.5 and 0.75
    targets, weights = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, 2)
    # Cross entropy: -ln 0.5 and -ln 0.25; focal: 0.25 * 0.5^2 and 0.75 * 0.75^2 of them.
    assert bce_loss(logits, targets, weights).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    focal = (0.25 * 0.25 * math.log(2) + 0.75 * 0.5625 * math.log(4)) / 2
    assert focal_loss(logits, targets, weights).item() == pytest.approx(focal)
    # 2 * 0.5 + 1 over (0.5 + 0.75) + 1 + 1.
    assert dice_loss(logits, targets, weights).item() == pytest.approx(1 - 2.0 / 3.25)
    # Only the second pixel is marked, only the first is true: no overlap. Without the second: nothing marked.
    assert mask_iou(logits, targets, weights).item() == 0
    assert mask_iou(-logits, torch.zeros(1, 1, 2), weights).item() == 1


def test_pixels_of_no_weight_count_for_nothing() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 4, 4), (torch.rand(2, 4, 4) > 0.5).float()
    weights = torch.ones(2, 4, 4)
    weights[:, 2:] = 0
    for loss in (focal_loss, bce_loss, dice_loss, mask_iou):
        whole = loss(logits, targets, weights)
        torch.testing.assert_close(whole, loss(logits[:, :2], targets[:, :2], weights[:, :2]))


def test_balance_lifts_a_small_mask() -> None:
    targets = torch.zeros(1, 10, 10)
    targets[0, 0, :4] = 1  # 4%: root of 24 to 1
    weights = balance(targets, torch.ones(1, 10, 10))
    assert weights[0, 0, 0].item() == pytest.approx(24**0.5)
    assert weights[0, 5, 5].item() == 1


def test_box_noise_is_bounded() -> None:
    boxes = torch.tensor([[100.0, 100, 300, 200]]).repeat(500, 1)
    moved = noisy_boxes(boxes, 1024, torch.Generator().manual_seed(0)) - boxes
    assert moved.abs().max() <= 20 + 1e-4
    assert moved[:, 1].std() == pytest.approx(10, rel=0.15)  # 10% of the height


def test_a_view_moves_picture_and_mask_alike() -> None:
    rng = np.random.default_rng(3)
    for _ in range(8):
        view = View.draw(rng, 40, 60, SIZE, (0.5, 2.0))
        mask = np.zeros((40, 60), bool)
        mask[10:25, 20:45] = True
        picture = np.where(mask[..., None], 255, 0).repeat(3, axis=2).astype(np.uint8)
        seen = view.apply_image(Image.fromarray(picture))[..., 0] / 255
        moved = view.apply_mask(mask, SIZE)
        inside = np.zeros((SIZE, SIZE), bool)  # the rest is grey padding
        inside[: view.scaled_wh[1] - view.top, : view.scaled_wh[0] - view.left] = True
        assert np.abs(seen - moved)[inside].mean() < 0.02
    assert shrink(np.ones((8, 8), bool)).tolist() == [[1, 1], [1, 1]]


def test_rate() -> None:
    options = LoopOptions(steps=100, warmup=10, decay_from=0.5)
    assert [rate(step, options) for step in (0, 9, 40, 75)] == pytest.approx([0.1, 1, 1, 0.5])
    # With a limit in minutes the clock counts, where it is ahead of the steps.
    assert [rate(step, options, 0.75) for step in (9, 40, 90)] == pytest.approx([0.5, 0.5, 0.2])
    assert rate(50, options, 1.5) == 0


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Six pictures of a red square and a blue disc on grey, with their names."""
    folder = tmp_path / "scene"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    y, x = np.mgrid[:48, :SIZE]
    for number in range(6):
        picture = np.full((48, SIZE, 3), 128, np.uint8)
        top, left = rng.integers(2, 28), rng.integers(2, 12)
        square = (y >= top) & (y < top + 16) & (x >= left) & (x < left + 16)
        disc = (y - rng.integers(12, 36)) ** 2 + (x - rng.integers(44, 52)) ** 2 < 100
        picture[square], picture[disc] = (220, 30, 30), (30, 30, 220)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": SIZE})
        for category, mask in ((1, square), (2, disc)):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append({**entry, "segmentation": segmentation, "iscrowd": 0})
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def miniature(scene: Path) -> tuple[TextSamStep, CocoSamples]:
    torch.manual_seed(0)
    sizes = {"prompt_dim": 32, "decoder_heads": 4, "decoder_mlp_dim": 32, "iou_head_hidden": 16, "clip_dim": 8}
    model = TextSamModel(TextSamConfig.tiny(image_size=SIZE, similarity_dim=16, text_trained=True, **sizes))
    names = torch.nn.functional.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    crops = {("scene", 1): names[:1].clone()}
    data = CocoSamples([Source(scene)], {"square": 0, "disc": 1}, size=SIZE, instances=2, seed=0, length=4096)
    return TextSamStep(model, EmbeddingTable(names, crops)), data


def test_text_joins_boxes_and_points(scene: Path) -> None:
    """What is asked for together must have been trained together: with no such step, a name ruins a box's mask."""
    step, data = miniature(scene)
    asked = []

    def encode_prompts(image: object, **prompts: object) -> object:
        asked.append({name for name, value in prompts.items() if value is not None} - {"image_index", "mask_input"})
        return TextSamModel.encode_prompts(step.model, image, **prompts)

    step.model.encode_prompts = encode_prompts  # type: ignore[method-assign]
    results = step([data[i] for i in range(16)], torch.Generator().manual_seed(0))
    box, clicks, text = {"boxes"}, {"point_coords", "point_labels"}, {"text_embeddings"}
    for first in (box, box | text, clicks, clicks | text, text):
        assert first in asked
    assert {"_box0", "_text_box0", "_point0", "_text_point0", "_text_box1"} <= set(results)


def test_clicks_with_a_name_may_be_asked_for_more_often(scene: Path) -> None:
    """And weigh as much more in the loss as there are more of them."""
    step, data = miniature(scene)
    often = TextSamStep(step.model, step.table, named_clicks=0.65)
    assert often.shares == pytest.approx({"box": 0.125, "text_box": 0.1, "point": 0.125, "text_point": 0.65})
    has_text = torch.arange(4000) % 2 == 0
    for each, named in ((step, 0.3), (often, 0.65)):
        rows = _first_prompts(has_text, each.shares, None, torch.Generator().manual_seed(0))
        assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(4000))
        assert len(rows["text_point"]) == pytest.approx(2000 * named, rel=0.1)  # of those that have a text
        assert len(rows["text_box"]) == pytest.approx(2000 * each.shares["text_box"], rel=0.15)
        assert has_text[rows["text_point"]].all()
        assert has_text[rows["text_box"]].all()
    samples, losses = [data[i] for i in range(8)], []
    for each in (step, often):
        each.shares = {"box": 0.0, "text_box": 0.0, "point": 0.0, "text_point": each.shares["text_point"]}
        torch.manual_seed(0)
        losses.append(each(samples, torch.Generator().manual_seed(0)))
    assert losses[0]["_text_point0"] == losses[1]["_text_point0"]
    assert losses[1]["mask"].item() == pytest.approx(losses[0]["mask"].item() * 0.65 / 0.3, rel=1e-5)


def test_text_alone_may_weigh_more(scene: Path) -> None:
    step, data = miniature(scene)
    heavier = TextSamStep(step.model, step.table, loss_weights=LossWeights(text=2.0))
    samples = [data[i] for i in range(8)]
    plain, heavy = (each(samples, torch.Generator().manual_seed(0)) for each in (step, heavier))
    assert heavy["text"].item() == pytest.approx(2 * plain["text"].item())
    assert heavy["mask"] == plain["mask"]


def test_clicks_lie_deepest_in_the_mask_when_centred(scene: Path) -> None:
    options = {"size": SIZE, "instances": 2, "seed": 0, "length": 64, "min_cells": 1.0}
    mean_depth = []
    for share in (0.0, 1.0):
        data = CocoSamples([Source(scene)], {"square": 0, "disc": 1}, centred_clicks=share, **options)
        depths = []
        for i in range(12):
            sample = data[i]
            for box, (x, y) in zip(sample.boxes, sample.clicks.tolist(), strict=True):
                x1, y1, x2, y2 = box.tolist()
                assert x1 <= x < x2
                assert y1 <= y < y2
                depths.append(min(x - x1, x2 - 1 - x, y - y1, y2 - 1 - y) / (min(x2 - x1, y2 - y1) / 2))
        assert len(depths) > 12
        mean_depth.append(np.mean(depths))
    assert mean_depth[0] < 0.5
    assert mean_depth[1] > 0.75  # an even width has no middle


def test_goes_on_from_a_model_that_redraws_masks(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model: the part that redraws stays as it is, for its own training; all else may change."""
    shipped = Path(textsam.__file__).parent / "weights" / "textsam-tiny"
    names = json.loads((shipped / "text_encoder" / "vocabulary.json").read_text())["names"][:40]
    embeddings = np.random.default_rng(0).normal(size=(40, 512))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.savez(tmp_path / "names.npz", names=names, embeddings=embeddings, source=["coco"] * 40)
    monkeypatch.setattr(tiny, "has_fast_bfloat16", lambda device: False)  # one precision in all of the process
    monkeypatch.setattr(tiny, "SETS", (("scene", 1.0, True, None, ()),))
    options = ["--steps", "1", "--batch-size", "2", "--workers", "0", "--size", "64", "--rounds", "1", "--warmup", "1"]
    files = ["--names", str(tmp_path / "names.npz"), "--text-encoder", str(shipped / "text_encoder")]
    tiny.main(["--data", str(scene.parent), *files, "--init", str(shipped), "--out", str(tmp_path / "out"), *options])
    before, after = (TextSamModel.from_pretrained(each) for each in (shipped, tmp_path / "out" / "model"))
    assert after.config.mask_detail
    changed = {
        name.split(".")[0]
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert "mask_decoder" in changed
    assert "mask_detail" not in changed


def test_a_step_may_ask_for_as_many_masks_each_time(scene: Path) -> None:
    step, data = miniature(scene)
    step.fixed_count = True
    counts = []

    def encode_prompts(image: object, **prompts: object) -> object:
        counts[-1].append(next(len(v) for name, v in prompts.items() if v is not None and name != "image_index"))
        return TextSamModel.encode_prompts(step.model, image, **prompts)

    step.model.encode_prompts = encode_prompts  # type: ignore[method-assign]
    for first in (0, 8, 16):
        counts.append([])
        step([data[first + i] for i in range(8)], torch.Generator().manual_seed(first))
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0][:-1:2]) == 4 * 8  # two rounds of each kind of first prompt, then the names
    assert counts[0][-1] == 3 * 8


def test_packed_samples_are_the_same(scene: Path) -> None:
    _, data = miniature(scene)
    samples = [data[i] for i in range(5)]
    packed = pack(samples)
    assert {dtype: buffer.ndim for dtype, buffer in packed.buffers.items()} == dict.fromkeys(packed.buffers, 1)
    for sample, restored in zip(samples, packed.unpack(), strict=True):
        assert type(restored) is type(sample)
        assert sample.keys == restored.keys
        assert sample.valid_hw == restored.valid_hw
        assert list(sample.present) == list(restored.present)
        pairs = [(getattr(sample, name), getattr(restored, name)) for name in ("pixels", "masks", "boxes", "absent")]
        for before, after in [*pairs, *((sample.present[name], restored.present[name]) for name in sample.present)]:
            assert before.dtype == after.dtype
            assert torch.equal(before, after)


def test_a_pasted_object_is_there_and_hides_what_is_behind(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.PASTED_PX", 100)
    options = {"size": SIZE, "instances": 3, "seed": 0, "length": 64, "min_cells": 1.0}
    data = CocoSamples([Source(scene)], {"square": 0, "disc": 1}, paste_share=1.0, **options)
    colours = {0: (220, 30, 30), 1: (30, 30, 220)}
    for i in range(12):
        sample = data[i]
        assert sample.masks.sum(0).max() <= 1 + 1e-6  # nobody's pixels twice
        name, mask = int(sample.names[0]), sample.masks[0] > 0.99
        seen = sample.pixels.float().unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4))[:, mask]
        other = torch.tensor(colours[1 - name]).float()
        assert name in sample.present
        assert (sample.present[name] >= sample.masks[0] - 1e-6).all()
        # Colours are changed by chance, but red stays redder than blue.
        assert not mask.any() or (seen[0] - seen[2]).mean() * (other[0] - other[2]) < 0


def test_cutouts_are_pasted_and_not_shown(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.PASTED_PX", 100)
    options = {"size": SIZE, "instances": 3, "seed": 0, "length": 64, "min_cells": 1.0}
    shown = Source(scene, exhaustive=False)
    data = CocoSamples([shown], {"disc": 1}, paste_share=1.0, cutouts=[Source(scene)], **options)
    assert len(data.items) == len(load_coco(scene / "train.json"))
    assert list(data.cutouts.by_name) == [1]
    assert not data.to_paste
    assert all(int(data[i].names[0]) == 1 for i in range(8))

    both = CocoSamples([Source(scene)], {"square": 0, "disc": 1}, paste_share=1.0, cutouts=[Source(scene)], **options)
    rng = np.random.default_rng(0)
    assert 0.4 < np.mean([both.cutouts.draw(rng)[0] for _ in range(400)]) < 0.6  # both names are the sets' own
    both.cutouts.common = frozenset({1})
    assert 0.75 < np.mean([both.cutouts.draw(rng)[0] for _ in range(400)]) < 0.85  # four times to once
    with pytest.raises(ValueError, match="paste_share is 0"):
        CocoSamples([shown], {"disc": 1}, cutouts=[Source(scene)], **options)


def test_another_word_for_what_is_there_is_not_absent() -> None:
    mean = torch.tensor([0.0, 0.0, 3.0])
    sofa, couch, dog = (torch.tensor([*direction, 0.0]) + mean for direction in ((1.0, 0.1), (1.0, -0.1), (-0.2, 1.0)))
    table = EmbeddingTable(torch.stack([sofa, couch, dog]), mean=mean)
    absent = torch.tensor([1, 2])
    assert table.other_things(absent, [0]).tolist() == [2]
    assert table.other_things(absent, []).tolist() == [1, 2]
    assert EmbeddingTable(table.names).other_things(absent, [0]).tolist() == [1, 2]  # without a mean none is known


def test_what_cannot_be_pasted(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No object is large enough: that is said. One that would hardly be seen: the picture stays as it is."""
    options = {"size": SIZE, "instances": 3, "seed": 0, "length": 64}
    index = {"square": 0, "disc": 1}
    with pytest.raises(ValueError, match="no set with exhaustive names"):
        CocoSamples([Source(scene)], index, paste_share=0.5, **options)
    monkeypatch.setattr("train.data.PASTED_PX", 100)
    data = CocoSamples([Source(scene)], index, paste_share=1.0, min_cells=1e6, **options)
    picture = np.full((SIZE, SIZE, 3), 7, np.uint8)
    assert data._paste(picture, (SIZE, SIZE), np.random.default_rng(0)) is None
    assert (picture == 7).all()


def test_a_training_ends_with_its_minutes(scene: Path, tmp_path: Path) -> None:
    step, data = miniature(scene)
    train(step, data, replace(OPTIONS, steps=10_000, minutes=1e-3), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert 1 <= lines[-1]["step"] < 100
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


OPTIONS = LoopOptions(
    steps=6, batch_size=2, warmup=2, save_every=3, log_every=1, workers=0, mixed_precision="no",
    frozen=("image_encoder.trunk.conv0.",),
)  # fmt: skip


def losses(out: Path, *names: str) -> list[float]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [sum(record[name] for name in names or ("loss",)) for record in records]


@pytest.mark.parametrize("muon", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(scene: Path, tmp_path: Path, muon: bool) -> None:
    options = replace(OPTIONS, muon=muon)
    train(*miniature(scene), options, tmp_path / "whole")
    former = signal.getsignal(signal.SIGTERM)
    assert train(*miniature(scene), replace(options, stop_after=3), tmp_path / "parts") == 3
    assert signal.getsignal(signal.SIGTERM) is former  # what comes after the training can be stopped, too
    assert len(losses(tmp_path / "parts")) == 3
    assert train(*miniature(scene), options, tmp_path / "parts", resume=True) == options.steps
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    reloaded = TextSamModel.from_pretrained(tmp_path / "parts" / "model")
    whole = TextSamModel.from_pretrained(tmp_path / "whole" / "model")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in reloaded.state_dict().items())


class Failing:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> object:
        raise OSError("the disk is gone")


def test_an_error_leaves_no_process_behind(scene: Path, tmp_path: Path) -> None:
    """One that ignores SIGTERM would keep Python from ending."""
    with pytest.raises(OSError, match="the disk is gone"):
        train(miniature(scene)[0], Failing(), replace(OPTIONS, workers=1), tmp_path / "run")
    assert not multiprocessing.active_children()


def test_a_row_that_was_stopped_does_not_go_on_with_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be scored as what the later command asks for."""

    def stop(*_: object) -> None:
        raise SystemExit("stopped")

    monkeypatch.setattr(ablation, "run_row", stop)
    (tmp_path / "x").touch()
    paths = [f"--{name}={tmp_path}" for name in ("data", "text-encoder")]
    paths += [f"--{name}={tmp_path / 'x'}" for name in ("trunk", "names", "crops")]
    for steps, told in ((6, "stopped"), (6, "stopped"), (2, "2")):
        with pytest.raises(SystemExit, match=told):
            ablation.main(["d5", *paths, f"--out={tmp_path}", f"--steps={steps}"])
    assert "options.json was made with --steps 6: ask for the same" in capsys.readouterr().err


def test_muon_takes_matrices_and_adamw_the_rest(scene: Path) -> None:
    model = miniature(scene)[0].model
    adamw, muon = build_optimizer(model, replace(OPTIONS, muon=True)).pair
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert not by_muon & rest
    assert by_muon | rest == {name for name, p in model.named_parameters() if p.requires_grad}
    assert "mask_decoder.transformer.layers.0.mlp.lin1.weight" in by_muon
    assert not any("trunk" in name or "embed" in name or "_token" in name for name in by_muon)


def test_training_learns_and_leaves_frozen_parts_alone(scene: Path, tmp_path: Path) -> None:
    step, data = miniature(scene)
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    train(step, data, LoopOptions(**{**vars(OPTIONS), "steps": 40, "save_every": 40}), tmp_path / "run")
    figures = losses(tmp_path / "run", "text", "presence")  # asked in every step; the other prompts come by chance
    assert sum(figures[-8:]) < 0.9 * sum(figures[:8])
    after = step.model.state_dict()
    still = {name for name, value in before.items() if torch.equal(value, after[name])}
    buffers = {name for name, _ in step.model.named_buffers()}
    assert still == buffers | {name for name in before if name.startswith(OPTIONS.frozen)}


def test_tiny_numbers_cost_no_time() -> None:
    """They are zeros, in every thread: on a CPU the gradients of a step hold many."""
    code = (
        "import train, torch; x = torch.full((4_000_000,), 1e-39); "
        "print(torch.get_num_threads(), int((x * 1.0).view(torch.int32).count_nonzero()))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["2", "0"]
