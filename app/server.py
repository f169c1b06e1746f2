"""From options to a running page: the model, a private temporary folder, and closed doors."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from fastapi import Depends, HTTPException
from fastapi.middleware import Middleware
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from PIL import Image
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.limits import LIMITS, check_inline, workers
from app.messages import ADDRESS, NO_LINKS

HERE = Path(__file__).parent
TOO_LONG = f"A request has at most {LIMITS.request_bytes / 1e6:.0f} MB: send a smaller photo."


def private_folder() -> Path:
    """A temporary folder of this process for everything that is written; Gradio reads its place when it is imported."""
    folder = Path(tempfile.mkdtemp(prefix="textsam-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
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
    store = SessionStore(folder / "sessions", cache=folder / "cache")
    store.sweep_regularly()
    page = build(sam, store)
    _refuse_addresses(page)
    _bound_agents()
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
        app_kwargs={"dependencies": [Depends(_refuse)], "middleware": [Middleware(BoundedRequests)]},
        mcp_server=True,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        **options,
    )
    return page


def _refuse_addresses(page: Any) -> None:
    """No input takes an address in the place of a file: Gradio would fetch it, of whatever size.

    The page is changed and not its components: a session gets a new instance of a component with each update of it, and
    even a text box takes a file from who writes the request by hand.
    """
    from gradio import Error

    validate = page.validate_inputs

    def refuse(file: dict[str, Any]) -> None:
        if is_http_url_like(file["path"]):
            raise Error(ADDRESS, print_exception=False)

    def validate_inputs(function: Any, inputs: list[Any]) -> None:
        traverse(inputs, refuse, is_file_obj_with_meta)
        validate(function, inputs)

    page.validate_inputs = validate_inputs


def _refuse(connection: HTTPConnection) -> None:
    """For all routes: `file=https://…` is Gradio's way to have the server fetch something for a browser. `deep_link`
    writes a file that nobody removes."""
    if any(is_http_url_like(value) for value in connection.path_params.values()):
        raise HTTPException(403, ADDRESS)
    if connection.url.path.rstrip("/").endswith("/deep_link"):
        raise HTTPException(403, NO_LINKS)


def _bound_agents() -> None:
    """Agents may send as large photos as everybody else, and no larger ones: Gradio writes a data: URL to disk."""
    from gradio.mcp import GradioMCPServer

    manager, convert = GradioMCPServer.StreamableHTTPSessionManager, GradioMCPServer.convert_strings_to_filedata
    if "max_request_body_size" in signature(manager).parameters:  # newer versions of mcp stop at 4 MB by themselves
        whole = partial(manager, max_request_body_size=LIMITS.request_bytes)
        GradioMCPServer.StreamableHTTPSessionManager = staticmethod(whole)

    def bounded(self: Any, value: dict[str, Any], positions: list[Any]) -> Any:
        for each in value.values():
            if isinstance(each, str) and each.startswith("data:"):
                check_inline(each)
        return convert(self, value, positions)

    GradioMCPServer.convert_strings_to_filedata = bounded


class BoundedRequests:
    """No request is longer than `LIMITS.request_bytes`: most routes read theirs whole before they look at it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = LIMITS.request_bytes
        declared = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if declared.isdecimal() and int(declared) > left:
            await PlainTextResponse(TOO_LONG, 413)(scope, receive, send)
            return

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LONG)
            return message

        await self.app(scope, bounded, send)
