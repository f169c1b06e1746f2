"""Finds the compiled kernels, has them built when they are missing, and calls them.

`kernels()` answers at once: None while they are built, and wherever they cannot be; the callers then take their way
through PyTorch, which gives the same results. TEXTSAM_NATIVE=0 leaves them out, TEXTSAM_NATIVE=wait waits for them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from textsam.native.build import FLAGS, HEADERS, HOME, SOURCES, compiler, failure_file
from textsam.native.kernels import Kernels

_log = logging.getLogger(__name__)


class _Finder:
    """Where the search for the library stands.

    Attributes:
        kernels: once they are loaded. state: one sentence for people. settled: nothing will change any more.
    """

    def __init__(self) -> None:
        self.kernels: Kernels | None = None
        self.state = "not asked for yet"
        self.settled = False
        self._builder: subprocess.Popen[bytes] | None = None

    def look(self) -> Kernels | None:
        if not self.settled:
            self._look()
        return self.kernels

    def _look(self) -> None:
        wish = os.environ.get("TEXTSAM_NATIVE", "").lower()
        if self._builder is None and not self._begin(wish):
            return
        builder, target = self._builder, library_path()
        assert builder is not None  # noqa: S101 (for the type checker)
        if wish == "wait":
            builder.wait()
        if builder.poll() is not None:
            self._load(target) if target.exists() else self._fail(target, logging.WARNING)

    def _begin(self, wish: str) -> bool:
        """Load what is there, or start its build; whether there is a build to wait for."""
        reason = "TEXTSAM_NATIVE=0" if wish in ("0", "off", "false", "no") else unsuited()
        target = library_path()
        if reason is not None:
            self._settle(f"off: {reason}")
        elif target.exists():
            self._load(target)
        elif failure_file(target).exists():
            self._fail(target, logging.INFO)
        else:
            command = [sys.executable, str(HOME / "build.py"), str(target), str(Path(torch.__file__).parent)]
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._builder = subprocess.Popen(command, start_new_session=True, **streams)  # type: ignore[call-overload] # noqa: S603
                self.state = "being built; PyTorch alone computes until they are ready"
                return True
            except OSError as error:
                self._settle(f"off: they cannot be built in {target.parent} ({error.strerror})")
        return False

    def _load(self, target: Path) -> None:
        try:
            self.kernels = Kernels(target)
            self._settle(f"on, from {target}")
        except OSError as error:
            self._settle(f"off: {error}")

    def _fail(self, target: Path, level: int) -> None:
        marker = failure_file(target)
        reason = marker.read_text("utf-8") if marker.exists() else "the build was stopped"
        self._settle(f"off: {reason} (delete {marker} to try again)")
        _log.log(
            level, "The compiled kernels could not be built; PyTorch alone computes, correctly but slower: %s", reason
        )

    def _settle(self, state: str) -> None:
        self.state, self.settled = state, True


_finder = _Finder()


def kernels() -> Kernels | None:
    """The compiled kernels; None while they are built, where they cannot be, and where they are not wanted."""
    return _finder.look()


def state() -> str:
    """One sentence on whether they are in use, and why not."""
    _finder.look()
    return _finder.state


@contextmanager
def only(chosen: Kernels | None) -> Iterator[None]:
    """Inside, `kernels()` gives what is chosen here; None leaves everything to PyTorch. Not for several threads."""
    global _finder
    former, _finder = _finder, _Finder()
    _finder.kernels, _finder.settled, _finder.state = chosen, True, "chosen by the program"
    try:
        yield
    finally:
        _finder = former


def library_path() -> Path:
    """The library for these sources, this PyTorch, this CPU and this compiler: another of these is another file."""
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((HOME / name).read_bytes())
    for text in (*FLAGS, torch.__version__, _cpu(), str(compiler())):
        digest.update(text.encode() + b"\0")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "textsam" / "native" / f"kernels-{digest.hexdigest()[:16]}.so"


def unsuited() -> str | None:
    """Why they cannot be used on this machine at all; None when they can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"they are for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if compiler() is None and not library_path().exists():
        return "there is no C++ compiler (install g++)"
    return None


def _cpu() -> str:
    """What the compiler's -march=native looks at."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
