"""From options to a running page: the model, a private temporary folder, and closed doors."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from app.limits import LIMITS, workers

HERE = Path(__file__).parent


def private_folder() -> Path:
    """A temporary folder of this process for everything that is written; Gradio reads its place when it is imported."""
    folder = Path(tempfile.mkdtemp(prefix="textsam-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "cache")
    return folder


def start(
    folder: Path, model: dict[str, Any], *, host: str | None = None, port: int | None = None, **options: Any
) -> Any:
    """Load a model and serve the page.

    Args:
        folder: from `private_folder`, before anything imported Gradio.
        model: arguments of `textsam.load`.
        host, port: None: Gradio's, which its environment variables may change.
        options: of `gradio.Blocks.launch`.
    Returns:
        the page, running.
    """
    import textsam
    from app.asking import warm_up
    from app.page import THEME, build
    from app.session import SessionStore

    sam = textsam.load(**model)
    count, threads = workers(sam)
    torch.set_num_threads(threads)
    warm_up(sam)
    Image.MAX_IMAGE_PIXELS = LIMITS.photo_pixels  # also where Gradio opens a picture itself
    store = SessionStore(folder / "sessions")
    store.sweep_regularly()
    page = build(sam, store)
    page.queue(max_size=LIMITS.queue, default_concurrency_limit=count, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        theme=THEME,
        css_paths=[HERE / "style.css"],
        max_file_size=LIMITS.upload_bytes,
        max_threads=16,
        state_session_capacity=1024,
        allowed_paths=[],
        mcp_server=True,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        **options,
    )
    return page
