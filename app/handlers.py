"""Events of the page to actions, and a session to what the page shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app import actions
from app.asking import LOWEST_CONFIDENCE, for_photo, known_words, parse_words
from app.downloads import write_download
from app.drawing import draw_thumbnail, draw_view, view_size
from app.limits import open_photo
from app.lists import mask_list, prompt_list
from app.messages import GONE, NO_PHOTO, escaped, sentence
from app.session import Session, SessionStore
from textsam.predictor import TextSam
from textsam.prompting.detections import UNNAMED_CLASS

PROGRESS = gr.Progress()  # as a default value it stands for the bar of each call
WORDS = slice(4, 6)  # of what the page shows: the two boxes for words
THRESHOLD = 6
VIEWS_KEPT = 8  # pictures of a session that may still be on their way to the browser


class Handlers:
    """One method for each event. All take the session's key first, and answer with what the page shows (`view`).

    Args:
        sam: the loaded model, shared by all.
    """

    def __init__(self, sam: TextSam, store: SessionStore) -> None:
        self.sam = sam
        self.store = store

    # -- the photo -----------------------------------------------------------------------------------------------------

    def open(
        self, key: str | None, path: str | None, words: str, negative: str, progress: gr.Progress = PROGRESS
    ) -> list[Any]:
        """A photo came in: read, encode once, and look for the words that are there already."""
        self.store.sweep()
        if path is None:
            return [key, *[gr.skip()] * 4, *nothing()]
        progress(0.2, desc="Encoding the photo")
        try:
            photo = open_photo(path)
            sam = for_photo(self.sam, photo)
        except (ValueError, OSError) as error:
            gr.Warning(escaped(sentence(error)), title="This photo cannot be used")
            return [key, None, *[gr.skip()] * 3, *nothing()]
        if self.store.get(key) is None:
            key = self.store.create()
        session = self.store.get(key)
        with session.lock:
            session.open(sam, photo, _plain_name(path))
            if words.strip():
                progress(0.6, desc="Looking for " + words[:40])
                self._try(lambda: self._ask(session, words, negative))
            shown = [gr.Column(visible=False), gr.Column(visible=True), actions.INCLUDE]
            return [key, None, *shown, *view(session)]

    # -- prompts -------------------------------------------------------------------------------------------------------

    def ask_words(self, key: str | None, words: str, negative: str) -> list[Any]:
        """The words, and those that must not be found."""
        answer = self._change(key, lambda session: self._ask(session, words, negative))
        answer[WORDS] = [gr.skip(), gr.skip()]  # the next question may stand there already
        return answer

    def everything(self, key: str | None, progress: gr.Progress = PROGRESS) -> list[Any]:
        """All automatic masks."""
        progress(0.2, desc="Looking for everything")
        return self._change(key, actions.ask_everything)

    def click(self, key: str | None, tool: str, event: gr.SelectData) -> list[Any]:
        """A click on the picture."""

        def change(session: Session) -> None:
            scale = session.photo.shape[1] / view_size(session.photo)[0]
            actions.click(session, tool, event.index[0] * scale, event.index[1] * scale)

        return self._change(key, change)

    def paint(self, key: str | None, painted: dict[str, Any] | None) -> list[Any]:
        """The brush's layers, joined to a mask."""
        layers = [layer[..., 3] > 0 for layer in (painted or {}).get("layers", []) if layer is not None]

        done = []

        def change(session: Session) -> None:
            mask = np.zeros(session.photo.shape[:2], dtype=bool)
            for layer in layers:
                size = (mask.shape[1], mask.shape[0])
                mask |= np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.NEAREST))
            actions.paint(session, mask)
            done.append(True)

        shown = self._change(key, change)
        if not done:  # told why; what is painted stays, to be mended
            return [gr.skip()] * 3 + shown
        return [actions.INCLUDE, gr.Image(visible=True), gr.Column(visible=False), *shown]

    def tool(self, key: str | None, tool: str) -> list[Any]:
        """The brush needs another picture than clicks and boxes do."""
        session = self.store.get(key)
        brushing = tool == actions.BRUSH and session is not None and session.photo is not None
        editor = gr.skip()
        if brushing:
            editor = {"background": session.photo, "layers": [], "composite": None}
        return [gr.Image(visible=not brushing), gr.Column(visible=brushing), editor]

    def remove_prompt(self, key: str | None, event: gr.EventData) -> list[Any]:
        """A prompt's cross."""
        return self._change(key, lambda session: actions.remove_prompt(session, str(event.key)))

    # -- masks ---------------------------------------------------------------------------------------------------------

    def choose(self, key: str | None, event: gr.EventData) -> list[Any]:
        """A row of the list of masks."""
        return self._change(key, lambda session: actions.choose(session, int(event.key)))

    def remove_mask(self, key: str | None, event: gr.EventData) -> list[Any]:
        """A mask's cross."""
        return self._change(key, lambda session: actions.remove_mask(session, int(event.key)))

    def candidate(self, key: str | None, event: gr.SelectData) -> list[Any]:
        """One of three candidates."""
        return self._change(key, lambda session: actions.choose_candidate(session, int(event.index)))

    def threshold(self, key: str | None, value: float | None) -> list[Any]:
        """The slider: what was found already is shown or not, and the model does nothing."""
        if value is None:  # the field beside it is empty: a number is being typed
            return nothing()
        answer = self._change(key, lambda session: actions.set_threshold(session, max(value, LOWEST_CONFIDENCE)))
        answer[THRESHOLD] = gr.skip()  # "0." must not become "0" under the hands of who types 0.6
        return answer

    def next_object(self, key: str | None) -> list[Any]:
        """Go on with another object."""
        return self._change(key, actions.next_object)

    def undo(self, key: str | None) -> list[Any]:
        """One step back."""
        return self._change(key, Session.undo)

    def clear(self, key: str | None) -> list[Any]:
        """All prompts and masks away."""
        return self._change(key, actions.clear)

    # -- files ---------------------------------------------------------------------------------------------------------

    def download(self, key: str | None, form: str) -> Any:
        """A file of the masks that are shown."""
        return self._file(key, lambda s: write_download(form, s.folder, s.name, s.photo, s.scene.rows()))

    def collect(self, key: str | None, name: str) -> str:
        """The masks that are shown, into the collection; `name` is for those without one."""

        def change(session: Session) -> None:
            rows = actions.named(session.scene.rows(), " ".join(name.split()))
            if any(row.name == UNNAMED_CLASS for row in rows):
                raise ValueError("Some masks have no name: write one into the field first.")
            session.collection.add(session.number, session.photo, rows)

        return self._collection(key, change)

    def empty_collection(self, key: str | None) -> str:
        """Start the collection anew."""
        return self._collection(key, lambda session: session.collection.clear())

    def download_collection(self, key: str | None) -> Any:
        """The collection as one file."""
        return self._file(key, lambda session: session.collection.pack(session.folder / "collection.zip"))

    # ------------------------------------------------------------------------------------------------------------------

    def _ask(self, session: Session, words: str, negative: str) -> None:
        asked, against = parse_words(words), parse_words(negative)
        known, sentences = known_words(self.sam, asked)
        unwanted, more = known_words(self.sam, against)
        for unknown in sentences + more:
            gr.Warning(escaped(unknown), title="Unknown word")
        if known or not asked:
            actions.ask_words(session, known, unwanted)

    def _change(self, key: str | None, change: Callable[[Session], Any]) -> list[Any]:
        session = self.store.get(key)
        if session is None:
            gr.Warning(NO_PHOTO if key is None else GONE)
            return nothing()
        with session.lock:
            if session.photo is None:
                gr.Warning(GONE)
                return nothing()
            self._try(lambda: change(session))
            return view(session)

    def _try(self, change: Callable[[], Any]) -> bool:
        try:
            change()
        except ValueError as error:
            gr.Warning(escaped(sentence(error)))
            return False
        return True

    def _file(self, key: str | None, write: Callable[[Session], Path]) -> Any:
        session = self.store.get(key)
        if session is None:
            gr.Warning(NO_PHOTO if key is None else GONE)
            return None
        with session.lock:
            if session.photo is None:
                gr.Warning(GONE)
                return None
            try:
                return str(write(session))
            except ValueError as error:
                gr.Warning(escaped(sentence(error)))
                return None

    def _collection(self, key: str | None, change: Callable[[Session], Any]) -> str:
        session = self.store.get(key)
        if session is None:
            gr.Warning(NO_PHOTO if key is None else GONE)
            return collection_text(None)
        with session.lock:
            if session.photo is None:
                gr.Warning(GONE)
                return collection_text(None)
            self._try(lambda: change(session))
            return collection_text(session)


def view(session: Session) -> list[Any]:
    """What the page shows of a session, in the order of `page.Page.view`."""
    scene = session.scene
    picture = draw_view(session.photo, scene.rows(), scene.chosen, scene.prompts)
    number = next(session.views)
    path = session.folder / f"view-{number % VIEWS_KEPT}.jpg"
    Image.fromarray(picture).save(path, "JPEG", quality=90, subsampling=0)
    candidates: Any = gr.Gallery(value=[], visible=False)
    if len(scene.candidates) > 1:
        pictures = [(draw_thumbnail(session.photo, mask), f"{mask.confidence:.2f}") for mask in scene.candidates]
        candidates = gr.Gallery(value=pictures, selected_index=scene.choice, visible=True)
    return [
        str(path),
        prompt_list(scene.prompts),
        mask_list(scene),
        candidates,
        ", ".join(scene.prompts.words),
        ", ".join(scene.prompts.negative_words),
        scene.threshold,
        gr.Button(interactive=bool(session.history)),
        gr.Button(interactive=scene.current is not None),
        status_text(session),
    ]


VIEW_LENGTH = 10


def nothing() -> list[Any]:
    """No change of the view."""
    return [gr.skip()] * VIEW_LENGTH


def status_text(session: Session) -> str:
    """The line under the picture."""
    height, width = session.photo.shape[:2]
    count = len(session.scene.rows())
    masks = "1 mask" if count == 1 else f"{count} masks"
    return f"{width} × {height} px · {masks}"


def collection_text(session: Session | None) -> str:
    """The line in the collection's box."""
    collection = None if session is None else session.collection
    if collection is None or not collection.records:
        return "Nothing collected yet."
    photos = len(collection.records)
    names = ", ".join(collection.names[:8])
    return (
        f"{photos} photo{'s' * (photos != 1)}, {collection.masks} mask{'s' * (collection.masks != 1)}: {escaped(names)}"
    )


def _plain_name(path: str) -> str:
    """A file name without suffix, of plain characters."""
    return re.sub(r"[^\w-]+", "-", Path(path).stem).strip("-_")[:40] or "photo"
