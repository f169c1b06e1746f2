"""The page as people meet it: a real Chromium, headless, at a real server with the embedded model."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
CAT = ROOT / "app" / "pictures" / "chelsea.jpg"
CAT_SIZE = (451, 300)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 60_000  # for what the model has to answer on a machine that has much else to do

if CHROMIUM is None and os.environ.get("CI") != "true":
    pytest.skip("there is no Chromium on this machine: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "these tests need a Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        # Root may not use Chromium's sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def alike(shown: Sequence[str], wanted: Sequence[str]) -> bool:
    """The same texts, but for numbers that differ a little."""
    texts = [re.sub(r"\d+", "#", " | ".join(entries)) for entries in (shown, wanted)]
    numbers = [[int(number) for number in re.findall(r"\d+", " ".join(entries))] for entries in (shown, wanted)]
    return texts[0] == texts[1] and np.allclose(*numbers, atol=3)


class Visitor:
    """One tab of the page, and what a person reads and does there."""

    def __init__(self, browser, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self._note(request.url, url))
        self.tab.goto(url)
        self.tab.wait_for_selector("#photo input[type=file]", state="attached")

    def _note(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.strangers.append(address)

    def open(self, path: Path = CAT) -> Visitor:
        shown = "document.querySelector('#status')?.innerText.includes(' px · 0 masks')"
        for patience in (PATIENCE_MS / 3, PATIENCE_MS):  # the page may have come before its script was ready
            self.tab.set_input_files("#photo input[type=file]", path)
            try:
                self.tab.wait_for_function(shown, timeout=patience)
                break
            except Exception:
                if patience == PATIENCE_MS:
                    raise
        return self

    def find(self, words: str, count: int) -> None:
        self.tab.fill("#words textarea", words)
        self.tab.press("#words textarea", "Enter")
        self.wait_masks(count)

    def status(self, text: str) -> None:
        self.tab.wait_for_function("text => document.querySelector('#status')?.innerText.includes(text)", arg=text)

    def wait_masks(self, count: int) -> None:
        self.status(f" {count} mask")

    def wait_prompts(self, *texts: str) -> None:
        """Until the list shows these; numbers may be off by what a screen pixel covers."""
        late = time.monotonic() + PATIENCE_MS / 1000
        while not alike(shown := self.prompts(), texts):
            assert time.monotonic() < late, f"the list shows {shown}, not {texts}"
            self.tab.wait_for_timeout(50)

    def prompts(self) -> list[str]:
        """The texts of the list of prompts."""
        read = "[...document.querySelectorAll('#prompts .chip')].map(chip => chip.innerText.split('\\n')[0])"
        return [text.strip(" ×") for text in self.tab.evaluate(read)]

    def masks(self) -> list[list[str]]:
        """Name, confidence and area of each row."""
        return [row.inner_text().split("\n") for row in self.tab.locator("#masks .row").all()]

    def tool(self, name: str) -> None:
        self.tab.locator("#tool label", has_text=name).click()

    def click(self, x: float, y: float) -> None:
        """At a place of the photo, px."""
        self.tab.evaluate("window.scrollTo(0, 0)")
        self.tab.wait_for_function("document.querySelector('#picture img')?.complete")
        left, top, scale = self.frame()
        self.tab.mouse.click(left + x * scale, top + y * scale)

    def frame(self) -> tuple[float, float, float]:
        """Where the photo is on the screen, and screen pixels for each of its own: it is centred in its box."""
        box = self.tab.locator("#picture img").bounding_box()
        scale = min(box["width"] / CAT_SIZE[0], box["height"] / CAT_SIZE[1])
        left = box["x"] + (box["width"] - CAT_SIZE[0] * scale) / 2
        return left, box["y"] + (box["height"] - CAT_SIZE[1] * scale) / 2, scale

    def picture(self) -> np.ndarray:
        """What is shown, in the size of the photo: (H, W, 3) int."""
        address = self.tab.locator("#picture img").get_attribute("src")
        body = self.context.request.get(address).body()
        return np.asarray(Image.open(BytesIO(body)).convert("RGB").resize(CAT_SIZE)).astype(int)

    def download(self, button: str) -> tuple[str, bytes]:
        with self.tab.expect_download() as waiting:
            self.tab.click(button)
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def toast(self) -> str:
        self.tab.wait_for_selector(".toast-body")
        return self.tab.locator(".toast-body").last.inner_text()

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visitor(browser, page_url: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, page_url)
    yield visitor
    visitor.close()
    assert visitor.errors == []
    assert visitor.strangers == []  # a page that works offline asks nobody else


def test_a_question_in_the_middle_of_an_answer_is_asked_after_it(visitor: Visitor) -> None:
    visitor.open()
    for words in ("dog", "cup", "cat"):  # faster than the model answers
        visitor.tab.fill("#words textarea", words)
        visitor.tab.press("#words textarea", "Enter")
    visitor.wait_prompts("cat")
    visitor.wait_masks(1)
    assert visitor.tab.input_value("#words textarea") == "cat"


def test_words_threshold_and_highlight(visitor: Visitor) -> None:
    visitor.open()
    before = visitor.picture()
    visitor.find("cat", 1)
    ((name, confidence, area),) = visitor.masks()
    assert name == "cat"
    assert float(confidence) > 0.6
    assert 50 < float(area.removesuffix(" %")) < 90
    outlined = visitor.picture()
    assert abs(outlined[150, 200] - before[150, 200]).max() > 20  # tinted inside
    assert abs(outlined[280, 440] - before[280, 440]).max() < 20  # as it was outside

    visitor.tab.fill("#threshold input[type=number]", "0.99")
    visitor.tab.press("#threshold input[type=number]", "Enter")
    visitor.wait_masks(0)
    visitor.tab.fill("#threshold input[type=number]", "0.4")
    visitor.tab.press("#threshold input[type=number]", "Enter")
    visitor.wait_masks(1)

    visitor.tab.click("#masks .row")
    visitor.tab.wait_for_selector("#masks .mask.chosen")
    assert abs(visitor.picture()[150, 200] - outlined[150, 200]).max() > 8  # deeper


def test_threshold_is_typed_key_by_key(visitor: Visitor) -> None:
    visitor.open()
    visitor.find("cat", 1)
    field = visitor.tab.locator("#threshold input[type=number]")
    field.click()
    field.press("End")
    for key in [*["Backspace"] * 4, *"0.95"]:
        field.press(key)
        visitor.tab.wait_for_timeout(250)  # the page answers in between
    visitor.wait_masks(0)
    assert field.input_value() == "0.95"
    assert visitor.tab.locator(".toast-body").count() == 0


def test_quick_removals_and_undo_all_count(visitor: Visitor) -> None:
    visitor.open()
    visitor.tab.click("#everything")
    visitor.wait_prompts("everything")
    count = len(visitor.masks())
    assert count > 3
    click = "document.querySelectorAll('%s').forEach((button, i) => i < 3 && setTimeout(() => button.click(), 20 * i))"
    visitor.tab.evaluate(click % "#masks .remove")
    visitor.wait_masks(count - 3)
    visitor.tab.evaluate("for (let i = 0; i < 3; i++) document.querySelector('#undo').click()")
    visitor.wait_masks(count)


def test_fullscreen_hides_the_page(visitor: Visitor) -> None:
    visitor.open()
    visitor.tab.locator("#picture button[aria-label=Fullscreen], #picture button[title=Fullscreen]").first.click()
    visitor.tab.wait_for_selector("#picture.fullscreen")
    assert "rgba" not in visitor.tab.evaluate("getComputedStyle(document.querySelector('#picture')).backgroundColor")
    assert visitor.tab.locator("#picture img").bounding_box()["y"] == 0


def test_click_candidates_undo_and_removal(visitor: Visitor) -> None:
    visitor.open()
    visitor.click(230, 150)
    visitor.wait_prompts("+ 230, 150")
    thumbnails = visitor.tab.locator("#candidates .thumbnail-item")
    thumbnails.nth(1).wait_for()
    first = visitor.masks()
    thumbnails.nth(1).click()
    visitor.tab.wait_for_function(
        "area => document.querySelector('#masks .row').innerText.split('\\n')[2] !== area", arg=first[0][2]
    )
    second = visitor.masks()
    assert float(second[0][1]) <= float(first[0][1])  # the best was taken at first

    visitor.tool("Click −")
    visitor.click(20, 20)
    visitor.wait_prompts("+ 230, 150", "− 20, 20")
    assert visitor.tab.locator("#candidates .thumbnail-item").count() == 0  # two clicks are not ambiguous
    red = visitor.picture()[20, 20]
    assert red[0] > 150 > red[1]
    visitor.tab.locator("#prompts .chip.negative button").click()
    visitor.wait_prompts("+ 230, 150")
    visitor.tab.click("#undo")
    visitor.wait_prompts("+ 230, 150", "− 20, 20")
    visitor.tab.click("#clear")
    visitor.wait_prompts()
    visitor.wait_masks(0)


def test_words_box_and_brush_join(visitor: Visitor) -> None:
    visitor.open()
    visitor.find("cat", 1)
    visitor.tool("Box")
    visitor.click(100, 20)
    visitor.wait_prompts("cat", "box: click the opposite corner")
    visitor.click(330, 260)
    visitor.wait_prompts("cat", "box 230 × 240")
    names = [row[0] for row in visitor.masks()]
    assert set(names) == {"cat"}

    visitor.tool("Brush")
    canvas = visitor.tab.locator("#editor canvas").last
    canvas.wait_for()
    visitor.tab.wait_for_timeout(1500)  # the editor fits its canvas to the photo, and tells nobody when it is done
    box = canvas.bounding_box()
    visitor.tab.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.45)
    visitor.tab.mouse.down()
    for step in range(8):
        visitor.tab.mouse.move(box["x"] + box["width"] * (0.4 + 0.03 * step), box["y"] + box["height"] * 0.5)
    visitor.tab.mouse.up()
    visitor.tab.wait_for_timeout(300)
    visitor.tab.click("#painted")
    visitor.wait_prompts("cat", "box 230 × 240", "brush")
    visitor.tab.wait_for_selector("#picture img")
    yellow = visitor.picture()
    assert ((yellow[..., 0] > 200) & (yellow[..., 1] > 160) & (yellow[..., 2] < 90)).any()  # box and brush are drawn

    visitor.tool("Brush")
    canvas.wait_for()
    with visitor.tab.expect_file_chooser() as choosing:
        visitor.tab.click("#another")
    choosing.value.set_files(ROOT / "app" / "pictures" / "coffee.jpg")
    visitor.status("600 × 400 px")
    visitor.tab.wait_for_selector("#picture img")  # not the editor, which holds the photo before
    assert visitor.tab.locator("#tool label.selected").inner_text().strip() == "Click +"


def test_negative_words_and_unknown_words(visitor: Visitor) -> None:
    visitor.open()
    visitor.find("cat", 1)
    visitor.tab.fill("#negative textarea, #negative input", "car")
    visitor.tab.press("#negative textarea, #negative input", "Enter")
    visitor.wait_prompts("cat", "car")
    visitor.wait_masks(1)
    visitor.tab.fill("#words textarea", "cat, collar")
    visitor.tab.press("#words textarea", "Enter")
    assert "does not know “collar”" in visitor.toast()
    visitor.wait_masks(1)
    assert visitor.tab.input_value("#words textarea") == "cat, collar"  # to be mended, not typed anew
    visitor.tab.fill("#words textarea", "<img src=x onerror=document.title='hacked'>")
    visitor.tab.press("#words textarea", "Enter")
    visitor.tab.locator(".toast-body", has_text="<img src=x").wait_for()
    assert visitor.tab.title() == "TextSAM"  # what somebody typed stays text


def test_downloads_and_collection(visitor: Visitor) -> None:
    visitor.open()
    visitor.find("cat", 1)
    visitor.tab.click("#downloads button.label-wrap")
    files = {}
    for form in ("Overlay", "Cut-out", "Label map", "COCO", "YOLO"):
        visitor.tab.locator("#form label", has_text=form).click()
        name, content = visitor.download("#download")
        files[name] = content
    assert set(files) == {
        f"chelsea-{end}" for end in ("overlay.png", "cutout.png", "labels.png", "coco.json", "yolo.zip")
    }
    assert Image.open(BytesIO(files["chelsea-overlay.png"])).size == CAT_SIZE
    assert Image.open(BytesIO(files["chelsea-cutout.png"])).mode == "RGBA"
    labels = np.asarray(Image.open(BytesIO(files["chelsea-labels.png"])))
    (annotation,) = json.loads(files["chelsea-coco.json"])["annotations"]
    assert int((labels == 1).sum()) == annotation["area"]
    assert zipfile.ZipFile(BytesIO(files["chelsea-yolo.zip"])).testzip() is None

    visitor.tab.click("#collecting button.label-wrap")
    visitor.tab.click("#collect")
    visitor.tab.wait_for_function("document.querySelector('#collected').innerText.includes('1 photo, 1 mask: cat')")
    name, content = visitor.download("#pack")
    assert name == "collection.zip"
    assert zipfile.ZipFile(BytesIO(content)).namelist() == ["train.json", "images/0001.png"]


def test_everything(visitor: Visitor) -> None:
    visitor.open()
    visitor.tab.click("#everything")
    visitor.wait_prompts("everything")
    assert [row[0] for row in visitor.masks()] == ["object"] * len(visitor.masks())
    assert visitor.masks()


def test_broken_photo_gives_a_sentence(visitor: Visitor, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(CAT.read_bytes()[:5000])
    visitor.tab.set_input_files("#photo input[type=file]", broken)
    said = visitor.toast()
    assert "truncated or damaged" in said
    assert "Traceback" not in said
    visitor.open()  # and the page goes on


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_dark(browser, page_url: str, scheme: str) -> None:
    visitor = Visitor(browser, page_url, 390, 844, scheme)
    visitor.tab.get_by_role("button", name="Try a photo: cat").click()
    visitor.wait_masks(1)
    assert visitor.masks()[0][0] == "cat"
    assert visitor.tab.evaluate("document.documentElement.scrollWidth") <= 390
    picture = visitor.tab.locator("#picture img").bounding_box()
    controls = visitor.tab.locator("#words").bounding_box()
    assert picture["width"] > 330
    assert controls["y"] > picture["y"] + picture["height"] * 0.9  # one below the other
    background = visitor.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (brightness < 80) == (scheme == "dark")
    assert visitor.errors == []
    visitor.close()
