"""What a person does, each as one change of a session: `session.scene` before, the model's answer, the scene after.

Who calls one holds `session.lock`. A request that cannot be met raises ValueError with a sentence for that person, and
nothing has changed then.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from app.asking import default_threshold, find_everything, find_object, find_words
from app.limits import LIMITS
from app.scene import Found, Point, Prompts, Scene
from app.session import Session
from textsam.files.rle import encode_mask
from textsam.prompting.detections import UNNAMED_CLASS

INCLUDE, EXCLUDE, BOX, BRUSH = "Click +", "Click −", "Box", "Brush"
TOOLS = (INCLUDE, EXCLUDE, BOX, BRUSH)


def ask_words(session: Session, words: tuple[str, ...], negative_words: tuple[str, ...]) -> None:
    """Every instance of the words; a correction is done, another object is asked again with them."""
    if not words and negative_words:
        raise ValueError("Words that must not be found need words that are looked for.")
    both = {word.casefold() for word in words} & {word.casefold() for word in negative_words}
    if both:
        raise ValueError(f"“{min(both)}” is both looked for and not looked for: take one away.")
    # A correction starts from its mask, which is not among what other words find.
    scene = _done(session.scene) if session.scene.prompts.refine else session.scene
    prompts = replace(
        scene.prompts, words=words, negative_words=negative_words, everything=False, target=None, refine=False
    )
    if prompts == scene.prompts:
        return
    found = find_words(session.sam, prompts, session.ids.__next__) if words else ()
    threshold = default_threshold(session.sam) if scene.prompts.everything else scene.threshold
    _ask_object(session, replace(scene, prompts=prompts, found=found, chosen=None, threshold=threshold))


def ask_everything(session: Session) -> None:
    """All automatic masks, in the place of words; an object that is being asked for is done."""
    found = find_everything(session.sam, session.ids.__next__)
    threshold = min([session.scene.threshold, *(math.floor(100 * mask.confidence) / 100 for mask in found)])
    session.step(replace(_done(session.scene), prompts=Prompts(everything=True), found=found, threshold=threshold))


def click(session: Session, tool: str, x: float, y: float) -> None:
    """A click on the photo, px, with one of `TOOLS`."""
    height, width = session.photo.shape[:2]
    x, y = float(np.clip(x, 0, width - 1)), float(np.clip(y, 0, height - 1))
    if tool == BOX:
        _corner(session, x, y)
    elif tool in (INCLUDE, EXCLUDE):
        _point(session, Point(x, y, tool == INCLUDE))


def _point(session: Session, point: Point) -> None:
    scene, refine = _begin(session.scene), False
    if scene.prompts.starts_object:
        target = scene.prompts.target or scene.under(point.x, point.y)
        if target is None and not point.positive:
            raise ValueError("There is no mask here to take something away from: click on one, or choose it first.")
        refine = scene.prompts.target is not None or not point.positive
        scene = scene.with_prompts(target=target, refine=refine)
    if point in scene.prompts.points:  # the second half of a double click
        return
    if len(scene.prompts.points) >= LIMITS.points:
        raise ValueError(f"An object takes at most {LIMITS.points} clicks: go on with the next object.")
    _ask_object(session, scene.with_prompts(points=(*scene.prompts.points, point), corner=None))


def _corner(session: Session, x: float, y: float) -> None:
    """The first of two corners only waits for the second."""
    scene, corner = session.scene, session.scene.prompts.corner
    if corner is None:
        session.step(_begin(scene).with_prompts(corner=(x, y)))
        return
    left, right = sorted((corner[0], x))
    top, bottom = sorted((corner[1], y))
    if right - left < 2 or bottom - top < 2:
        raise ValueError("This box is empty: click on the opposite corner.")
    _ask_object(session, scene.with_prompts(box=(left, top, right, bottom), corner=None))


def paint(session: Session, mask: np.ndarray) -> None:
    """A rough mask, (H, W) bool, in the place of the one before."""
    if not mask.any():
        raise ValueError("Nothing is painted yet: draw over the object first.")
    _ask_object(session, _begin(session.scene).with_prompts(brush=encode_mask(mask), corner=None))


def _begin(scene: Scene) -> Scene:
    """The scene to which a prompt is added: a chosen mask is what it is about, whatever was asked for before."""
    chosen = scene.row(scene.chosen)
    if chosen is None or chosen is scene.current:
        return scene
    done = _done(scene)
    return replace(done.with_prompts(target=chosen), chosen=chosen.id)


def choose(session: Session, id: int) -> None:
    """Highlight a mask, and let the next click correct it; the highlighted one again: no longer."""
    chosen = None if session.scene.chosen == id else id
    session.scene = replace(session.scene, chosen=chosen if session.scene.row(id) else None)


def choose_candidate(session: Session, number: int) -> None:
    """Take another of the candidates."""
    scene = session.scene
    if number != scene.choice and 0 <= number < len(scene.candidates):
        session.step(replace(scene, choice=number))


def set_threshold(session: Session, value: float) -> None:
    """The least confidence of what is shown; nothing is asked again."""
    session.scene = replace(session.scene, threshold=float(np.clip(value, 0.0, 1.0)))


def named(rows: list[Found], name: str) -> list[Found]:
    """The masks, those without a name under this one."""
    return [replace(row, name=name) if name and row.name == UNNAMED_CLASS else row for row in rows]


def remove_mask(session: Session, id: int) -> None:
    """Take a mask away; for the object that is being asked for, its prompts as well."""
    scene = session.scene
    row = scene.row(id)
    if row is None:
        return
    if row is scene.current:
        scene = replace(scene, prompts=scene.prompts.without_object(), candidates=(), choice=0)
    chosen = None if scene.chosen == id else scene.chosen
    session.step(replace(scene, removed=scene.removed | {id}, chosen=chosen))


def remove_prompt(session: Session, key: str) -> None:
    """Take one prompt away and ask the rest again. Keys are those of `prompt_list`."""
    scene, prompts = session.scene, session.scene.prompts
    kind, _, number = key.partition(":")
    i = int(number) if number.isdecimal() else -1
    if kind in ("word", "not"):
        words = tuple(word for n, word in enumerate(prompts.words) if kind != "word" or n != i)
        negative = tuple(word for n, word in enumerate(prompts.negative_words) if kind != "not" or n != i)
        ask_words(session, words, negative if words else ())
    elif kind == "everything":
        session.step(replace(scene, prompts=replace(prompts, everything=False), found=(), chosen=None))
    elif kind == "point" and 0 <= i < len(prompts.points):
        _ask_object(session, scene.with_prompts(points=(*prompts.points[:i], *prompts.points[i + 1 :])))
    elif kind in ("box", "brush", "corner"):
        _ask_object(session, scene.with_prompts(**{kind: None}))
    elif kind == "target":
        _ask_object(session, scene.with_prompts(target=None, refine=False))


def next_object(session: Session) -> None:
    """The object is done: its mask stays, its prompts go."""
    if session.scene.current is None:
        raise ValueError("There is no object yet: click on one, or draw a box around it.")
    session.step(_done(session.scene))


def clear(session: Session) -> None:
    """All prompts and masks; the photo stays."""
    session.step(Scene(threshold=default_threshold(session.sam)))


def _done(scene: Scene) -> Scene:
    """The object's mask among those that are kept, in the place of its target; words stay."""
    current = scene.current
    left = replace(scene, prompts=scene.prompts.without_object(), candidates=(), choice=0, chosen=None)
    if current is None:
        return left
    found, kept = (tuple(mask for mask in masks if mask.id != current.id) for masks in (scene.found, scene.kept))
    return replace(left, found=found, kept=(*kept, current))


def _ask_object(session: Session, scene: Scene) -> None:
    """Ask for the object of a scene's prompts, if they name one, and go on to the result."""
    prompts, current = scene.prompts, scene.current
    if not prompts.names_object:
        left = scene if prompts.points else replace(scene, prompts=replace(prompts, target=None, refine=False))
        session.step(replace(left, candidates=(), choice=0))
        return
    id, colour = _identity(session, scene, current)
    candidates = find_object(session.sam, prompts, id, colour)
    if not candidates:
        raise ValueError("Nothing was found there: try another place.")
    session.step(replace(scene, candidates=candidates, choice=0))


def _identity(session: Session, scene: Scene, current: Found | None) -> tuple[int, int]:
    """Id and colour of the object: its target's, or those that it has, or new ones."""
    target = scene.prompts.target
    if target is not None:
        return target.id, target.colour
    taken = {mask.id for mask in [*scene.found, *scene.kept]}
    if current is not None and current.id not in taken:
        return current.id, current.colour
    return next(session.ids), scene.next_colour()
