"""Trainings by name: what each is for, the command that starts it and what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from train.optimization import LoopOptions
from train.sam_step import StepOptions
from train.samples import SampleOptions
from train.text_prompt import PromptOptions


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        name: on the command line.
        command: that trains it. expected: result, and where that figure comes from.
        init: what `textsam.load` takes to start from.
        clip: open_clip's name and tag of the CLIP whose space the text prompt speaks.
        step, samples, loop, prompt: options.
        keep_images: keep the image embeddings on disk; for a frozen encoder and fixed views.
        keep_crops: keep the embeddings of crops on disk; for fixed crop seeds.
    """

    name: str
    command: str
    expected: str
    init: str
    clip: str
    step: StepOptions = field(default_factory=StepOptions)
    samples: SampleOptions = field(default_factory=SampleOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    keep_images: bool = False
    keep_crops: bool = False


SAM_VIT_H_TEXT = Recipe(
    name="sam-vit-h-text",
    command="accelerate launch --multi_gpu --num_processes 8 -m train sam-vit-h-text SA-1B --out runs/sam-vit-h-text",
    expected="The paper's appendix D.5 on the released ViT-H. No score was published and none has been measured here.",
    init="facebook/sam-vit-huge",
    clip="ViT-L-14-336:openai",
    step=StepOptions(text_share=1.0, negatives=4),
    samples=SampleOptions(min_side_px=100, scale_range=(0.1, 2.0), crop_size=336),
    # 8 processes x 2 pictures x 8 = the paper's 128; steps, rates and decay are the paper's, too.
    loop=LoopOptions(
        steps=120_000, batch_size=2, accumulate=8, lr=8e-4, weight_decay=0.1, layer_decay=0.8, drop_path=0.4,
        warmup=250, schedule="step", milestones=(0.6667, 0.9630), clip_norm=1.0, ema_decay=0.9999, save_every=1000,
        eval_every=5000, workers=4, tensorboard=True, progress=True,
    ),
)  # fmt: skip

SAM_VIT_B_TEXT_SMALL_GPU = Recipe(
    name="sam-vit-b-text-small-gpu",
    command="python -m train sam-vit-b-text-small-gpu COCO/train.json --val COCO/val.json --out runs/vit-b-text",
    expected="A text prompt for the released ViT-B, all else frozen: a file of 1.3 MB. No score has been measured yet.",
    init="facebook/sam-vit-base",
    clip="ViT-L-14-336:openai",
    step=StepOptions(text_share=1.0, name_share=0.25, negatives=4, noise=0.2),
    samples=SampleOptions(
        instances=8, min_side_px=32, scale_range=(0.5, 2.0), mirror_share=0.5, views=4, crop_size=336, crop_seeds=4
    ),
    loop=LoopOptions(
        steps=20_000, batch_size=4, lr=1e-3, weight_decay=0.05, train="text", warmup=250, schedule="cosine",
        ema_decay=0.999, save_every=500, eval_every=2000, workers=2, tensorboard=True, progress=True,
    ),
    keep_images=True,
    keep_crops=True,
)  # fmt: skip

RECIPES = {recipe.name: recipe for recipe in (SAM_VIT_H_TEXT, SAM_VIT_B_TEXT_SMALL_GPU)}

TINY = "textsam-tiny"
TINY_COMMAND = (
    "python -m train textsam-tiny DATA --names NAMES --trunk TRUNK --text-encoder weights/text_encoder "
    "--crops crops.safetensors --out runs/tiny"
)
TINY_EXPECTED = "The scores in the model card of textsam-tiny; train/README.md says how it is made, step by step."
