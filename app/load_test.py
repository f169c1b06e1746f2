"""`python -m app.load_test`: several people at once at a running page, each with a photo that nobody else has.

It speaks what a browser speaks (uploads, the queue, its stream of events), checks that every answer belongs to the
person's own photo, and prints how long things took and how the server's memory went.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

PICTURES = Path(__file__).parent / "pictures"
PATIENCE = 600  # s, for a machine that has much else to do


class Person:
    """One visitor of the page, without a browser.

    Args:
        url: of the page.
    """

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=PATIENCE)
        self.session = f"{random.getrandbits(48):x}"
        config = self.client.get("/config").raise_for_status().json()
        self.names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
        self.events = {
            (self.names.get(target), event): dependency
            for dependency in config["dependencies"]
            for target, event in dependency["targets"]
        }

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """A file, as an input of `act`."""
        answer = self.client.post("/gradio_api/upload", files={"files": (name, content)}).raise_for_status()
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def act(self, name: str, event: str, *inputs: Any, about: Any = None) -> dict[str, Any]:
        """An event of a component, and what the page shows afterwards, by the names of components.

        Raises:
            RuntimeError: the server failed.
        """
        dependency = self.events[name, event]
        request = {
            "data": [None, *inputs],  # the session's key stays at the server
            "event_data": about,
            "fn_index": dependency["id"],
            "session_hash": self.session,
        }
        posted = self.client.post("/gradio_api/queue/join", json=request).raise_for_status()
        output = self._wait(posted.json()["event_id"])
        return dict(zip((self.names.get(id) for id in dependency["outputs"]), output, strict=True))

    def _wait(self, event_id: str) -> list[Any]:
        where = {"session_hash": self.session}
        with self.client.stream("GET", "/gradio_api/queue/data", params=where) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("event_id") == event_id and message["msg"] == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"The server failed: {message['output'].get('error')}")
                    return message["output"]["data"]
        raise RuntimeError("The server went away.")

    def picture(self, shown: dict[str, Any]) -> Image.Image:
        """The picture that `act` led to."""
        return Image.open(BytesIO(self.client.get(shown["picture"]["url"]).raise_for_status().content)).convert("RGB")


def own_photo(number: int) -> tuple[Image.Image, tuple[int, int, int]]:
    """A cat of a size that nobody else's has, with a patch of a colour of its own in the corner."""
    cat = Image.open(PICTURES / "chelsea.jpg").resize((451 + 8 * number, 300))
    colour = (255 * (number & 1), 255 * (number >> 1 & 1), 255 * (number >> 2 & 1))
    cat.paste(colour, (cat.width - 40, 0, cat.width, 40))
    return cat, colour


class Visit(threading.Thread):
    """A person who finds, clicks, corrects and moves the threshold until the time is up, and checks what comes."""

    def __init__(self, url: str, number: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.person = Person(url)
        self.number = number
        self.seconds = seconds
        self.times: dict[str, list[float]] = {}
        self.problems: list[str] = []

    def run(self) -> None:
        try:
            with self.person:
                end = time.monotonic() + self.seconds
                while time.monotonic() < end:
                    self._round()
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the report
            self.problems.append(f"{type(error).__name__}: {error}")

    def _round(self) -> None:
        photo, colour = own_photo(self.number)
        buffer = BytesIO()
        photo.save(buffer, "PNG")
        rng = random.Random()
        file = self.person.upload("cat.png", buffer.getvalue())
        shown = self._timed("photo", "photo", "input", file, "", "")
        self._check(shown, photo, colour, "0 masks")
        shown = self._timed("words", "words", "submit", "cat", "")
        self._check(shown, photo, colour, "1 mask")
        for _ in range(3):
            index = [rng.randrange(200, 900), rng.randrange(200, 700)]
            shown = self._timed("click", "picture", "select", "Click +", about={"index": index, "value": None})
            self._check(shown, photo, colour, "mask")
        shown = self._timed("threshold", "threshold", "input", round(rng.uniform(0.3, 0.6), 2))
        self._check(shown, photo, colour, "mask")
        self._check(self._timed("clear", "clear", "click"), photo, colour, "0 masks")

    def _timed(self, what: str, name: str, event: str, *inputs: Any, about: Any = None) -> dict[str, Any]:
        start = time.monotonic()
        shown = self.person.act(name, event, *inputs, about=about)
        self.times.setdefault(what, []).append(time.monotonic() - start)
        return shown

    def _check(self, shown: dict[str, Any], photo: Image.Image, colour: tuple[int, int, int], status: str) -> None:
        if f"{photo.width} × {photo.height} px" not in shown["status"] or status not in shown["status"]:
            self.problems.append(f"expected {photo.width} × {photo.height} px and {status!r}, got {shown['status']!r}")
        picture = self.person.picture(shown)
        corner = np.asarray(picture)[5, -5].astype(int)
        if abs(corner - colour).max() > 150:  # masks tint it, another person's patch is further away
            self.problems.append(f"person {self.number}: the patch is {corner.tolist()}, not {colour}")


def memory_mb(pid: int) -> float:
    """Resident memory of a process, MB (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(
    people: Annotated[int, typer.Option(help="At once; each has a photo of a size of its own.")] = 8,
    seconds: Annotated[float, typer.Option(help="How long they stay.")] = 60,
    port: Annotated[int, typer.Option(help="That the page is started on.")] = 7868,
) -> None:
    """Start the page, let people use it, and report."""
    console = Console()
    command = [sys.executable, "-m", "app", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:  # noqa: S603 - no input of anybody's
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url)
            settled = _visit(url, 2, 5)  # what is allocated once
            samples = [memory_mb(server.pid)]
            visits = [Visit(url, number, seconds) for number in range(people)]
            for visit in visits:
                visit.start()
            while any(visit.is_alive() for visit in visits):
                time.sleep(1)
                samples.append(memory_mb(server.pid))
        finally:
            server.terminate()
    table = Table("what", "times", "median, s", "95 %, s", "longest, s")
    for what in visits[0].times:
        times = sorted(value for visit in visits for value in visit.times.get(what, []))
        row = (statistics.median(times), times[int(0.95 * (len(times) - 1))], times[-1])
        table.add_row(what, str(len(times)), *(f"{value:.2f}" for value in row))
    console.print(table)
    half = len(samples) // 2
    console.print(
        f"{people} people for {seconds:.0f} s on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}. "
        f"Memory, MB: {samples[0]:.0f} before, at most {max(samples[:half]):.0f} in the first half, "
        f"{max(samples[half:]):.0f} in the second."
    )
    problems = settled + [problem for visit in visits for problem in visit.problems]
    console.print(f"Errors and mix-ups: {len(problems)}", *problems[:10], sep="\n")
    raise typer.Exit(1 if problems else 0)


def _visit(url: str, count: int, seconds: float) -> list[str]:
    visits = [Visit(url, number, seconds) for number in range(count)]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join()
    return [problem for visit in visits for problem in visit.problems]


def _wait_for(url: str) -> None:
    late = time.monotonic() + PATIENCE
    while time.monotonic() < late:
        try:
            httpx.get(f"{url}/config", timeout=PATIENCE).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"The page did not start at {url}.")


if __name__ == "__main__":
    typer.run(main)
