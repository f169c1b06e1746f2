"""What the commands of this folder share: how they end, and options that are wrong before anything is computed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from textsam.commands.run import one_sentence


def run(main: Callable[[], object]) -> int:
    """Exit code 0: all went well; 1: an error, told in one sentence on stderr; 130: interrupted by Ctrl-C.

    argparse itself leaves with 2 where an option is wrong. What only a mistake in the program raises (KeyError,
    TypeError, RuntimeError ...) keeps its traceback.
    """
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        print(f"train: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        return 130
    return 0


def _sentence(error: Exception) -> str:
    """An error in words; of one in a process that loads data, what is behind its traceback: the last line."""
    _, behind, traceback = str(error).partition("Original Traceback")
    return traceback.strip().splitlines()[-1].partition(": ")[2] if behind else one_sentence(error)


def file(text: str) -> Path:
    """An option that names a file which is read."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected a file, but {text} is {'a folder' if path.is_dir() else 'missing'}")
    return path


def folder(text: str) -> Path:
    """An option that names a folder which is read."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, but {text} is {'a file' if path.exists() else 'missing'}")
    return path


def new_file(text: str) -> Path:
    """An option that names a file to write; its folder is made, so that hours later it can be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file to write, but {text} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path.parent} cannot be made: {error.strerror}") from error
    return path


def new_folder(text: str) -> Path:
    """An option that names a folder to write into."""
    path = Path(text)
    if there := next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None):
        raise argparse.ArgumentTypeError(f"expected a folder to write into, but {there} is a file")
    return path


def at_least(least: int) -> Callable[[str], int]:
    """An option that is a whole number."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
        return value

    return number


def share(text: str) -> float:
    """An option that is a share."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text}")
    return value


def above_zero(text: str) -> float:
    """An option that is a time, a size or a rate."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value
