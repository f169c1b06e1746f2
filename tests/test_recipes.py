"""Miniatures of the recipes: the loss falls, gradients go where they should, runs resume, two processes equal one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from scenes import write_coco, write_shard
from test_clip import VIT, tiny_clip
from tiny_models import tiny_model

from textsam.checkpoints.adapters import read_adapter
from textsam.checkpoints.loading import load_model
from textsam.language.clip import CropEncoder, TextEncoder
from textsam.model import TextSamModel
from train.optimization import LoopOptions, build_optimizer
from train.readers import open_source
from train.recipes import RECIPES, Recipe
from train.run_recipe import load_start, run_recipe, samples_of
from train.sam_step import SamStep, StepOptions
from train.stores import CropPrompts
from train.text_prompt import PromptOptions

ROOT = Path(__file__).parent.parent
SIZE, CLIP_DIM = 64, 24
LOOP = {
    "batch_size": 2, "accumulate": 1, "warmup": 2, "workers": 0, "mixed_precision": "no", "log_every": 1,
    "tensorboard": False, "progress": False, "save_every": 100, "lr": 3e-3, "ema_decay": 0.5,
}  # fmt: skip


def miniature(name: str, *, clicks: int = 2, **loop) -> Recipe:
    """A recipe in small: its own options but for sizes, rates and the number of clicks."""
    recipe = RECIPES[name]
    samples = replace(recipe.samples, size=SIZE, instances=2, crop_size=32, scale_range=None, min_side_px=0)
    step = replace(recipe.step, clicks=clicks)
    return replace(recipe, samples=samples, step=step, loop=replace(recipe.loop, **{**LOOP, **loop}))


def model_of(seed: int = 0) -> TextSamModel:
    return tiny_model(seed, image_size=SIZE, clip_dim=CLIP_DIM, prompt_dim=32, decoder_heads=2, iou_head_hidden=16)


def clip_encoders() -> tuple[TextEncoder, CropEncoder]:
    clip = tiny_clip(VIT)
    return TextEncoder(clip, lambda texts: torch.tensor([[len(t), 1] + [0] * 75 for t in texts])), CropEncoder(clip)


def run(recipe: Recipe, data: Path, out: Path, **more) -> list[float]:
    """Trains and returns the loss of every step in the log."""
    run_recipe(recipe, [open_source(str(data))], out, model=model_of(), encoders=clip_encoders(), **more)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_miniature_learns(tmp_path: Path, name: str) -> None:
    data = write_coco(tmp_path / "data")
    losses = run(miniature(name, steps=24, clicks=1), data, tmp_path / "run")
    # One token into a random, frozen decoder moves masks but little: there it is presence that is learned.
    least = 0.99 if RECIPES[name].loop.train == "text" else 0.95
    assert sum(losses[-6:]) < least * sum(losses[:6])
    trained = load_model(tmp_path / "run" / "model", dtype="float32")
    assert trained.config.text_trained
    if name == "sam-vit-b-text-small-gpu":  # what was kept, and an adapter for the untrained model
        kept = {kind: len(list((tmp_path / "run" / "cache" / kind).glob("*"))) for kind in ("images", "crops")}
        views = RECIPES[name].samples.views
        assert kept["crops"] == 6  # pictures
        assert 6 < kept["images"] <= 6 * views
        model_of().save_pretrained(tmp_path / "start")
        adapted = load_model(tmp_path / "start", adapter=tmp_path / "run" / "adapter", dtype="float32")
        assert all(torch.equal(v, trained.state_dict()[k]) for k, v in adapted.state_dict().items())


PARTS = {
    "text": ("prompt_encoder.text_", "mask_decoder.presence_"),
    "text+decoder": ("prompt_encoder.", "mask_decoder."),
    "all": ("",),
    "lora": ("prompt_encoder.", "mask_decoder.", "lora"),
}


@pytest.mark.parametrize("part", list(PARTS))
def test_gradients_reach_exactly_what_trains(tmp_path: Path, part: str) -> None:
    data = open_source(str(write_coco(tmp_path / "data")))
    recipe = miniature("sam-vit-h-text")
    options = replace(recipe.loop, train="text+decoder" if part == "lora" else part, lora_rank=2 * (part == "lora"))
    model = model_of()
    step = SamStep(model, replace(recipe.step, text_share=0.5), crops=CropPrompts(clip_encoders()[1]))
    build_optimizer(model, options)
    model.train()
    samples = samples_of([data], recipe)
    for position in range(3):
        torch.manual_seed(position)
        batch = [samples[2 * position], samples[2 * position + 1]]
        results = step(batch, torch.Generator().manual_seed(position))
        sum(value for name, value in results.items() if name[0] != "_").backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {name for name, p in model.named_parameters() if name.startswith(PARTS[part]) or "lora_" in name}
    # LoRA starts with B at zero, so that the first step has no gradient for A.
    # Of the three masks of a lone prompt only the best one learns: the others' layers may have to wait.
    three = {name for name in expected if re.match(r"mask_decoder\.output_hypernetworks_mlps\.[123]", name)}
    assert reached - three == {name for name in expected if "lora_A" not in name} - three
    assert bool(reached & three) == (part != "text")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    """With drop path, accumulation and a stream, none of which may notice the interruption."""
    data = tmp_path / "shards"
    data.mkdir()
    for number in range(2):
        write_shard(data / f"{number}.tar", range(3 * number, 3 * number + 3))
    recipe = miniature("sam-vit-h-text", steps=4, accumulate=2)
    whole = run(recipe, data, tmp_path / "whole")
    run(replace(recipe, loop=replace(recipe.loop, stop_after=2)), data, tmp_path / "parts")
    assert run(recipe, data, tmp_path / "parts", resume=True) == whole
    one, other = (load_model(tmp_path / run / "model", dtype="float32").state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_lora_is_folded_into_what_is_shipped(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    recipe = miniature("sam-vit-h-text", steps=2, train="text+decoder", lora_rank=2, lr=0.1)
    run(recipe, data, tmp_path / "run")
    start, trained = model_of().state_dict(), load_model(tmp_path / "run" / "model", dtype="float32").state_dict()
    assert start.keys() == trained.keys()
    changed = {
        name for name in start if name.startswith("image_encoder") and not torch.equal(start[name], trained[name])
    }
    assert changed == {f"image_encoder.blocks.{i}.attn.{part}.weight" for i in range(2) for part in ("qkv", "proj")}


def test_an_adapter_is_a_text_prompt_trained_alone(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    for rank, written in ((0, True), (2, False)):
        run(miniature("sam-vit-h-text", steps=1, train="text", lora_rank=rank), data, tmp_path / str(rank))
        assert (tmp_path / str(rank) / "adapter").exists() == written


def test_what_was_trained_names_the_clip_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that of the model that it began with, which may be of the same width."""
    recipe = replace(miniature("sam-vit-b-text-small-gpu", steps=1), clip="ViT-B-16:laion2b_s34b_b88k")
    asked: list[str] = []

    def load(name: str) -> tuple[Any, Any]:
        asked.append(name)
        text, crops = clip_encoders()
        return crops.model, text.tokenizer

    monkeypatch.setattr("train.run_recipe.load_open_clip", load)
    run_recipe(recipe, [open_source(str(write_coco(tmp_path / "data")))], tmp_path / "run", model=model_of())
    assert asked == [recipe.clip]
    fields, _ = read_adapter(tmp_path / "run" / "adapter")
    config = load_model(tmp_path / "run" / "model").config
    for name, tag in ((fields["clip_name"], fields["clip_pretrained"]), (config.clip_name, config.clip_pretrained)):
        assert f"{name}:{tag}" == recipe.clip


def test_what_another_network_said_is_not_taken_over(tmp_path: Path) -> None:
    """Of a run that ended before it saved, such as a trial on random weights, only what was kept is left."""
    data, recipe = write_coco(tmp_path / "data"), miniature("sam-vit-b-text-small-gpu", steps=1)
    run(recipe, data, tmp_path / "run")
    (tmp_path / "run" / "last.pt").unlink()
    run(recipe, data, tmp_path / "run")  # the same network again
    (tmp_path / "run" / "last.pt").unlink()
    with pytest.raises(ValueError, match="images holds embeddings of another network: remove"):
        run_recipe(recipe, [open_source(str(data))], tmp_path / "run", model=model_of(1), encoders=clip_encoders())
    encoders = clip_encoders()
    encoders[1].model.visual.proj.data += 1
    with pytest.raises(ValueError, match="crops holds embeddings of another network"):
        run_recipe(recipe, [open_source(str(data))], tmp_path / "run", model=model_of(), encoders=encoders)


def test_a_resumed_run_keeps_what_its_own_encoder_said(tmp_path: Path) -> None:
    """The checkpoint holds the encoder; random weights to start from are others each time."""
    data, recipe = write_coco(tmp_path / "data"), miniature("sam-vit-b-text-small-gpu", steps=2)
    for number, options in ((0, {"stop_after": 1}), (1, {})):
        part = replace(recipe, loop=replace(recipe.loop, **options))
        source = open_source(str(data))
        run_recipe(
            part, [source], tmp_path / "run", model=model_of(number), encoders=clip_encoders(), resume=bool(number)
        )
    trained, began = load_model(tmp_path / "run" / "model").state_dict(), model_of(0).state_dict()
    name = next(name for name in began if name.startswith("image_encoder.") and began[name].any())
    assert torch.equal(trained[name], began[name])


def test_a_folder_with_a_training_is_not_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_coco(tmp_path / "data")
    recipe = miniature("sam-vit-h-text", steps=1)
    run(recipe, data, tmp_path / "run", resume=True)
    assert "run holds no training yet" in caplog.text
    with pytest.raises(FileExistsError, match="holds a training already: go on with it"):
        run(recipe, data, tmp_path / "run")


def test_a_wrong_file_to_evaluate_on_is_told_before_the_training(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="no such dataset file"):
        run(miniature("sam-vit-h-text", steps=1), data, tmp_path / "run", val=tmp_path / "vla.json")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_gradient_scaler_is_told_of_steps_that_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 overflows now and then; the scaler then lowers its scale, and the next step is as any other."""
    overflow = torch.finfo(torch.float32).max
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    class Scaled(Accelerator):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.scaler, self.backwards = scaler, 0

        def prepare(self, *objects: Any) -> Any:
            module, optimizer = super().prepare(*objects)
            optimizer.scaler = scaler
            return module, optimizer

        def backward(self, loss: torch.Tensor, **options: Any) -> None:
            self.backwards += 1
            super().backward(loss * overflow if self.backwards == 2 else loss, **options)

    monkeypatch.setattr("train.loop.Accelerator", Scaled)
    losses = run(miniature("sam-vit-h-text", steps=4), write_coco(tmp_path / "data"), tmp_path / "run")
    assert len(losses) == 4
    assert scaler.get_scale() == 4.0  # halved once


def test_the_open_questions_are_options(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    small = miniature("sam-vit-b-text-small-gpu", steps=2, clicks=0)
    recipe = replace(small, prompt=PromptOptions("mlp", centre=4))
    run(recipe, data, tmp_path / "run")
    trained = load_model(tmp_path / "run" / "model", dtype="float32")
    assert trained.config.text_projection == "mlp"
    model_of().save_pretrained(tmp_path / "start")
    adapted = load_model(tmp_path / "start", adapter=tmp_path / "run" / "adapter", dtype="float32")
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in adapted.state_dict().items())

    crops = clip_encoders()[1]
    samples = samples_of([open_source(str(data))], recipe)
    seen = torch.cat([CropPrompts(crops).embed(samples[i]) for i in range(4)])
    text_mean, image_mean = trained.prompt_encoder.modality_means
    torch.testing.assert_close(image_mean, seen.mean(0), rtol=1e-3, atol=1e-4)
    assert text_mean.norm() > 0.1
    centred = trained.prompt_encoder.align_clip(seen, "image")
    assert centred.mean(0).norm() < seen.mean(0).norm()  # no common direction is left


def test_centring_needs_masks_and_words(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    recipe = replace(miniature("sam-vit-h-text", steps=1), prompt=PromptOptions(centre=2))
    with pytest.raises(ValueError, match=r"prompt\.centre needs a CLIP with both encoders"):
        run_recipe(
            recipe, [open_source(str(data))], tmp_path, model=model_of(), encoders=(None, clip_encoders()[1])
        )  # fmt: skip


def shared_recipe(size: int, accumulate: int = 1, **loop) -> Recipe:
    """Crops of other pictures as negatives are off, since they depend on who shares a batch; drop path, since each
    process draws its own."""
    options = {"batch_size": size, "accumulate": accumulate, "drop_path": 0.0, **loop}
    recipe = miniature("sam-vit-h-text", steps=2, **options)
    return replace(recipe, step=replace(recipe.step, negatives=0, text_share=0.5))


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import accelerate
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from test_recipes import run, shared_recipe
torch.set_num_threads(1)
begin, prepare = accelerate.Accelerator.__init__, accelerate.Accelerator.prepare

def begin_split(self, *arguments, **options):  # accelerate has FSDP on GPUs alone, PyTorch has it on CPUs too
    begin(self, *arguments, **options)
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(fsdp_version=2)

def prepare_and_count(self, model, optimizer):
    model, optimizer = prepare(self, model, optimizer)
    parts = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters())
    share = parts / sum(p.numel() for p in model.parameters())
    sys.stdout.write(f"share: {{share:.2f}}\\n")
    sys.stdout.flush()
    return model, optimizer

accelerate.Accelerator.prepare = prepare_and_count
for name, stop in [("two", 1), ("two", None), ("split", 1), ("split", None), ("joined", 1)]:
    accelerate.Accelerator.__init__ = begin if name == "two" else begin_split
    run(shared_recipe(2, stop_after=stop), Path(sys.argv[1]), Path(sys.argv[2]) / name, resume=True)
    AcceleratorState._reset_state(reset_partial_state=True)
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The same four pictures a step: in one process, by accumulation, by DDP, by FSDP, and by FSDP that one process
    carries on; stopped and resumed on the way."""
    data = write_coco(tmp_path / "data")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command = [*launch, str(script), str(data), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = [float(found) for found in re.findall(r"share: ([\d.]+)", done.stdout)]
    assert shares == pytest.approx([1] * 4 + [0.5] * 6, abs=0.04)
    run(shared_recipe(4), data, tmp_path / "one")
    run(shared_recipe(2, 2), data, tmp_path / "accumulated")
    run(shared_recipe(2, 2), data, tmp_path / "joined", resume=True)
    one, *others = (
        load_model(tmp_path / name / "model", dtype="float32").state_dict()
        for name in ("one", "accumulated", "two", "split", "joined")
    )
    start = model_of().state_dict()
    assert any((value - start[name]).abs().max() > 1e-3 for name, value in one.items())
    for other in others:
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_what_cannot_be_split_is_refused() -> None:
    from train.sharding import prepare_sharding

    first, second = (
        SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=v))) for v in (1, 2)
    )
    step = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="launch it with --use_fsdp --fsdp_version 2"):
        prepare_sharding(first, step)
    step.image_store = object()
    with pytest.raises(ValueError, match="launch it without --use_fsdp"):
        prepare_sharding(second, step)


def test_evaluation_keeps_the_best(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    run(miniature("sam-vit-b-text-small-gpu", steps=2, eval_every=1), data, tmp_path / "run", val=data, val_limit=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = [line["val_score"] for line in lines if "val_score" in line]
    record = json.loads((tmp_path / "run" / "best" / "training.json").read_text())
    assert len(scores) == 2
    assert record["figures"]["score"] == pytest.approx(max(scores), abs=1e-4)
    assert load_model(tmp_path / "run" / "best").config.text_trained


def without(data: Path, *lists: str) -> Path:
    """A COCO file beside another that lacks its images or annotations."""
    content = json.loads(data.read_text())
    data.with_name("less.json").write_text(json.dumps({**content, **{name: [] for name in lists}}))
    return data.with_name("less.json")


def test_nothing_to_evaluate_on_is_no_score(tmp_path: Path) -> None:
    """Every model would score 0, and the first one be kept as the best."""
    data = write_coco(tmp_path / "data")
    with pytest.raises(ValueError, match="has no object to evaluate on"):
        run(miniature("sam-vit-h-text", steps=1), data, tmp_path / "run", val=without(data, "annotations"))


def test_nothing_to_learn_from_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_coco(tmp_path / "data")
    run(miniature("sam-vit-h-text", steps=1), without(data, "annotations"), tmp_path / "run")
    assert "the pictures up to step 1 had no mask to learn from" in caplog.text
    with pytest.raises(ValueError, match=r"less\.json has no picture to train on"):
        open_source(str(without(data, "images", "annotations")))


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from train.__main__ import main, with_setting

    assert main(["sam-vit-h-text", str(tmp_path / "none"), "--out", str(tmp_path / "o"), "--random-weights"]) == 1
    assert "There is no data set" in capsys.readouterr().err
    assert main(["sam-vit-h-text", "x", "--out", str(tmp_path / "o"), "--set", "step.nosie=1"]) == 1
    assert "there is no option 'step.nosie'; choose from clicks" in capsys.readouterr().err
    data = str(write_coco(tmp_path / "data"))
    for arguments, words in {
        ("--init", "mine", "--random-weights"): "random weights have the shapes of facebook/sam-vit-base",
        ("--accumulate", "0"): "accumulate must be at least 1, but is 0",
        ("--steps", "0"): "steps must be at least 1",
        ("--set", 'loop.schedule="cos"'): "schedule must be one of linear, step, cosine, but is 'cos'",
        ("--set", 'step.noise="much"'): 'step.noise takes a value such as 0.0, not "much"',
        ("--set", "samples.scale_range=0.5"): "samples.scale_range takes a value such as [0.1, 2.0], not 0.5",
    }.items():
        assert main(["sam-vit-h-text", data, "--out", str(tmp_path / "o"), *arguments]) == 1
        assert words in capsys.readouterr().err
    missing = ["--names", "n.npz", "--trunk", "t", "--text-encoder", "e", "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit, match="2"):
        main(["textsam-tiny", str(tmp_path), *missing])
    assert "argument --names: expected a file, but n.npz is missing" in capsys.readouterr().err
    assert with_setting(RECIPES["sam-vit-b-text-small-gpu"], "samples.views=null").samples.views is None
    assert with_setting(RECIPES["sam-vit-h-text"], "samples.min_side_px=0.5").samples.min_side_px == 0.5  # of 100
    recipe = with_setting(with_setting(RECIPES["sam-vit-h-text"], "step.noise=0.1"), "samples.scale_range=[0.5,2]")
    assert recipe.step.noise == 0.1
    assert recipe.samples.scale_range == (0.5, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECIPES))
def test_full_size_recipes_run(tmp_path: Path, name: str) -> None:
    """Two steps on random weights of the true shapes, CLIP included: ViT-H takes about 20 GB with its gradients."""
    import open_clip

    recipe = RECIPES[name]
    loop = replace(recipe.loop, steps=2, batch_size=1, accumulate=1, workers=0, mixed_precision="no", log_every=1)
    recipe = replace(
        recipe,
        loop=replace(loop, save_every=10, ema_decay=0.0, tensorboard=False),
        samples=replace(recipe.samples, instances=2, min_side_px=0, scale_range=None),
        step=replace(recipe.step, negatives=0, name_share=0.0),
    )
    clip = CropEncoder(open_clip.create_model("ViT-L-14-336"))
    source = open_source(str(write_coco(tmp_path / "data", 2)))
    run_recipe(recipe, [source], tmp_path / "run", model=load_start(recipe, random_weights=True), encoders=(None, clip))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)


def test_rates_and_parts_of_the_options() -> None:
    from train.loop import rate
    from train.optimization import layers_above

    step = LoopOptions(steps=90_000, warmup=250, schedule="step", milestones=(60_000 / 90_000, 86_666 / 90_000))
    assert [rate(s, step) for s in (0, 249, 59_999, 60_000, 86_667)] == pytest.approx([1 / 250, 1, 1, 0.1, 0.01])
    cosine = LoopOptions(steps=110, warmup=10, schedule="cosine")
    assert [rate(s, cosine) for s in (9, 60, 110)] == pytest.approx([1, 0.5, 0], abs=1e-6)
    names = ("image_encoder.pos_embed", "image_encoder.blocks.0.x", "image_encoder.blocks.11.x", "image_encoder.neck.0")
    assert [layers_above(name, 12) for name in names] == [13, 12, 1, 0]
    groups = build_optimizer(model_of(), LoopOptions(layer_decay=0.5, lr=1.0)).param_groups
    assert sorted({group["lr"] for group in groups}) == [0.125, 0.25, 0.5, 1.0]
    assert StepOptions().clicks == 8
