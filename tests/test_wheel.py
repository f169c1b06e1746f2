"""The wheel is whole: it carries the embedded model and works away from the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from textsam.native import build

ROOT = Path(__file__).parent.parent
MAX_MODEL_BYTES, MAX_SHARING_BYTES = 24_000_000, 12_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that belong to the project, so that nothing lands in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "textsam", source / "textsam", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = out.glob("textsam-*.whl")
    return built


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    embedded = "textsam/weights/textsam-tiny/"
    for name in ("config.json", "model.safetensors", "README.md"):
        assert embedded + name in sizes
    assert sum(size for name, size in sizes.items() if name.startswith(embedded)) <= MAX_MODEL_BYTES
    sharing = "textsam/weights/textsam-tiny-ocr/"
    for name in ("config.json", "model.safetensors", "extra_names.safetensors", "README.md"):
        assert sharing + name in sizes
    assert sum(size for name, size in sizes.items() if name.startswith(sharing)) <= MAX_SHARING_BYTES
    assert "textsam/py.typed" in sizes
    python = {name for name in sizes if name.endswith(".py")}
    assert python == {str(path.relative_to(ROOT)) for path in (ROOT / "textsam").rglob("*.py")}
    assert {"textsam/native/" + name for name in (*build.SOURCES, *build.HEADERS)} <= sizes.keys()
    assert not [name for name in sizes if not name.startswith(("textsam/", "textsam-"))]


def test_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:  # what `pip install --no-deps --target` does with a pure wheel
        archive.extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    where = "import textsam; print(textsam.__file__)"
    for command in (["-c", where], ["-m", "textsam", "info"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        # torchao, which transformers imports where it is installed, has PyTorch warn of its enumerations, and may
        # itself warn of the version of PyTorch.
        foreign = ("torch/utils/_pytree.py", "torchao")
        assert [line for line in done.stderr.splitlines() if not any(each in line for each in foreign)] == []
        if command[0] == "-c":
            assert Path(done.stdout.strip()).is_relative_to(site)
        else:
            assert "textsam-tiny" in done.stdout
