"""Files import only from files above them in this list; the package itself stays light, the network pure."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "textsam"

LAYERS = [
    "companions",
    "native.build",
    "native.calls",
    "native.layer_kernels",
    "native.kernels",
    "native.library",
    "modeling.layers",
    "modeling.native_layers",
    "modeling.structures",
    "modeling.fused_attention",
    "modeling.attention",
    "modeling.image_encoder",
    "modeling.transformer",
    "modeling.fine_masks",
    "modeling.dense_text",
    "modeling.mobile_encoder",
    "modeling.prompt_encoder",
    "modeling.mask_refiner",
    "modeling.mask_detail",
    "modeling.decoder_inference",
    "modeling.decoder_native",
    "modeling.mask_decoder",
    "config",
    "modeling.text_sam",
    "model",
    "language.vocabulary",
    "language.queries",
    "language.words",
    "language.crops",
    "language.clip_towers",
    "language.clip",
    "language.small_clip",
    "files.images",
    "files.atomic",
    "files.embedding_cache",
    "files.rle",
    "prompting.transforms",
    "prompting.detections",
    "prompting.argument_names",
    "prompting.prompts",
    "prompting.mask_details",
    "prompting.text_options",
    "prompting.text_guesses",
    "prompting.text_instances",
    "prompting.text_reading",
    "prompting.text_regions",
    "prompting.text_prompting",
    "prompting.geometry_prompting",
    "prompting.questions",
    "prompting.ranking",
    "prompting.device_scoring",
    "prompting.mask_scoring",
    "prompting.encoded_image",
    "prompting.automatic_options",
    "prompting.automatic",
    "prompting.cached_encoding",
    "prompting.answers",
    "prompting.guided_proposals",
    "prompting.ranker",
    "prompting.exemplars",
    "text_regions.quads",
    "text_regions.order",
    "text_regions.levels",
    "text_regions.options",
    "text_regions.tiles",
    "text_regions.instances",
    "text_regions.scales",
    "text_regions.maps",
    "text_regions.regions",
    "text_regions.rectify",
    "text_regions.cutouts",
    "text_regions.reading",
    "text_regions.reader",
    "text_regions.answers",
    "checkpoints.encoders",
    "predictor",
    "text_regions.read",
    "queries",
    "slicing",
    "checkpoints.conversion",
    "checkpoints.weights_io",
    "checkpoints.hub",
    "checkpoints.adapters",
    "checkpoints.devices",
    "checkpoints.quantization",
    "checkpoints.loading",
    "checkpoints.publishing",
    "huggingface.image_processing",
    "huggingface.prompt_tensors",
    "huggingface.processing",
    "huggingface.pipeline",
    "huggingface.ranking_elsewhere",
    "deployment.segment",
    "deployment.onnx_modules",
    "deployment.onnx_export",
    "deployment.onnx_timing",
    "files.video",
    "tracking",
    "files.export",
    "files.frame_records",
    "files.dataset_export",
    "files.runs",
    "files.text_export",
    "files.text_runs",
    "files.coco_structures",
    "files.coco",
    "labelling.sources",
    "labelling.shards",
    "labelling.step",
    "labelling.engines",
    "evaluation.metrics",
    "evaluation.options",
    "evaluation.geometry",
    "evaluation.text",
    "evaluation.report",
    "evaluation.sheet",
    "evaluation.scoring",
    "evaluation.ocr_metrics",
    "evaluation.ocr_truth",
    "evaluation.ocr_baselines",
    "evaluation.ocr_report",
    "evaluation.ocr_scoring",
    "bench_memory",
    "bench_jobs",
    "bench_tiny",
    "bench_curves",
    "bench_gpu",
    "bench",
    "commands.info",
    "commands.demo",
    "commands.export",
    "commands.options",
    "commands.run",
    "commands.label",
    "commands.ocr",
    "commands.video",
    "commands.cli",
    "__main__",
]

# The page's own order; it stands on the package, and nothing in the package knows it.
PAGE = Path(__file__).parent.parent / "app"
PAGE_LAYERS = [
    "messages",
    "limits",
    "scene",
    "asking",
    "drawing",
    "downloads",
    "collection",
    "session",
    "actions",
    "lists",
    "components",
    "brush",
    "handlers",
    "endpoints",
    "page",
    "server",
    "load_test",
    "__main__",
    "space",
]

# What only the files above the network may know: pictures, suppliers, the screen, the Hub.
FOREIGN_TO_MODELING = {
    "PIL",
    "cv2",
    "huggingface_hub",
    "open_clip",
    "pycocotools",
    "rich",
    "supervision",
    "transformers",
}
FOREIGN_TO_MODELING |= {"numpy", "safetensors", "skimage", "timm", "torchvision", "typer"}

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)


def imports(module: str, package: Path = PACKAGE) -> set[str]:
    """Everything that a file imports, at its top, inside functions and for type checking alike."""
    tree = ast.parse((package / (module.replace(".", "/") + ".py")).read_text("utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if node.module == package.name == "app":
                    found.add(whole)
                    continue
                is_module = whole.startswith("textsam.") and whole.removeprefix("textsam.") in MODULES
                found.add(whole if is_module or node.module == "textsam" else str(node.module))
    return found


def test_every_file_has_its_layer() -> None:
    assert sorted(LAYERS) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    own = {name.removeprefix("textsam.") for name in imports(module) if name.split(".")[0] == "textsam"}
    allowed = {*LAYERS[: LAYERS.index(module)], "__version__"}
    assert own <= allowed, f"{module} imports {sorted(own - allowed)}, which are not below it"


def test_every_file_of_the_page_has_its_layer() -> None:
    assert sorted(PAGE_LAYERS) == sorted(path.stem for path in PAGE.glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("module", PAGE_LAYERS)
def test_the_page_imports_down(module: str) -> None:
    own = {name.removeprefix("app.") for name in imports(module, PAGE) if name.split(".")[0] == "app"}
    assert own <= set(PAGE_LAYERS[: PAGE_LAYERS.index(module)])


def test_the_package_does_not_know_the_page() -> None:
    assert not [module for module in MODULES if {"app", "gradio"} & {name.split(".")[0] for name in imports(module)}]


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("modeling.")])
def test_the_network_knows_pytorch_alone(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & FOREIGN_TO_MODELING


@pytest.mark.parametrize(
    "statement", ["import textsam; dir(textsam)", "import textsam.commands.cli", "import textsam.files.images"]
)
def test_light_imports(statement: str) -> None:
    heavy = ["torch", "transformers", "supervision", "open_clip", "cv2", "timm", "skimage", "datasets", "gradio"]
    code = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_does_not_wait_for_what_only_others_need() -> None:
    """transformers' model code and torch's compiler take longer to import than all the rest together."""
    heavy = ["transformers.modeling_utils", "torch._dynamo", "supervision", "scipy", "open_clip"]
    code = f"import sys, textsam; textsam.load(); print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    import textsam

    for name in textsam.__all__:
        assert getattr(textsam, name) is not None
        assert name in dir(textsam)
    with pytest.raises(AttributeError, match=r"no attribute 'Textsam'; it offers .*TextSam"):
        _ = textsam.Textsam
