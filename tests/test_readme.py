"""The README is true: its Python and its commands run, and it names every command that there is."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image, ImageDraw, ImageFont
from typer.testing import CliRunner

from textsam.commands.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")

# Downloads, runs for minutes, or installs: named in the README, not run here.
NOT_RUN = (
    "facebook/",
    "ViT-B-32",
    "textsam bench",
    "textsam evaluate",
    "textsam demo",
    "textsam export",
    "textsam video",
    "--engine ray",
    "<",
    "hf-hub:",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def console_commands() -> list[str]:
    text = "".join(blocks("console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in text.splitlines() if line.startswith("$ ")]
    return [line.split("  #")[0].strip() for line in lines]


COMMANDS = [line for line in console_commands() if line.startswith("textsam ")]
RUNNABLE = [line for line in COMMANDS if not any(part in line for part in NOT_RUN)]
PYTHON = [block for block in blocks("python") if not any(part in block for part in NOT_RUN)]


@pytest.fixture
def photos(in_tmp: Path, cat_photo: np.ndarray) -> Path:
    """The files that the README's examples name."""
    (in_tmp / "photos").mkdir()
    (in_tmp / "classes.txt").write_text("cat = cat | kitten\ndog @ 0.5\n!zebra\n")
    for path in ("cat.jpg", "photos/one.jpg", "photos/two.jpg"):
        Image.fromarray(cat_photo).save(in_tmp / path)
    (in_tmp / "frames").mkdir()
    frame = Image.fromarray(cat_photo)
    ImageDraw.Draw(frame).text((40, 200), "WRITTEN TEXT", "white", ImageFont.load_default(40), stroke_width=1)
    for path in ("frame.jpg", "frames/one.jpg"):
        frame.save(in_tmp / path)
    return in_tmp


def test_there_is_something_to_run() -> None:
    assert len(RUNNABLE) >= 2
    assert len(PYTHON) >= 1


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[0][:40])
def test_python(block: str, photos: Path) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", RUNNABLE)
def test_console(command: str, photos: Path) -> None:
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output


def commands() -> dict[str, typer.core.TyperCommand]:
    return typer.main.get_command(app).commands


def test_every_command_is_named_and_no_other() -> None:
    named = {shlex.split(line)[1] for line in COMMANDS}
    assert named == {*commands(), "--help"} or named == set(commands())


@pytest.mark.parametrize("command", COMMANDS)
def test_options_exist(command: str) -> None:
    words = shlex.split(command)
    if words[1] == "--help":
        return
    known = {option for parameter in commands()[words[1]].params for option in parameter.opts} | {"--help"}
    given = {word.split("=")[0] for word in words[2:] if word.startswith("-") and not re.match(r"-\d", word)}
    assert given <= known


def test_options_in_the_text_exist() -> None:
    known = {option for command in commands().values() for parameter in command.params for option in parameter.opts}
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(--[a-z0-9-]+)", text)) <= known | {"--help", "--version"}


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"\bmake ([a-z]+)", "\n".join([*console_commands(), *re.findall(r"`([^`]*)`", README)]))
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_extras_exist() -> None:
    declared = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = re.findall(r"(?:textsam|\.)\[([a-z]+)\]", README)
    assert named
    assert set(named) <= set(re.findall(r"^([a-z]+) = \[", declared, re.MULTILINE))


def test_links_to_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#:\"]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("name", commands())
def test_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
