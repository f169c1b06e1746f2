"""The folder of the page is a Hugging Face Space as it lies there, and its README is true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from huggingface_hub import metadata_load
from packaging.requirements import Requirement
from PIL import Image

from app.__main__ import main

ROOT = Path(__file__).parent.parent
APP = ROOT / "app"
README = (APP / "README.md").read_text("utf-8")


def test_header_names_what_is_there() -> None:
    header = metadata_load(APP / "README.md")
    assert header["sdk"] == "gradio"
    assert (APP / header["app_file"]).is_file()
    (gradio,) = re.findall(r'"(gradio\[mcp\][^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert Requirement(gradio).specifier.contains(header["sdk_version"])
    lines = (APP / "requirements.txt").read_text("utf-8").splitlines()
    assert [Requirement(line).name for line in lines if not line.startswith("#")] == ["textsam"]


def test_folder_under_another_name_is_the_page(tmp_path: Path) -> None:
    space = shutil.copytree(APP, tmp_path / "user" / "my-space", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import space, app.page; print(app.page.FOLDER, *sorted(p.name for p in app.page.FOLDER.glob('*.pyi')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=space,
        env=os.environ | {"PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(space)  # these files, and none was written beside them


def test_readme_names_options_and_pictures_that_exist() -> None:
    command = typer.Typer()
    command.command()(main)
    known = {option for parameter in typer.main.get_command(command).params for option in parameter.opts}
    used = {line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()}
    given = {word for line in used if "-m app" in line for word in re.findall(r"(--[a-z-]+)", line)}
    assert given | set(re.findall(r"`(--[a-z-]+)", README)) <= known
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (APP / link).is_file()


@pytest.mark.parametrize("path", sorted((APP / "pictures").iterdir()), ids=lambda path: path.name)
def test_pictures_are_small(path: Path) -> None:
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        picture.verify()
