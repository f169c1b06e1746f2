"""`textsam export`: a model as ONNX graphs, and how they compare with PyTorch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from textsam.checkpoints import loading
from textsam.deployment.onnx_export import export_onnx


def run_export(
    folder: Path,
    console: Console,
    errors: Console,
    *,
    model: str | None,
    adapter: str | None,
    int8: bool,
    time_it: bool,
) -> None:
    """Writes the folder and says what is in it."""
    with errors.status("Loading the model") as status:
        sam = loading.load(model, adapter=adapter, device="cpu", dtype="float32")
        written = export_onnx(sam, folder, int8=int8, on_graph=lambda name: status.update(f"Exporting {name}"))
    table = Table("file", "MB")
    for path in written:
        table.add_row(path.name, f"{path.stat().st_size / 1e6:.1f}")
    console.print(table)
    console.print(f"Run it: python {folder / 'segment.py'} PHOTO WORD", markup=False, highlight=False, soft_wrap=True)
    if sam.text_reader is not None:
        console.print(
            'The graphs give one rough mask of all text for "word" or "text line": to read word by word, as textsam '
            "segment and textsam crops do, takes PyTorch.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if time_it:
        from textsam.deployment.onnx_timing import compare

        table = Table("graph", "onnxruntime, ms", "torch, ms", "largest difference", "of values up to")
        for prompts in (1, 64):
            for row in compare(sam, folder, prompts)[prompts > 1 :]:
                cells = (1e3 * row.onnx_seconds, 1e3 * row.torch_seconds)
                table.add_row(
                    row.graph, *(f"{cell:.1f}" for cell in cells), f"{row.difference:.1g}", f"{row.scale:.3g}"
                )
        console.print(table)
