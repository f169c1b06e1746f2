"""`python -m app`."""

from __future__ import annotations

import shutil
import signal
from typing import Annotated

import typer

from app.server import private_folder, start
from textsam.commands.options import Adapter, Clip, Device, Model


def main(
    model: Model = None,
    clip: Clip = None,
    adapter: Adapter = None,
    device: Device = None,
    share: Annotated[bool, typer.Option("--share", help="Also a public address for three days, by Gradio.")] = False,
    host: Annotated[
        str | None, typer.Option("--host", help="0.0.0.0 for other machines. Default: this one only.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: the first free one from 7860.")
    ] = None,
) -> None:
    """Open the page: objects in a picture by words, clicks, boxes and brush."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, or the photos would outlive the server
    folder = private_folder()
    try:
        start(
            folder,
            {"name_or_path": model, "clip": clip, "adapter": adapter, "device": device},
            host=host, port=port, share=share, prevent_thread_lock=False,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        if text.startswith("Cannot find empty port"):  # Gradio's, which names its own arguments
            place = f"{host or '127.0.0.1'}:{port or 'from 7860 on'}"
            text = f"Cannot open the page at {place}, taken or not of this machine: choose another --port or --host."
        typer.echo(f"app: {text}", err=True)
        raise typer.Exit(2) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
