"""From a recipe and data to a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textsam.files.coco import load_coco
from textsam.language.clip import CropEncoder, TextEncoder, load_open_clip, parse_clip_name
from textsam.model import TextSamConfig, TextSamModel
from train.loop import Evaluation, refuse_a_new_start, train
from train.readers import RecordSource
from train.recipes import Recipe
from train.sam_step import SamStep
from train.samples import RecordSamples, StreamSamples
from train.stores import CropPrompts, TensorStore
from train.text_prompt import centre, with_dense_form, with_projection

RANDOM_SIZES = {
    "facebook/sam-vit-base": TextSamConfig.sam_vit_b,
    "facebook/sam-vit-large": TextSamConfig.sam_vit_l,
    "facebook/sam-vit-huge": TextSamConfig.sam_vit_h,
}


def run_recipe(
    recipe: Recipe,
    sources: Sequence[RecordSource],
    out: Path,
    *,
    model: TextSamModel | None = None,
    encoders: tuple[TextEncoder | None, CropEncoder] | None = None,
    val: Path | None = None,
    val_limit: int = 200,
    resume: bool = False,
) -> None:
    """Trains.

    Args:
        sources: data; a stream has to be the only one.
        model, encoders: to start from, instead of what the recipe names.
        val: COCO instances file to evaluate on. val_limit: pictures of it.
    Raises:
        FileNotFoundError, ConnectionError, ValueError: the checkpoint or the CLIP is not there, or the data are bad.
        FileExistsError: `out` holds a training already, and `resume` is not set.
    """
    refuse_a_new_start(out, resume)
    if model is None:
        model = load_start(recipe)
    model = with_dense_form(with_projection(model, recipe.prompt.projection), recipe.prompt.dense)
    if encoders is None and recipe.step.text_share:
        clip = load_open_clip(recipe.clip)
        encoders = (TextEncoder(*clip, template=model.config.clip_template), CropEncoder(clip[0]))
        # The start may have been for another one: who loads the result has to get the CLIP that it was trained with.
        model.config.clip_name, model.config.clip_pretrained = parse_clip_name(recipe.clip)
    if encoders is not None:
        if encoders[1].embed_dim != model.config.clip_dim:
            raise ValueError(
                f"the CLIP has width {encoders[1].embed_dim}, the model's text prompt {model.config.clip_dim}: "
                "choose the CLIP that the model names"
            )
        size = recipe.samples.crop_size
        if size != encoders[1].image_size:
            raise ValueError(f"this CLIP takes crops of {encoders[1].image_size} px, but crop_size is {size}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for encoder in encoders:
            if encoder is not None:
                encoder.to(device)
        model.config.text_trained = True
    frozen = recipe.loop.train != "all" and not recipe.loop.lora_rank
    if recipe.keep_images and (not frozen or recipe.samples.views is None):
        raise ValueError("image embeddings can be kept only of a frozen encoder and of fixed views (views=)")
    if recipe.keep_crops and recipe.samples.crop_seeds is None:
        raise ValueError("embeddings of crops can be kept only of fixed crops (crop_seeds=)")
    crops = None
    if encoders is not None:
        store = TensorStore(out / "cache" / "crops", encoders[1]) if recipe.keep_crops else None
        crops = CropPrompts(encoders[1], store)
    samples = samples_of(sources, recipe)
    going_on = resume and (out / "last.pt").exists()  # from a checkpoint, which holds the means and the image encoder
    if recipe.prompt.centre and not going_on:
        if crops is None or encoders is None or encoders[0] is None:
            raise ValueError("prompt.centre needs a CLIP with both encoders, and text_share > 0")
        seen = samples if isinstance(samples, StreamSamples) else (samples[i] for i in range(recipe.prompt.centre))
        centre(model, crops, encoders[0], seen, recipe.prompt.centre)
    images = None
    if recipe.keep_images:
        images = TensorStore(out / "cache" / "images", None if going_on else model.image_encoder)
    step = SamStep(
        model,
        recipe.step,
        crops=crops,
        names=encoders[0] if encoders is not None else None,
        image_store=images,
    )
    evaluate = None if val is None else evaluation(val, val_limit, encoders)
    train(step, samples, recipe.loop, out, resume, evaluate)


def load_start(recipe: Recipe, *, random_weights: bool = False) -> TextSamModel:
    """The model that the recipe starts from; with `random_weights` one of the same shapes, to try the machinery.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: it is not there, or random weights cannot have its shapes.
    """
    name, _, tag = recipe.clip.partition(":")
    if random_weights:
        if recipe.init not in RANDOM_SIZES:
            raise ValueError(
                f"random weights have the shapes of {', '.join(RANDOM_SIZES)}, not of {recipe.init}: leave out "
                "--random-weights or --init"
            )
        return TextSamModel(RANDOM_SIZES[recipe.init](clip_name=name, clip_pretrained=tag))
    from textsam.checkpoints.loading import load_model

    return load_model(recipe.init, dtype="float32")


def samples_of(sources: Sequence[RecordSource], recipe: Recipe) -> RecordSamples | StreamSamples:
    """The samples of sources with an index together, or of one stream.

    Raises:
        ValueError: a stream beside other data.
    """
    streams = [source for source in sources if source.is_stream]
    if not streams:
        return RecordSamples(sources, recipe.samples)
    if len(sources) > 1:
        raise ValueError(f"{streams[0].name} is a stream and has to be the only data; give its other shards with it")
    return StreamSamples(streams[0], recipe.samples)


def evaluation(val: Path, limit: int, encoders: tuple[Any, Any] | None) -> Evaluation:
    """Box, clicks and, with encoders, text on a COCO file; "score" is the mean of what there is."""
    from textsam.evaluation.options import EvaluationOptions
    from textsam.evaluation.scoring import run
    from textsam.predictor import TextSam

    prompts = ("box", "point", "text", "text+point") if encoders and encoders[0] is not None else ("box", "point")
    options = EvaluationOptions(prompts=prompts, limit=limit, max_instances=8, clicks=(1, 5), columns=0)
    # A wrong file is told now, and not after hours of training.
    if not any(image.instances for image in load_coco(val).select(limit)):
        raise ValueError(f"{val} has no object to evaluate on: annotate some, or raise --val-limit")

    def evaluate(model: TextSamModel) -> dict[str, float]:
        predictor = TextSam(model, *(encoders or ()))
        with torch.random.fork_rng():
            summary = run(val, predictor, options=options).overall
        figures = {"box": summary.box, "1_click": summary.clicks.get(1), "5_clicks": summary.clicks.get(5)}
        if summary.text:
            figures["text"] = summary.text["miou_classes"]
        known = {name: value for name, value in figures.items() if value is not None}
        return {**known, "score": sum(known.values()) / max(len(known), 1)}

    return evaluate
