"""`textsam info`: what is installed, what it can run on, and the card of a model."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from textsam import __version__
from textsam.checkpoints.encoders import EMBEDDED, packaged_folder
from textsam.checkpoints.loading import PACKAGED, load_model, resolve_device
from textsam.native import library

SUPPLIERS = ("torch", "transformers", "open_clip_torch", "supervision", "numpy", "pillow", "huggingface_hub")


def print_info(console: Console, model: str | None = None) -> None:
    """Prints versions, devices, and the named model (None: the embedded one) with its card, if it has one."""
    table = Table.grid(padding=(0, 2))
    table.add_row("textsam", __version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in SUPPLIERS:
        table.add_row(name, _version(name))
    table.add_row("kernels", library.state())
    for name, what in devices():
        table.add_row(name, what)
    console.print(table)
    loaded = load_model(model)
    config = loaded.config
    count = sum(parameter.numel() for parameter in loaded.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.parameters())
    table = Table.grid(padding=(0, 2))
    table.add_row("model", model or EMBEDDED)
    table.add_row("encoder", f"{config.encoder_type}, {config.image_size} px")
    table.add_row("parameters", f"{count / 1e6:.1f} M, {size / 1e6:.0f} MB as {str(loaded.dtype).split('.')[1]}")
    text = "trained prompt" if config.text_trained else "by ranking automatic masks"
    table.add_row("words", f"{text}, CLIP {config.clip_name} ({config.clip_pretrained})")
    console.print(table)
    card = card_of(model)
    if card is not None:
        console.print(Markdown(card))


def devices() -> list[tuple[str, str]]:
    """Name and description of each device that PyTorch sees; the one used by default comes marked."""
    default = resolve_device(None).type
    found = [("cpu", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    return [(name, what + (", default" if name.split(":")[0] == default else "")) for name, what in found]


def card_of(model: str | None) -> str | None:
    """The model card (Markdown without its YAML head) of a model in this package or of a folder; None without one."""
    folder = packaged_folder(model or EMBEDDED) if model is None or model in PACKAGED else Path(model)
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text("utf-8")
    if text.startswith("---\n") and "\n---\n" in text[4:]:
        text = text[4:].split("\n---\n", 1)[1]
    return text


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
