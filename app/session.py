"""One person's photo and what was done to it, and the store that keeps a bounded number of them for a bounded time."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from app.asking import default_threshold
from app.collection import Collection
from app.limits import LIMITS, Limits
from app.scene import Scene
from textsam.predictor import TextSam


@dataclass
class Session:
    """
    Attributes:
        folder: of its own, for downloads and the collection; goes with the session.
        sam: with the photo set; None before the first photo.
        photo: (H, W, 3) uint8 RGB. name: of its file, without suffix. number: of the photo in this session.
        ids, views: count masks and pictures of the view.
        lock: held by whoever changes the session; a double click comes twice at once.
    """

    folder: Path
    collection: Collection
    sam: TextSam | None = None
    photo: np.ndarray | None = None
    name: str = "photo"
    number: int = 0
    scene: Scene = field(default_factory=Scene)
    history: list[Scene] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    ids: count[int] = field(default_factory=count)
    views: count[int] = field(default_factory=count)
    used: float = field(default_factory=time.monotonic)

    def open(self, sam: TextSam, photo: np.ndarray, name: str) -> None:
        """Another photo; the collection stays."""
        self.sam, self.photo, self.name = sam, photo, name
        self.number += 1
        self.scene, self.history = Scene(threshold=default_threshold(sam)), []

    def step(self, scene: Scene) -> None:
        """Go on to another scene; undo leads back."""
        self.history = [*self.history, self.scene][-LIMITS.undo_steps :]
        self.scene = scene

    def undo(self) -> bool:
        """Back by one step; False when there is none."""
        if not self.history:
            return False
        *self.history, self.scene = self.history
        return True


class SessionStore:
    """Sessions by secret keys. The one that was idle for longest goes when there are too many, or when its time is up.

    Args:
        root: folder in which each session gets one.
        clock: seconds that only grow.
        cache: Gradio's folder, whose leftovers go with the sessions' time; None: there is none.
    """

    def __init__(
        self,
        root: Path,
        limits: Limits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
        cache: Path | None = None,
    ) -> None:
        self.root = root
        self.limits = limits
        self.clock = clock
        self.cache = cache
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self) -> str:
        """A new session's key."""
        key = secrets.token_urlsafe(24)
        folder = self.root / key
        folder.mkdir(parents=True)
        session = Session(folder, Collection(folder / "collection"), used=self.clock())
        with self._lock:
            self._sessions[key] = session
        self.sweep()
        return key

    def get(self, key: str | None) -> Session | None:
        """The session, which counts as used now; None when it is gone."""
        with self._lock:
            session = self._sessions.get(key or "")
            if session is not None:
                session.used = self.clock()
                self._sessions.move_to_end(key or "")
        return session

    def close(self, key: str | None) -> None:
        """Forget a session, its photo and its files; one that is busy stays, for a later sweep."""
        with self._lock:
            session = self._sessions.get(key or "")
            # Nobody waits here for a model's answer: Gradio calls this in the loop that serves everybody.
            if session is None or not session.lock.acquire(blocking=False):
                return
            del self._sessions[key or ""]
        try:
            session.sam = session.photo = None
            shutil.rmtree(session.folder, ignore_errors=True)
        finally:
            session.lock.release()

    def sweep(self) -> None:
        """Close what is idle for too long or too much."""
        with self._lock:
            keys = list(self._sessions)
            late = self.clock() - self.limits.session_seconds
            gone = [key for key in keys if self._sessions[key].used < late]
            gone += [key for key in keys if key not in gone][: max(0, len(keys) - len(gone) - self.limits.sessions)]
        for key in gone:
            self.close(key)
        if self.cache is not None:
            _sweep_cache(self.cache, time.time() - self.limits.session_seconds)

    def sweep_regularly(self, seconds: float = 60) -> None:
        """`sweep` from time to time, for as long as the process lives."""

        def run() -> None:
            while True:
                time.sleep(seconds)
                self.sweep()

        threading.Thread(target=run, name="sessions", daemon=True).start()


def _sweep_cache(cache: Path, late: float) -> None:
    """Remove what Gradio's `delete_cache` does not know: files of uploads that broke off, photos that agents sent as
    data: URLs (Gradio calls each of them "file"), and folders that are empty.

    Args:
        late: what was changed since then stays: an upload may still be on its way.
    """
    for path in [*cache.glob("tmp*"), *cache.glob("*/file"), *cache.glob("*/file.*"), *cache.glob("*")]:
        with suppress(OSError):  # gone already, or a folder that holds files
            if path.stat().st_mtime >= late:
                continue
            if path.is_dir():
                path.rmdir()
            elif path.parent != cache or path.name.startswith("tmp"):
                path.unlink()
