"""The entry of a Hugging Face Space, whose root is this folder: makes it importable as `app` and opens the page."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

spec = importlib.util.spec_from_file_location("app", HERE / "__init__.py", submodule_search_locations=[str(HERE)])
sys.modules["app"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["app"])

if __name__ == "__main__":
    import typer

    from app.__main__ import main

    typer.run(main)
