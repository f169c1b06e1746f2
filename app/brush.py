"""The brush's editor, with bounds on what it keeps between a stroke and its use."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any

import gradio as gr

from app.components import extended
from app.limits import LIMITS

LAYERS = 4  # of a painting; the page offers one
PAINTINGS = 64  # that are kept until they are used, of all sessions together

_storage: OrderedDict[str, Any] = OrderedDict()
_lock = Lock()


def brush_editor(**options: Any) -> gr.ImageEditor:
    """An image editor with a brush alone, whose uploads are bounded.

    The component takes in strokes outside the queue, and by itself bounds neither their number nor that of a layer, for
    which it makes room.
    """
    return _BrushEditor(
        type="numpy",
        image_mode="RGBA",
        sources=[],
        transforms=[],
        layers=False,
        brush=gr.Brush(colors=[("#facc15", 0.6)], color_mode="fixed"),
        format="png",
        **options,
    )


def accept_blobs(self: gr.ImageEditor, data: Any) -> Any:
    """As Gradio's, which the browser calls by this name; with bounds.

    Raises:
        ValueError: more layers or bytes than a painting has.
    """
    index = str(data.data.get("index") or 0)
    if index != "null" and not (index.isdecimal() and int(index) < LAYERS):
        raise ValueError(f"A painting has at most {LAYERS} layers.")
    if sum(len(content) for _, content in data.files) > LIMITS.upload_bytes:
        raise ValueError(f"A painting has at most {LIMITS.upload_bytes / 1e6:.0f} MB.")
    with _lock:
        while len(_storage) >= PAINTINGS:
            _storage.popitem(last=False)
        return gr.ImageEditor.accept_blobs(self, data)


accept_blobs._is_server_fn = True  # type: ignore[attr-defined]  # how Gradio knows what the browser may call
_BrushEditor = extended(
    gr.ImageEditor,
    accept_blobs=accept_blobs,
    blob_storage=property(lambda self: _storage, lambda self, value: None),  # one for all instances, or none is bounded
)
