"""The brush's editor, with bounds on what it keeps between a stroke and its use."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import gradio as gr

from app.limits import LIMITS

LAYERS = 4  # of a painting; the page offers one
PAINTINGS = 64  # that are kept until they are used


def brush_editor(**options: Any) -> gr.ImageEditor:
    """An image editor with a brush alone, whose uploads are bounded.

    The component takes in strokes outside the queue, and by itself bounds neither their number nor that of a layer, for
    which it makes room.
    """
    editor = gr.ImageEditor(
        type="numpy",
        image_mode="RGBA",
        sources=[],
        transforms=[],
        layers=False,
        brush=gr.Brush(colors=[("#facc15", 0.6)], color_mode="fixed"),
        format="png",
        **options,
    )
    editor.accept_blobs = _bounded(editor.accept_blobs, editor.blob_storage)
    return editor


def _bounded(accept: Callable[[Any], Any], storage: dict[str, Any]) -> Callable[[Any], Any]:
    lock = Lock()

    def accept_blobs(data: Any) -> Any:
        index = str(data.data.get("index") or 0)
        if index != "null" and not (index.isdecimal() and int(index) < LAYERS):
            raise ValueError(f"A painting has at most {LAYERS} layers.")
        if sum(len(content) for _, content in data.files) > LIMITS.upload_bytes:
            raise ValueError(f"A painting has at most {LIMITS.upload_bytes / 1e6:.0f} MB.")
        with lock:
            while len(storage) >= PAINTINGS:
                storage.pop(next(iter(storage)))
            return accept(data)

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]  # how Gradio knows what the browser may call
    return accept_blobs
