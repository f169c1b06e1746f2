"""Fixtures shared by the tests. None of them downloads anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from hub_server import HubServer

# Results must not depend on when a build ends: PyTorch's way, unless a test asks for the kernels (`way`).
os.environ["TEXTSAM_NATIVE"] = "0"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tests run in two processes already; more threads only make them fight for the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would reach for the Hub fails at once instead of hanging, wherever it runs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def compiled():
    """The kernels, built from the sources if need be."""
    import torch

    from textsam.native import build, library
    from textsam.native.kernels import Kernels

    reason = library.unsuited()
    if reason is not None:
        pytest.skip(f"no compiled kernels: {reason}")
    build.build(library.library_path(), Path(torch.__file__).parent)
    return Kernels(library.library_path())


@pytest.fixture(params=["torch", "native"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs twice: PyTorch alone, and with the compiled kernels."""
    from textsam.native.library import only

    with only(request.getfixturevalue("compiled") if request.param == "native" else None):
        yield request.param


@pytest.fixture(scope="session")
def cat_photo() -> np.ndarray:
    """(300, 451, 3) uint8 RGB: scikit-image's cat, part of its package."""
    from skimage import data

    return data.chelsea()


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in an empty folder, so that nothing of the source tree is found by accident."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of the embedded model's structure and of random weights, which knows five words."""
    import torch
    from miniatures import CLIP_DIM, mobile_miniature

    from textsam.language.small_clip import SmallCropEncoder, SmallTextEncoder
    from textsam.language.vocabulary import Vocabulary

    folder = tmp_path_factory.mktemp("tiny")
    model = mobile_miniature()
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 100  # masks so sharp that text prompting takes them for stable
    model.save_pretrained(folder)
    torch.manual_seed(0)
    words = Vocabulary(["cat", "dog", "zebra", "person", "cup"])
    SmallTextEncoder(words, num_buckets=64, width=16, mlp_dim=16, embed_dim=CLIP_DIM).save_pretrained(
        folder / "text_encoder"
    )
    SmallCropEncoder(embed_dim=CLIP_DIM).save_pretrained(folder / "crop_encoder")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub; the client of this process talks to it and caches in an empty folder."""
    from hub_server import HubServer
    from huggingface_hub import constants

    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page runs in, and its temporary folder."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def page_url(page_folder: Path) -> Iterator[str]:
    """The address of the page, with the embedded model; one for all tests of a process, as it takes long to start."""
    from app_server import running_page

    with running_page(page_folder) as address:
        yield address
