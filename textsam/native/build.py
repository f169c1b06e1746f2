"""Compiles the kernels for the machine that they run on: `python -m textsam.native.build TARGET TORCH`.

This file runs as a process of its own and imports no PyTorch, so that a build outlives the program that asked for it
and never holds it up. The library appears under its name only when it is whole. Of several builders of one library the
first works, the others wait for it; the lock is the operating system's and does not survive its holder.

torch.utils.cpp_extension is not used: it needs Ninja, and its lock file stays behind when a build is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = (
    "convolutions.cpp",
    "decoder.cpp",
    "encoder.cpp",
    "fine.cpp",
    "layers.cpp",
    "masks.cpp",
    "pyramid.cpp",
    "transformer.cpp",
)
HEADERS = ("kernels.h", "products.h", "rows.h")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
HOME = Path(__file__).parent


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++, else clang++; None when there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def failure_file(target: Path) -> Path:
    """Where the reason stays when a build fails, so that the next program does not try again."""
    return target.with_suffix(".failed")


def build(target: Path, torch_folder: Path) -> None:
    """Compile and link `target`, unless it is there by now.

    Args:
        target: the shared library. torch_folder: of the installed PyTorch, with include/ and lib/.
    Raises:
        OSError: the folder cannot be written.
        RuntimeError: there is no compiler, or it reports an error, with its first one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() or failure_file(target).exists():
            return
        with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as folder:
            objects = [str(Path(folder, source).with_suffix(".o")) for source in SOURCES]
            # Two at a time: half as long to wait, and few enough for a small machine's memory.
            with ThreadPoolExecutor(2) as pool:
                include = f"-I{torch_folder / 'include'}"
                works = [
                    pool.submit(_run, *FLAGS, include, "-c", str(HOME / source), "-o", compiled)
                    for source, compiled in zip(SOURCES, objects, strict=True)
                ]
                try:
                    for work in works:
                        work.result()
                except RuntimeError:
                    pool.shutdown(cancel_futures=True)
                    raise
            # Without -fopenmp here: threads are those of the OpenMP that PyTorch brings, not of a second one.
            library = str(Path(folder, target.name))
            _run("-shared", *objects, "-o", library, f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10")
            os.replace(library, target)


def _run(*arguments: str) -> None:
    program = compiler()
    if program is None:
        raise RuntimeError("there is no C++ compiler")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise RuntimeError(f"{program} says: {errors[0] if errors else f'status {done.returncode}'}")


def main() -> None:
    """Build, or leave the reason why not; behind the program that asked, which goes on computing."""
    os.nice(10)
    target = Path(sys.argv[1])
    try:
        build(target, Path(sys.argv[2]))
    except (OSError, RuntimeError) as error:
        failure_file(target).write_text(str(error), "utf-8")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
