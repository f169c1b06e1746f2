"""The page for programs: `gradio_client`, MCP, two visitors at once, and requests of the hostile kind."""

from __future__ import annotations

import ast
import base64
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from app_server import running_page
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import textsam
from app.asking import everything_options
from app.limits import LIMITS
from app.load_test import Person, Visit
from app.messages import ADDRESS
from textsam.files.rle import decode_mask
from textsam.predictor import TextSam

ROOT = Path(__file__).parent.parent
CAT = ROOT / "app" / "pictures" / "chelsea.jpg"


@pytest.fixture(scope="module")
def sam() -> TextSam:
    return textsam.load()


@pytest.fixture(scope="module")
def client(page_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("client")
    client = Client(page_url, verbose=False, analytics_enabled=False, download_files=folder)
    yield client
    client.close()


def size_of(path: str) -> tuple[int, int]:
    """Width and height of a picture."""
    with Image.open(path) as picture:
        return picture.size


def assert_masks(answer: dict[str, Any], expected: Any) -> None:
    """The same masks as those that the model gives here."""
    assert (answer["width"], answer["height"]) == (451, 300)
    assert len(answer["masks"]) == len(expected)
    for given, mask, confidence in zip(answer["masks"], expected.mask, expected.confidence, strict=True):
        assert (decode_mask(given["segmentation"]) == mask).all()
        assert given["confidence"] == pytest.approx(float(confidence), abs=1e-5)
        assert given["area"] == mask.sum()
        x1, y1, x2, y2 = map(int, given["box"])
        assert mask[y1:y2, x1:x2].sum() == mask.sum()


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ({"text": "cat"}, {"text": ["cat"]}),
        ({"text": "cat", "negative_text": "car", "threshold": 0.5},
         {"text": ["cat"], "negative_text": ["car"], "threshold": 0.5}),
        ({"points": [[230, 150, 1], [20, 20, 0]]}, {"points": [[230, 150], [20, 20]], "point_labels": [1, 0]}),
        ({"points": [[230, 150]], "multimask": True}, {"points": [[230, 150]], "multimask_output": True}),
        ({"text": "cat", "boxes": [[100, 20, 330, 260]]}, {"text": "cat", "boxes": [100, 20, 330, 260]}),
        ({"text": ["cat", "dog"]}, {"text": ["cat", "dog"]}),
    ],
)  # fmt: skip
def test_segment(client: Client, sam: TextSam, asked: dict[str, Any], same: dict[str, Any]) -> None:
    answer, picture = client.predict(image=handle_file(CAT), **asked, api_name="/segment")
    assert_masks(answer, sam.predict(CAT, **same))
    if "text" in asked:
        assert {mask["name"] for mask in answer["masks"]} == {"cat"}
    assert size_of(picture) == (451, 300)


def test_generate(client: Client, sam: TextSam) -> None:
    answer, picture = client.predict(image=handle_file(CAT), points_per_side=3, api_name="/generate")
    expected = sam.generate(CAT, **{**everything_options(sam), "points_per_side": 3})
    assert len(expected) > 0
    assert_masks(answer, expected)
    assert size_of(picture) == (451, 300)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "Expected text, points or boxes, got none"),
        ({"text": "flurb"}, "does not know 'flurb'"),
        ({"text": "cat", "points": [[999, 2]]}, "Expected points inside the image (x in 0..451"),
        ({"points": [[1, 2, 3, 4]]}, "Expected points as [x, y] or [x, y, label]"),
        ({"points": [["x", 2]]}, "Expected"),
        ({"points": [[230, 150, 0.5]]}, "Expected point_labels of 1 (foreground), 0 (background)"),
        ({"points": [[230, 150, None]]}, "Expected point_labels as numbers"),
        ({"points": [[5, 5]] * 100}, "at most 32 points"),
        ({"boxes": [[5, 5, 1, 1]]}, "swap the corners"),
        ({"text": "cat, dog", "points": [[5, 5]]}, "one text says what the object is"),
        ({"text": "cat", "threshold": 0.5, "negative_text": "cat"}, "in both"),
        ({"text": ",".join(f"word{i}" for i in range(99))}, "At most 24 words"),
    ],
)
def test_wrong_requests_get_a_sentence(client: Client, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(AppError) as caught:
        client.predict(image=handle_file(CAT), **asked, api_name="/segment")
    assert told in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_points_per_side_of_nothing_gets_a_sentence(client: Client) -> None:
    with pytest.raises(AppError, match="Expected points_per_side from 1 to 32, got None"):
        client.predict(image=handle_file(CAT), points_per_side=None, api_name="/generate")


def data_url(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def test_photo_as_data_url(client: Client, sam: TextSam) -> None:
    photo = {"url": data_url(CAT.read_bytes()), "meta": {"_type": "gradio.FileData"}}
    answer, _ = client.predict(image=photo, text="cat", api_name="/segment")
    assert_masks(answer, sam.predict(CAT, text="cat"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("data:image/jpeg,x", "Expected a data: URL with base64"),
        ("http://127.0.0.1:9/cat.jpg", ADDRESS),
        (str(CAT), ADDRESS),  # a file of the server's
        ("data:image/jpeg;base64," + "A" * 27_000_000, "has 20.2 MB, at most 20 MB"),
    ],
    ids=["no base64", "address", "path", "large"],
)
def test_other_urls_are_refused(client: Client, url: str, told: str) -> None:
    photo = {"url": url, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match=re.escape(told)):
        client.predict(image=photo, text="cat", api_name="/segment")


def test_endpoints_are_two_and_typed(client: Client) -> None:
    described = client.view_api(return_format="dict", print_info=False)
    assert set(described["named_endpoints"]) == {"/segment", "/generate"}
    assert described["unnamed_endpoints"] == {}
    parameters = {each["parameter_name"]: each for each in described["named_endpoints"]["/segment"]["parameters"]}
    assert parameters["points"]["python_type"]["type"].startswith("list[list[float]]")
    assert [name for name, each in parameters.items() if not each["parameter_has_default"]] == ["image"]


def test_mcp_lists_and_calls_the_tools(page_url: str, page_folder: Path, sam: TextSam) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    photos = [CAT.read_bytes(), CAT.read_bytes() + bytes(6_000_000), CAT.read_bytes() + bytes(20_000_000)]

    async def visit() -> tuple[Any, Any]:
        async with (
            streamable_http_client(f"{page_url}/gradio_api/mcp/") as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            listed = await session.list_tools()
            asked = [{"image": data_url(photo), "text": "cat"} for photo in photos]
            return listed.tools, [await session.call_tool("segment", each) for each in asked]

    tools, (result, large, too_large) = anyio.run(visit)
    assert not large.isError
    assert too_large.isError
    assert too_large.content[0].text == "This file has 20.0 MB, at most 20 MB are taken."
    # It was not even written.
    assert max(path.stat().st_size for path in page_folder.rglob("file.*")) < 20_000_000
    assert [tool.name for tool in tools] == ["segment", "generate"]
    segment = tools[0]
    assert "Segment objects in a photo by words" in segment.description
    properties = segment.inputSchema["properties"]
    assert properties["points"]["items"]["items"]["type"] == "number"
    assert "[x, y, label]" in properties["points"]["description"]
    assert not result.isError
    # Gradio writes several outputs as one text, in Python's notation.
    answer, picture = ast.literal_eval(result.content[0].text)
    assert_masks(answer, sam.predict(CAT, text="cat"))
    assert httpx.get(picture["url"]).headers["content-type"] == "image/png"


def test_two_people_see_their_own_photo(page_url: str) -> None:
    visits = [Visit(page_url, number, seconds=0.1) for number in (1, 6)]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join()
    assert [visit.problems for visit in visits] == [[], []]
    assert all(visit.times["click"] for visit in visits)


def test_a_stranger_has_no_photo(page_url: str) -> None:
    """Clicks without a photo, and with the session of nobody, change nothing."""
    with Person(page_url) as person:
        shown = person.act("picture", "select", "Click +", about={"index": [5, 5], "value": None})
    assert shown["picture"] == {"__type__": "update"}


def png_bomb(side: int) -> bytes:
    """A few hundred bytes that declare `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


HOSTILE = [
    ("empty.png", b"", "empty"),
    ("cut.jpg", CAT.read_bytes()[:5000], "truncated or damaged"),
    ("text.png", b"<script>alert(1)</script>", "is not a picture"),
    ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "is not a picture"),
    ("bomb.png", png_bomb(12_000), "declares"),
    ("larger-bomb.png", png_bomb(60_000), "declares more pixels than are safe"),
]


@pytest.mark.parametrize(("name", "content", "told"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_hostile_files(client: Client, page_url: str, tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AppError) as caught:
        client.predict(image=handle_file(path), text="cat", api_name="/segment")
    assert told in str(caught.value)
    assert "textsam-app" not in str(caught.value)  # nothing of the server's folders
    with Person(page_url) as person:
        shown = person.act("photo", "input", person.upload(name, content), "", "")
    assert shown["photo"] is None
    assert shown["picture"] == {"__type__": "update"}


def test_too_large_an_upload_is_refused(page_url: str) -> None:
    answer = httpx.post(f"{page_url}/gradio_api/upload", files={"files": ("x.png", b"0" * (LIMITS.upload_bytes + 1))})
    assert answer.status_code == 413


@pytest.mark.parametrize("declared", [True, False])
def test_too_long_a_request_is_refused(page_url: str, declared: bool) -> None:
    content = b"0" * (LIMITS.request_bytes + 1)
    answer = httpx.post(f"{page_url}/gradio_api/queue/join", content=content if declared else iter([content]))
    assert answer.status_code == 413
    assert "at most 28 MB" in answer.text


def test_no_links_are_written(page_url: str, page_folder: Path) -> None:
    with Person(page_url) as person:
        person.act("photo", "input", None, "", "")
        answer = httpx.get(f"{page_url}/gradio_api/deep_link", params={"session_hash": person.session})
    assert answer.status_code == 403
    assert not list(page_folder.rglob("deep_links"))


def test_doors_are_closed(page_url: str, page_folder: Path) -> None:
    secret = page_folder / "secret.txt"
    secret.write_text("nobody reads this")
    (sessions,) = page_folder.glob("textsam-app-*/sessions")
    taken = next(sessions.iterdir(), secret)
    for path in (secret, "/etc/passwd", "secret.txt", "../secret.txt", ROOT / "pyproject.toml", taken):
        for door in ("file", "file="):
            answer = httpx.get(f"{page_url}/gradio_api/{door}{'/' if door == 'file' else ''}{path}")
            assert answer.status_code in (403, 404), path
            assert "nobody" not in answer.text
    # A server's path in the place of an upload.
    stolen = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    with Person(page_url) as person, pytest.raises(RuntimeError, match="failed"):
        person.act("photo", "input", stolen, "", "")
    secret.unlink()


ADDRESSED = {"path": "http://127.0.0.1:9/cat.jpg", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("name", ["photo", "another", "words"])
def test_nothing_is_fetched_for_an_input(page_url: str, name: str) -> None:
    """Not even for a text box, whose input a program may shape as a file."""
    events = {"photo": "input", "another": "upload", "words": "submit"}
    inputs = [ADDRESSED, ""] if name == "words" else [ADDRESSED, "", ""]
    with Person(page_url) as person:
        person.act("photo", "input", None, "", "")  # the session's components are other instances from here on
        with pytest.raises(RuntimeError, match=re.escape(ADDRESS)):
            person.act(name, events[name], *inputs)


@pytest.mark.parametrize("endpoint", ["segment", "generate"])
def test_nothing_is_fetched_for_a_program(client: Client, page_url: str, endpoint: str) -> None:
    rest = {"text": "cat"} if endpoint == "segment" else {}
    with pytest.raises(AppError, match=re.escape(ADDRESS)):
        client.predict(image=ADDRESSED, **rest, api_name=f"/{endpoint}")


@pytest.mark.parametrize("door", ["file=", "file/"])
def test_nothing_is_fetched_for_a_browser(page_url: str, door: str) -> None:
    answer = httpx.get(f"{page_url}/gradio_api/{door}http://127.0.0.1:9/cat.jpg")
    assert (answer.status_code, answer.json()["detail"]) == (403, ADDRESS)


def test_terminated_page_leaves_nothing(tmp_path: Path) -> None:
    with running_page(tmp_path) as url:
        with Person(url) as person:
            person.act("photo", "input", person.upload("cat.jpg", CAT.read_bytes()), "", "")
        assert any(path.is_file() for path in tmp_path.rglob("*"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("port", "told"), [(None, "taken or not of this machine: choose another --port"), ("99999", "Invalid value")]
)
def test_port_that_cannot_be_had(page_url: str, tmp_path: Path, port: str | None, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "--port", port or page_url.rpartition(":")[2]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_everything_is_written_in_one_temporary_folder(page_url: str, page_folder: Path) -> None:
    assert [path.name[:12] for path in page_folder.iterdir()] == ["textsam-app-"]
    assert not list((ROOT / "app").glob("*.pyi"))
    assert not (ROOT / ".gradio").exists()


def test_photos_of_all_kinds_are_scaled_to_the_limit(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "wide.webp"
    Image.fromarray(np.full((1000, 4000, 3), 90, np.uint8)).save(path)
    answer, _ = client.predict(image=handle_file(path), points=[[1000, 200]], api_name="/segment")
    assert (answer["width"], answer["height"]) == (1600, 400)
