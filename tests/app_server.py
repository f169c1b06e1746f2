"""The page as a process of its own, as `make app` starts it, for tests that are its visitors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE = 400  # s, for a machine that has much else to do


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running_page(folder: Path) -> Iterator[str]:
    """Its address; everything that it writes is to be under `folder`."""
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "app", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, address, log)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _wait(server: subprocess.Popen, address: str, log) -> None:
    late = time.monotonic() + PATIENCE
    while time.monotonic() < late and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/config", timeout=PATIENCE):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"The page did not start:\n{log.read()}")
