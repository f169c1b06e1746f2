"""What a person does on the page, without a browser: actions on a session with the embedded model, and its files."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import gradio as gr
import numpy as np
import pytest
import supervision as sv
from PIL import Image

import textsam
from app import actions
from app.actions import BOX, EXCLUDE, INCLUDE
from app.asking import LOWEST_CONFIDENCE, default_threshold, for_photo, known_words, parse_words
from app.downloads import FORMATS, write_download
from app.drawing import draw_view, hex_colour, view_size
from app.handlers import Handlers
from app.limits import Limits, open_photo, workers
from app.lists import mask_list, prompt_list
from app.messages import GONE
from app.scene import Found, Point
from app.session import Session, SessionStore
from textsam.files.coco import load_coco
from textsam.predictor import TextSam
from textsam.prompting.prompts import check_texts
from train.readers import open_source


@pytest.fixture(scope="module")
def sam() -> TextSam:
    return textsam.load()


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions")


@pytest.fixture
def session(sam: TextSam, store: SessionStore, cat_photo: np.ndarray) -> Session:
    session = store.get(store.create())
    session.open(for_photo(sam, cat_photo), cat_photo, "cat")
    return session


@pytest.fixture
def calls(sam: TextSam, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often a photo was encoded, and how often the decoder ran."""
    counts = {"encode_image": 0, "decode_masks": 0}

    def counted(name: str) -> Callable:
        original = getattr(sam.network, name)

        def call(*args, **kwargs):
            near_by = name == "encode_image" and max(args[0].shape[-2:]) < sam.image_size  # a mask's crop
            counts[name] += not near_by
            return original(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(sam.network, name, counted(name), raising=False)
    return counts


def test_words_are_those_of_predict(session: Session, sam: TextSam, cat_photo: np.ndarray) -> None:
    actions.ask_words(session, ("cat", "person"), ())
    expected = sam.predict(cat_photo, text=["cat", "person"], threshold=LOWEST_CONFIDENCE)
    assert len(session.scene.found) == len(expected) > 0
    for found, mask, confidence, name in zip(
        session.scene.found, expected.mask, expected.confidence, expected.data["class_name"], strict=True
    ):
        assert (found.name, found.confidence) == (name, pytest.approx(confidence))
        assert (found.mask() == mask).all()
        assert found.area == mask.sum()
    shown = session.scene.rows()
    default = sam.predict(cat_photo, text=["cat", "person"])
    assert [row.area for row in shown] == default.mask.sum((1, 2)).tolist()  # at first what `predict` gives


def test_photo_is_encoded_once_and_threshold_asks_nothing(
    sam: TextSam, store: SessionStore, cat_photo: np.ndarray, calls: dict[str, int]
) -> None:
    session = store.get(store.create())
    session.open(for_photo(sam, cat_photo), cat_photo, "cat")
    actions.ask_words(session, ("cat",), ())
    actions.click(session, INCLUDE, 230, 150)
    actions.click(session, EXCLUDE, 20, 20)
    assert calls["encode_image"] == 1
    asked = calls["decode_masks"]
    assert asked > 0
    actions.set_threshold(session, 0.99)
    actions.set_threshold(session, 0.3)
    actions.choose(session, session.scene.rows()[0].id)
    session.undo()
    assert calls == {"encode_image": 1, "decode_masks": asked}


def small_object(session: Session) -> Found:
    """A mask of a part of the background, kept."""
    actions.click(session, BOX, 390, 20)
    actions.click(session, BOX, 440, 100)
    actions.next_object(session)
    (small,) = session.scene.rows()
    return small


def test_threshold_spares_what_was_clicked(session: Session) -> None:
    small = small_object(session)
    actions.ask_words(session, ("cat",), ())
    actions.set_threshold(session, 1.0)
    assert session.scene.rows() == [small]
    actions.set_threshold(session, 0.4)
    assert [row.origin for row in session.scene.rows()] == ["words", "object"]


def test_all_prompts_join_in_one_call(session: Session, sam: TextSam, cat_photo: np.ndarray) -> None:
    painted = np.zeros(cat_photo.shape[:2], dtype=bool)
    painted[60:240, 120:300] = True
    actions.ask_words(session, ("cat",), ())
    actions.paint(session, painted)
    actions.click(session, BOX, 330, 260)  # the corners in any order
    actions.click(session, BOX, 100, 20)
    actions.click(session, INCLUDE, 230, 150)
    actions.click(session, EXCLUDE, 20, 20)
    expected = sam.predict(
        cat_photo,
        text="cat",
        points=[[230, 150], [20, 20]],
        point_labels=[1, 0],
        boxes=[100, 20, 330, 260],
        mask_input=painted,
    )
    (found,) = session.scene.candidates
    assert (found.mask() == expected.mask[0]).all()
    assert found.confidence == pytest.approx(float(expected.confidence[0]))
    assert [entry["text"] for entry in prompt_list(session.scene.prompts)] == [
        "cat", "+ 230, 150", "− 20, 20", "box 230 × 240", "brush",
    ]  # fmt: skip


def test_lone_click_has_candidates(session: Session, sam: TextSam, cat_photo: np.ndarray) -> None:
    actions.click(session, INCLUDE, 230, 150)
    expected = sam.predict(cat_photo, points=[[230, 150]], multimask_output=True)
    order = np.argsort(-expected.confidence)
    found = session.scene.candidates
    assert [mask.area for mask in found] == [int(expected.mask[i].sum()) for i in order if expected.mask[i].any()]
    assert session.scene.current is found[0]
    actions.choose_candidate(session, 1)
    assert session.scene.rows() == [found[1]]
    actions.click(session, INCLUDE, 240, 160)
    assert len(session.scene.candidates) == 1


def test_negative_click_corrects_the_mask_under_it(session: Session, sam: TextSam, cat_photo: np.ndarray) -> None:
    actions.ask_words(session, ("cat",), ())
    (cat,) = session.scene.rows()
    assert cat.mask()[150, 230]
    actions.click(session, EXCLUDE, 230, 150)
    expected = sam.predict(cat_photo, text="cat", points=[[230, 150]], point_labels=[0], mask_input=cat.logits)
    (corrected,) = session.scene.rows()
    assert (corrected.mask() == expected.mask[0]).all()
    assert (corrected.id, corrected.name, corrected.colour) == (cat.id, "cat", cat.colour)
    actions.next_object(session)
    assert session.scene.rows() == [corrected]
    assert session.scene.prompts.words == ("cat",)
    assert not session.scene.candidates


def test_chosen_mask_is_what_clicks_are_about(session: Session) -> None:
    small = small_object(session)
    actions.ask_words(session, ("cat",), ())
    cat = session.scene.rows()[0]
    actions.choose(session, small.id)
    actions.click(session, INCLUDE, 420, 60)
    corrected = session.scene.current
    assert (corrected.id, corrected.colour) == (small.id, small.colour)
    actions.choose(session, cat.id)
    actions.click(session, INCLUDE, 300, 150)
    assert session.scene.current.id == cat.id
    assert session.scene.current.name == "cat"
    assert session.scene.kept == (corrected,)  # as it was when the other was chosen
    assert session.scene.prompts.points == (Point(300, 150, True),)


def test_another_word_keeps_a_correction(session: Session) -> None:
    actions.ask_words(session, ("cat",), ())
    actions.click(session, EXCLUDE, 300, 250)
    corrected = session.scene.current
    actions.ask_words(session, ("cat",), ())  # the same again: nothing changes
    assert session.scene.current is corrected
    actions.ask_words(session, ("cat", "person"), ())
    assert session.scene.kept == (corrected,)
    assert corrected in session.scene.rows()
    assert [entry["text"] for entry in prompt_list(session.scene.prompts)] == ["cat", "person"]  # and no lone dot
    session.undo()
    assert session.scene.current is corrected
    assert session.scene.prompts.points == (Point(300, 250, False),)


def test_several_words_with_a_click_take_the_best(session: Session, sam: TextSam, cat_photo: np.ndarray) -> None:
    actions.click(session, INCLUDE, 440, 40)
    actions.ask_words(session, ("cat", "person"), ())
    found = session.scene.current
    both = [sam.predict(cat_photo, text=word, points=[[440, 40]], multimask_output=True) for word in ("cat", "person")]
    best = max(both, key=lambda each: each.confidence.max())
    assert found.name == best.data["class_name"][0]
    assert found.confidence == pytest.approx(float(best.confidence.max()))


def test_negative_words_reach_predict(session: Session, sam: TextSam, cat_photo: np.ndarray) -> None:
    actions.ask_words(session, ("cat",), ("dog",))
    expected = sam.predict(cat_photo, text="cat", negative_text="dog", threshold=LOWEST_CONFIDENCE)
    assert [mask.confidence for mask in session.scene.found] == expected.confidence.tolist()
    with pytest.raises(ValueError, match="need words that are looked for"):
        actions.ask_words(session, (), ("dog",))
    with pytest.raises(ValueError, match="“cat” is both looked for and not"):
        actions.ask_words(session, ("cat",), ("Cat",))


def test_undo_removal_and_clear(session: Session) -> None:
    assert not session.undo()
    actions.ask_words(session, ("cat",), ())
    found = session.scene.rows()
    actions.remove_mask(session, found[0].id)
    assert session.scene.rows() == []
    session.undo()
    assert session.scene.rows() == found
    actions.click(session, INCLUDE, 440, 40)
    actions.click(session, INCLUDE, 430, 50)
    actions.remove_prompt(session, "point:0")
    assert session.scene.prompts.points == (Point(430, 50, True),)
    actions.remove_prompt(session, "point:0")
    assert session.scene.rows() == found
    actions.remove_prompt(session, "word:0")
    assert session.scene.rows() == []
    actions.clear(session)
    assert prompt_list(session.scene.prompts) == []
    for _ in range(8):
        session.undo()
    assert session.scene.rows() == []
    assert session.history == []


def test_everything_keeps_objects_and_what_was_removed(session: Session) -> None:
    small = small_object(session)
    actions.remove_mask(session, small.id)
    actions.click(session, INCLUDE, 230, 150)
    before = session.scene
    actions.ask_everything(session)
    rows = session.scene.rows()
    assert session.scene.threshold == round(session.scene.threshold, 2)  # for the field that shows it
    assert before.current in rows
    assert small not in rows
    assert {row.origin for row in rows} == {"everything", "object"}
    assert [entry["text"] for entry in prompt_list(session.scene.prompts)] == ["everything"]
    taken = rows[0]
    actions.remove_mask(session, taken.id)
    actions.ask_everything(session)  # a new question: what it finds in that place is another mask
    assert [row.mask().tolist() for row in session.scene.rows()] == [row.mask().tolist() for row in rows]
    for _ in range(3):
        session.undo()
    assert session.scene is before
    session.undo()
    session.undo()
    assert session.scene.rows() == [small]


@pytest.mark.parametrize("key", ["", "word:9", "point:-1", "point:x", "nothing:1", "box", "brush"])
def test_removing_what_is_not_there(session: Session, key: str) -> None:
    actions.ask_words(session, ("cat",), ())
    rows = session.scene.rows()
    actions.remove_prompt(session, key)
    actions.remove_mask(session, 10**9)
    actions.choose(session, 10**9)
    actions.choose_candidate(session, 5)
    assert session.scene.rows() == rows


def test_requests_that_cannot_be_met_change_nothing(session: Session) -> None:
    with pytest.raises(ValueError, match="no mask here to take something away"):
        actions.click(session, EXCLUDE, 10, 10)
    with pytest.raises(ValueError, match="Nothing is painted"):
        actions.paint(session, np.zeros((300, 451), dtype=bool))
    with pytest.raises(ValueError, match="no object yet"):
        actions.next_object(session)
    actions.click(session, BOX, 10, 10)
    with pytest.raises(ValueError, match="box is empty"):
        actions.click(session, BOX, 10, 200)
    assert len(session.history) == 1
    with pytest.raises(ValueError, match="At most 24 words"):
        parse_words(",".join(f"word{i}" for i in range(25)))
    with pytest.raises(ValueError, match="at most 60 characters"):
        parse_words("x" * 61)
    with pytest.raises(ValueError, match=r"at most 60 characters: “x{20}…” has 3000"):
        parse_words("x" * 3000)
    assert parse_words(" cat,, Cat ,\ndog ") == ("Cat", "dog")
    assert parse_words("cat，dog、cup；bus; 고양이") == ("cat", "dog", "cup", "bus", "고양이")


def test_double_click_is_one_click(session: Session) -> None:
    actions.click(session, INCLUDE, 230, 150)
    before = session.scene
    actions.click(session, INCLUDE, 230, 150)
    assert session.scene is before  # with its candidates
    assert len(session.history) == 1


def test_threshold_while_it_is_typed(sam: TextSam, store: SessionStore, cat_photo: np.ndarray) -> None:
    handlers = Handlers(sam, store)
    key = store.create()
    session = store.get(key)
    session.open(for_photo(sam, cat_photo), cat_photo, "cat")
    for value, expected in ((None, 0.45), (0, LOWEST_CONFIDENCE), (0.6, 0.6), (7, 1.0)):
        shown = handlers.threshold(key, value)
        assert session.scene.threshold == expected
        assert shown[6] == gr.skip()  # what is being typed stays


def test_brush_stays_when_nothing_is_painted(
    sam: TextSam, store: SessionStore, cat_photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, *_, **__: told.append(text))
    key = store.create()
    store.get(key).open(for_photo(sam, cat_photo), cat_photo, "cat")
    shown = Handlers(sam, store).paint(key, {"layers": [np.zeros((300, 451, 4), np.uint8)]})
    assert shown[:3] == [gr.skip()] * 3
    assert told == ["Nothing is painted yet: draw over the object first."]


def test_too_many_clicks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "LIMITS", Limits(points=2))
    actions.click(session, INCLUDE, 230, 150)
    actions.click(session, INCLUDE, 5000, -3)  # as far as the photo goes
    assert session.scene.prompts.points[1] == Point(450, 0, True)
    with pytest.raises(ValueError, match="at most 2 clicks"):
        actions.click(session, INCLUDE, 230, 152)


def test_unknown_words(sam: TextSam) -> None:
    known, sentences = known_words(sam, ("cat", "collar"))
    assert known == ("cat",)
    assert sentences == ["This model does not know “collar”. Spelled alike: dollar, dog collar, coleslaw."]
    assert check_texts(list(known)) == ["cat"]


def test_view(session: Session) -> None:
    actions.ask_words(session, ("cat",), ())
    scene = session.scene
    plain = draw_view(session.photo, [], None, scene.prompts)
    assert plain.shape[1::-1] == view_size(session.photo) == (1280, 851)
    with_prompts = scene.with_prompts(points=(Point(100, 100), Point(50, 50, False)), box=(200, 100, 300, 200)).prompts
    drawn = draw_view(session.photo, scene.rows(), scene.rows()[0].id, with_prompts).astype(int)
    scale = 1280 / 451
    green, red, yellow = (drawn[round(y * scale), round(x * scale)] for x, y in ((100, 100), (50, 50), (200, 150)))
    assert green[1] > 140 > green[0]
    assert red[0] > 180 > red[1]
    assert min(yellow[:2]) > 150 > yellow[2]
    colour = sv.Color.from_hex(hex_colour(scene.rows()[0])).as_rgb()
    inside = (drawn - plain)[600, 700]
    assert np.sign(inside[2]) == np.sign(colour[2] - plain[600, 700][2])  # towards blue, not red
    (cat,) = scene.rows()
    assert mask_list(scene)[0] == {
        "id": 0, "name": "cat", "confidence": f"{cat.confidence:.2f}", "area": f"{100 * cat.area / (300 * 451):.1f} %",
        "pixels": f"{cat.area:,}",
        "colour": "#3b82f6", "chosen": False,
    }  # fmt: skip


def test_downloads(session: Session, sam: TextSam, cat_photo: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no mask to download"):
        write_download("Overlay", session.folder, "cat", session.photo, [])
    actions.ask_words(session, ("cat",), ())
    rows = session.scene.rows()
    mask = rows[0].mask()
    paths = {form: write_download(form, session.folder, "cat", cat_photo, rows) for form in FORMATS}
    overlay = np.asarray(Image.open(paths["Overlay"])).astype(int)
    assert overlay.shape == cat_photo.shape
    assert (overlay[-1, -1] == cat_photo[-1, -1]).all()
    cutout = np.asarray(Image.open(paths["Cut-out"]))
    ys, xs = np.nonzero(mask)
    part = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
    assert (cutout[..., 3] == mask[part] * 255).all()
    assert (cutout[..., :3] == cat_photo[part]).all()
    labels = Image.open(paths["Label map"])
    assert (np.asarray(labels) == mask).all()
    assert json.loads(labels.text["masks"]) == {"1": "cat"}
    Image.fromarray(cat_photo).save(tmp_path / "cat.png")
    (image,) = load_coco(paths["COCO"], tmp_path)
    assert (image.instances[0].mask() == mask).all()
    with zipfile.ZipFile(paths["YOLO"]) as archive:
        archive.extractall(tmp_path / "yolo")
    read = sv.DetectionDataset.from_yolo(
        str(tmp_path / "yolo/images"), str(tmp_path / "yolo/labels"), str(tmp_path / "yolo/data.yaml"), force_masks=True
    )
    ((_, _, detections),) = list(read)
    assert read.classes == ["cat"]
    union = detections.mask.any(0)
    assert (union & mask).sum() / (union | mask).sum() > 0.97


def test_collection_is_what_training_reads(
    session: Session, sam: TextSam, cat_photo: np.ndarray, tmp_path: Path
) -> None:
    collection = session.collection
    with pytest.raises(ValueError, match="collection is empty"):
        collection.pack(tmp_path / "none.zip")
    actions.ask_words(session, ("cat",), ())
    rows = session.scene.rows()
    collection.add(1, session.photo, rows)
    half = session.photo[:, 200:].copy()
    session.open(for_photo(sam, half), half, "half")
    actions.click(session, INCLUDE, 100, 150)
    clicked = actions.named(session.scene.rows(), "whiskers")
    collection.add(2, half, clicked)
    collection.add(2, half, clicked)  # the same photo again
    assert (len(collection.records), collection.masks, collection.names) == (2, 2, ["cat", "whiskers"])
    with zipfile.ZipFile(collection.pack(tmp_path / "collection.zip")) as archive:
        archive.extractall(tmp_path / "collection")
    source = open_source(str(tmp_path / "collection"))
    records = [source.convert(row) for row in source.rows]
    assert source.account.problems == []
    assert [record.names for record in records] == [("cat",), ("whiskers",)]
    for record, photo, masks in zip(records, (cat_photo, half), (rows, clicked), strict=True):
        assert (record.read() == photo).all()
        assert (record.regions[0].mask() == masks[0].mask()).all()
    collection.clear()
    assert collection.masks == 0
    assert list((collection.folder / "images").iterdir()) == []


def test_store_is_bounded_and_forgets(tmp_path: Path, sam: TextSam) -> None:
    now = [0.0]
    store = SessionStore(tmp_path, Limits(sessions=3, session_seconds=100), clock=lambda: now[0])
    keys = [store.create() for _ in range(3)]
    assert store.get(keys[0]) is not None  # used again, so the second is idle for longest
    keys.append(store.create())
    assert [store.get(key) is not None for key in keys] == [True, False, True, True]
    now[0] = 90
    assert store.get(keys[0]) is not None
    now[0] = 150
    store.sweep()
    assert [store.get(key) is not None for key in keys] == [True, False, False, False]
    store.close(keys[0])
    store.close("no such key")
    assert len(store) == 0
    assert list(tmp_path.iterdir()) == []
    assert len(set(keys)) == 4
    assert min(map(len, keys)) >= 32


def test_leftovers_in_the_cache_go_with_the_sessions_time(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for folder in ("emptied", "new", "example", "agents"):
        (cache / folder).mkdir(parents=True)
    files = {name: cache / name for name in ("tmpbroken", "tmpgoingon", "example/cat.jpg", "agents/file.jpg")}
    for file in files.values():
        file.write_bytes(b"x")
    old = ("tmpbroken", "example/cat.jpg", "agents/file.jpg")
    for path in (cache / "emptied", cache / "example", *(files[name] for name in old)):
        os.utime(path, (0, time.time() - 101))
    SessionStore(tmp_path / "sessions", Limits(session_seconds=100), cache=cache).sweep()
    assert sorted(path.name for path in cache.rglob("*")) == ["agents", "cat.jpg", "example", "new", "tmpgoingon"]
    SessionStore(tmp_path / "sessions", cache=tmp_path / "none").sweep()


def test_session_swept_during_its_request_answers_first(
    sam: TextSam, cat_photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    store = SessionStore(tmp_path, Limits(session_seconds=100), clock=lambda: now[0])
    handlers = Handlers(sam, store)
    key = store.create()
    session = store.get(key)
    session.open(for_photo(sam, cat_photo), cat_photo, "cat")
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, *_, **__: told.append(text))

    def sweep() -> None:
        """As the thread that sweeps, and the loop that may not wait."""
        thread = Thread(target=store.sweep, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()

    def slow(*_: object) -> None:
        now[0] = 200
        sweep()

    monkeypatch.setattr(actions, "ask_everything", slow)
    shown = handlers.everything(key, progress=lambda *_, **__: None)
    assert (session.folder / Path(shown[0]).name).exists()
    assert told == []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key: session)  # who asked before the sweep, and comes to the lock after it
    sweep()
    assert get(key) is None
    assert not session.folder.exists()
    handlers.undo(key)
    assert handlers.download(key, "Overlay") is None
    assert handlers.download_collection(key) is None
    assert handlers.collect(key, "cat") == "Nothing collected yet."
    assert told == [GONE] * 4


def test_photos_of_sessions_do_not_mix(sam: TextSam, store: SessionStore, cat_photo: np.ndarray) -> None:
    mirrored = cat_photo[:, ::-1].copy()
    sessions = []
    for photo in (cat_photo, mirrored):
        session = store.get(store.create())
        session.open(for_photo(sam, photo), photo, "cat")
        sessions.append(session)
    for session in sessions:
        actions.ask_words(session, ("cat",), ())
    for session, photo in zip(sessions, (cat_photo, mirrored), strict=True):
        expected = sam.predict(photo, text="cat")
        assert (session.scene.rows()[0].mask() == expected.mask[0]).all()


def test_large_photos_are_scaled_down(tmp_path: Path) -> None:
    limits = Limits(photo_pixels=3_000_000, upload_bytes=200_000, work_side=500)
    path = tmp_path / "large.png"
    Image.new("RGB", (2000, 1000), (200, 30, 30)).save(path)
    photo = open_photo(path, limits)
    assert photo.shape == (250, 500, 3)
    assert (photo == (200, 30, 30)).all()
    Image.new("L", (3000, 2000)).save(path)
    with pytest.raises(ValueError, match="This file declares 3000x2000"):
        open_photo(path, limits)
    path.write_bytes(b"x" * 300_000)
    with pytest.raises(ValueError, match="at most 0 MB are taken"):
        open_photo(path, limits)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^This file is empty\.$"):
        open_photo(path, limits)


def test_workers_and_threshold(sam: TextSam) -> None:
    count, threads = workers(sam)
    assert 1 <= count <= 4
    assert threads == 1
    assert default_threshold(sam) == 0.45


def test_paintings_are_bounded() -> None:
    from gradio.components.image_editor import AcceptBlobs

    from app.brush import LAYERS, PAINTINGS, brush_editor

    first = brush_editor()
    editor = type(first)(**first.constructor_args)  # as a session has it after an update

    def stroke(number: int, index: str, content: bytes = b"png") -> None:
        data = {"type": "layer", "index": index, "file": content, "id": str(number)}
        editor.accept_blobs(AcceptBlobs(data=data, files=[("blob", content)]))

    for number in range(PAINTINGS + 3):
        stroke(number, "0")
    assert list(editor.blob_storage) == [str(number) for number in range(3, PAINTINGS + 3)]
    with pytest.raises(ValueError, match=f"at most {LAYERS} layers"):
        stroke(0, "1000000000")
    with pytest.raises(ValueError, match="at most 20 MB"):
        stroke(0, "0", b"0" * 20_000_001)
    assert [function.__name__ for function in editor.server_fns] == ["accept_blobs"]


def test_photo_files_stay_as_they_came_after_an_update(tmp_path: Path) -> None:
    from gradio.data_classes import FileData

    from app.endpoints import photo_file

    first = photo_file(label="Photo")
    photo = type(first)(**first.constructor_args)
    hostile = tmp_path / "x.jpg"
    hostile.write_bytes(b"no picture")
    assert photo.preprocess(FileData(path=str(hostile))) == str(hostile)
    assert photo.get_block_name() == "image"
