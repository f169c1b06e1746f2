"""The `textsam` command.

Exit code 0: all went well; 1: something failed, which is named in one sentence; 2: the command was not meant so.
PyTorch is imported inside the commands, so that help comes at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from textsam import __version__
from textsam.commands.label import label
from textsam.commands.options import (
    Adapter,
    Cache,
    Clip,
    Device,
    Dtype,
    Format,
    Model,
    NegativeText,
    Out,
    Overwrite,
    Quantize,
    Slice,
    Source,
    Threshold,
    geometry,
    parse_names,
)
from textsam.commands.run import (
    check_question,
    check_words,
    console,
    errors,
    file_stamp,
    load,
    one_sentence,
    pictures,
    run,
)
from textsam.commands.video import video

if TYPE_CHECKING:
    import supervision as sv

    from textsam.files.images import RgbImage


class OneSentenceErrors(TyperGroup):
    """Shows an error as one sentence on stderr; a traceback is for those who wrote the program."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
            # click's own errors and typer.Exit are RuntimeErrors or Exceptions of click: let them through.
            if type(error).__module__.split(".")[0] in ("click", "typer"):
                raise
            errors.print(f"textsam: {one_sentence(error)}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=OneSentenceErrors,
    help="Objects in pictures by words, clicks, boxes and masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options before the command's name."""


@app.command()
def segment(
    source: Source,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="TEXT", help="What to find; repeatable or comma-separated."),
    ] = None,
    negative_text: NegativeText = None,
    point: Annotated[
        list[str] | None,
        typer.Option("--point", metavar="X,Y[,0|1]", help="A pixel of the object; with 0 of what is not; repeatable."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X1,Y1,X2,Y2", help="A box in pixels; repeatable, one object each."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="A rough mask: a picture, light on the object.")
    ] = None,
    model: Model = None,
    clip: Clip = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Side that pictures are resized to. Default: the model's.")
    ] = None,
    threshold: Threshold = None,
    max_instances: Annotated[
        int | None, typer.Option("--max-instances", min=1, help="At most so many objects for each text.")
    ] = None,
    slice: Slice = None,
    multimask: Annotated[
        bool, typer.Option("--multimask", help="Three masks (whole, part, subpart) for --point, --box or --mask.")
    ] = False,
    out: Out = Path("out"),
    format: Format = None,
    overwrite: Overwrite = False,
    cache: Cache = None,
) -> None:
    """Segment what words, points, boxes and masks name.

    Words alone find every instance; points, boxes and masks give one object each, as in SAM, with or without words.
    """
    from textsam.files.runs import weights_identity
    from textsam.slicing import find_in_slices

    names = parse_names(text, "--text")
    options = geometry(point, box, mask, multimask=multimask)
    if not names and not options:
        raise typer.BadParameter("say what to segment: --text, --point, --box or --mask.", param_hint="segment")
    if slice is not None and (options or not names):
        raise typer.BadParameter("goes with --text alone.", param_hint="--slice")
    options |= {"threshold": threshold, "max_instances": max_instances}
    options |= {"text": names or None, "negative_text": parse_names(negative_text, "--negative-text") or None}
    paths = pictures(source)
    sam = load(model, clip=clip, adapter=adapter, device=device, dtype=dtype, quantize=quantize, image_size=image_size)
    if cache is not None:
        sam.use_cache(cache)
    check_words(names, sam)
    check_words(options["negative_text"] or [], sam, "--negative-text")
    check_question(sam, options, in_slices=slice is not None)
    settings = {"command": "segment", "model": [model, clip, adapter, str(sam.network.dtype), quantize], **options}
    settings["weights"] = weights_identity(model, adapter)
    settings["mask_input"] = file_stamp(mask)
    if image_size is not None:
        settings["image_size"] = image_size
    if slice is not None:
        settings["slice"] = slice

    def predict(image: RgbImage) -> sv.Detections:
        if slice is None:
            return sam.predict(image, **options)
        return find_in_slices(lambda part: sam.predict(part, **options), image, slice, max_instances)

    run(paths, out, predict, settings=settings, categories=names, dataset_format=format, overwrite=overwrite)


@app.command()
def generate(
    source: Source,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    points_per_side: Annotated[int, typer.Option(min=1, help="Points along each side of the grid.")] = 32,
    points_per_batch: Annotated[int, typer.Option(min=1, help="Points in one decoder call.")] = 64,
    pred_iou_thresh: Annotated[float, typer.Option(help="Least predicted IoU of a mask.")] = 0.88,
    stability_score_thresh: Annotated[float, typer.Option(help="Least stability score of a mask.")] = 0.95,
    stability_score_offset: Annotated[float, typer.Option(help="Shift of the threshold in that score.")] = 1.0,
    box_nms_thresh: Annotated[float, typer.Option(help="Box IoU above which a worse mask goes.")] = 0.7,
    crop_n_layers: Annotated[int, typer.Option(min=0, help="Also on crops: layer i has (2^i)^2 of them.")] = 0,
    crop_nms_thresh: Annotated[float, typer.Option(help="Box IoU between masks of different crops.")] = 0.7,
    crop_overlap_ratio: Annotated[float, typer.Option(help="Overlap of crops, of the short side.")] = 512 / 1500,
    crop_n_points_downscale_factor: Annotated[int, typer.Option(min=1, help="Fewer points in deeper layers.")] = 1,
    min_mask_region_area: Annotated[int, typer.Option(min=0, help="Remove islands and holes below, in pixels.")] = 0,
    redraw: Annotated[bool, typer.Option(help="Draw the masks again in detail, if the model can.")] = True,
    out: Out = Path("out"),
    format: Format = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment everything: automatic masks from a grid of points, with SAM's options."""
    from textsam.files.runs import weights_identity
    from textsam.prompting.automatic_options import AutomaticOptions

    options: dict[str, Any] = {
        "points_per_side": points_per_side,
        "points_per_batch": points_per_batch,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
        "stability_score_offset": stability_score_offset,
        "box_nms_thresh": box_nms_thresh,
        "crop_n_layers": crop_n_layers,
        "crop_nms_thresh": crop_nms_thresh,
        "crop_overlap_ratio": crop_overlap_ratio,
        "crop_n_points_downscale_factor": crop_n_points_downscale_factor,
        "min_mask_region_area": min_mask_region_area,
        "redraw": redraw,
    }
    try:
        AutomaticOptions(**options)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="generate") from error
    paths = pictures(source)
    sam = load(model, device=device, dtype=dtype)
    settings = {"command": "generate", "model": [model, str(sam.network.dtype), weights_identity(model)], **options}

    def predict(image: RgbImage) -> sv.Detections:
        return sam.generate(image, **options)

    run(paths, out, predict, settings=settings, dataset_format=format, overwrite=overwrite)


app.command()(label)
app.command()(video)


@app.command()
def evaluate(
    data: Annotated[list[Path], typer.Argument(metavar="FILE...", help="COCO instances files.")],
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="The pictures. Default: images/ beside each file.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts", metavar="PROMPT", help="box, point, text, text+point, text+box, all; repeatable. Default: all."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Pictures of each file, evenly spaced.")] = None,
    max_instances: Annotated[int, typer.Option("--max-instances", min=1, help="Objects scored in a picture.")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of those objects.")] = 0,
    model: Model = None,
    clip: Clip = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", file_okay=False, help="Write scores.json and cases.png there."),
    ] = None,
    ocr: Annotated[
        bool,
        typer.Option(
            "--ocr",
            help="Score written text instead: words, lines, ink, beside two classical finders; "
            "with --model textsam-tiny-ocr.",
        ),
    ] = False,
) -> None:
    """Score a model on COCO-format data: boxes, simulated clicks, words, words with a click, absence."""
    if ocr:
        from textsam.commands.ocr import run_evaluation as run_ocr_evaluation

        if prompts:
            raise typer.BadParameter("does not go with --ocr, which asks for all levels.", param_hint="--prompts")
        sam = load(model, clip=clip, adapter=adapter, device=device, dtype=dtype, quantize=quantize)
        run_ocr_evaluation(data, sam, model_name=model, images=images, out=out, limit=limit)
        return
    from textsam.evaluation.scoring import EvaluationOptions
    from textsam.evaluation.scoring import run as run_evaluation

    options = EvaluationOptions(prompts=tuple(prompts or ["all"]), limit=limit, max_instances=max_instances, seed=seed)
    sam = load(model, clip=clip, adapter=adapter, device=device, dtype=dtype, quantize=quantize)
    run_evaluation(data, sam, model_name=model, images=images, out=out, options=options, console=console)


@app.command()
def crops(
    source: Source,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME|PATH", help="A model that was trained to find written text.")
    ] = "textsam-tiny-ocr",
    level: Annotated[
        Literal["word", "text line", "text block"], typer.Option("--level", help="What a crop holds.")
    ] = "text line",
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="Least score. Default: the reader's own.")
    ] = None,
    plate: Annotated[bool, typer.Option("--plate", help="Also write the picture with its text painted over.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("crops"),
    overwrite: Overwrite = False,
) -> None:
    """Cut written text out: upright crops, letters as RGBA, a mask of what to paint over, ICDAR and COCO files."""
    from textsam.commands.ocr import run_crops_command
    from textsam.files.runs import weights_identity

    paths = pictures(source)
    sam = load(model, device=device, dtype=dtype)
    identity = [model, str(sam.network.dtype), weights_identity(model)]
    settings = {"command": "crops", "model": identity, "level": level, "threshold": threshold}
    run_crops_command(
        paths, out, sam, model=model, level=level, threshold=threshold, plate=plate, overwrite=overwrite,
        settings=settings,
    )  # fmt: skip


@app.command()
def bench(
    size: Annotated[
        str, typer.Option(help="b, l, h, tiny (which only shows that the command works), or on a GPU all.")
    ] = "b",
    rounds: Annotated[int, typer.Option(min=1, help="Timed pairs of runs, after one warm-up each.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: as torch chooses.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or all.")] = "all",
    work: Annotated[
        str, typer.Option(help="encoder, decoder, generate, tiny (textsam-tiny's latency) or all.")
    ] = "all",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The figures, as JSON.")] = Path("bench.json"),
    curves: Annotated[
        Path | None,
        typer.Option("--curves", metavar="FILE", help="Measure how time and memory grow instead; JSON, and a PNG."),
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds after which, on a GPU, no further row is begun.")] = 600.0,
) -> None:
    """Time encoder, decoder and automatic masks beside transformers' SamModel, on the same random weights."""
    from textsam.bench import run as run_bench

    run_bench(size, rounds, threads, device, dtype, work, out, console, curves, budget)


@app.command()
def export(
    onnx: Annotated[
        Path,
        typer.Option("--onnx", metavar="DIR", file_okay=False, help="Write ONNX graphs and a script that runs them."),
    ],
    model: Model = None,
    adapter: Adapter = None,
    int8: Annotated[bool, typer.Option("--int8", help="Weights of matrix products in 8 bits.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Compare results and speed with PyTorch.")] = False,
) -> None:
    """Export a model to ONNX: image encoder, text encoder and prompt decoder, for machines without PyTorch.

    Of textsam-tiny-ocr they give one rough mask of all text: reading word by word is not exported.
    """
    from textsam.commands.export import run_export

    run_export(onnx, console, errors, model=model, adapter=adapter, int8=int8, time_it=time)


@app.command()
def info(model: Model = None) -> None:
    """Print versions, devices, and the card of a model."""
    from textsam.commands.info import print_info

    print_info(console, model)


@app.command()
def demo(
    model: Model = None,
    out: Out = Path("demo"),
) -> None:
    """Ask the embedded model for the surest object of a word in each of three photos (of scikit-image)."""
    from textsam.commands.demo import run_demo

    run_demo(out, console, model)


def main() -> None:
    """Entry point of the console script."""
    import logging
    import warnings

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        errors.print(f"textsam: {message}", markup=False, highlight=False, soft_wrap=True)

    logging.basicConfig(format="textsam: %(message)s", level=logging.WARNING)
    warnings.showwarning = show  # without the line of code that warns
    app()
