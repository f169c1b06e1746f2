"""The page for programs: `/segment` and `/generate`, for `gradio_client`, plain HTTP and MCP.

Gradio makes the description that a program or an agent reads from the signatures and docstrings here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import numpy as np

from app.asking import everything_options, for_photo, parse_words
from app.components import extended
from app.limits import LIMITS, open_photo
from app.messages import ADDRESS, sentence
from textsam.files.export import draw_overlay, image_record
from textsam.predictor import TextSam


def _photo(self: gr.Image, payload: Any) -> str | None:
    """Its path, which Gradio has checked to be an upload's, or its data: URL, and no other address."""
    if payload is None or payload.path:
        return None if payload is None else payload.path
    if not (payload.url or "data:").startswith("data:"):
        raise gr.Error(ADDRESS, print_exception=False)
    return payload.url


def _words(self: gr.Textbox, payload: Any) -> str | None:
    """Also a list, which `TextSam.predict` takes for several words."""
    return ", ".join(map(str, payload)) if isinstance(payload, list) else gr.Textbox.preprocess(self, payload)


_PhotoFile = extended(gr.Image, preprocess=_photo)
_Words = extended(gr.Textbox, preprocess=_words)


def photo_file(**options: Any) -> gr.Image:
    """An image component that hands over the file as it came: reading it, and saying what is wrong, is the page's."""
    return _PhotoFile(type="filepath", **options)


def word_list(**options: Any) -> gr.Textbox:
    """A component for words that are divided by commas, or come as a list."""
    return _Words("", **options)


def number_lists(**options: Any) -> gr.JSON:
    """A component for lists of lists of numbers, with a type that clients and agents can read."""
    component = gr.JSON(**options)
    component.api_info = lambda: {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    component.example_payload = component.example_value = lambda: [[120, 80]]
    return component


class Endpoints:
    """The two functions.

    Args:
        sam: the loaded model; photos of programs are not kept.
    """

    def __init__(self, sam: TextSam) -> None:
        self.sam = sam

    def segment(
        self,
        image: str,
        text: str = "",
        points: list[list[float]] | None = None,
        boxes: list[list[float]] | None = None,
        negative_text: str = "",
        threshold: float = 0.0,
        multimask: bool = False,
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Segment objects in a photo by words, points and boxes.

        With text alone every instance of every word is found. With points or boxes, one object is found for all points
        together, or for each box; text then says what the object is. All coordinates are pixels of the photo as it is
        returned in "width" and "height", which is the photo itself unless a side was longer than 1600 pixels.

        Args:
            image: The photo: JPEG, PNG, WebP, TIFF, BMP or GIF, at most 20 MB. Uploaded or as a data: URL; nothing is fetched from an http address.
            text: Words to look for, divided by commas, such as "cat, dog". Leave it empty with points or boxes alone.
            points: Clicks on one object: a list of [x, y, label], label 1 on the object and 0 beside it. Leave it out otherwise.
            boxes: A list of boxes [x1, y1, x2, y2], one object each. With points at most one box.
            negative_text: Words of things that must not be taken for the text, divided by commas. With text alone only.
            threshold: Lowest confidence from 0 to 1. With text alone, 0 stands for the model's default.
            multimask: With points or boxes: three masks (whole, part, subpart) for each object instead of one.

        Returns:
            JSON with "width", "height" and "masks", a list of objects with "name", "confidence", "box" [x1, y1, x2, y2], "area" in pixels and "segmentation", the mask as COCO compressed RLE; then a picture with the masks drawn on it.
        """  # noqa: E501
        with _told():
            return self._segment(image, text, points, boxes, negative_text, threshold, multimask)

    def generate(self, image: str, points_per_side: int = 12) -> tuple[dict[str, Any], np.ndarray]:
        """Segment everything in a photo: masks of all objects and parts, without names, the best first.

        Args:
            image: The photo: JPEG, PNG, WebP, TIFF, BMP or GIF, at most 20 MB. Uploaded or as a data: URL; nothing is fetched from an http address.
            points_per_side: How fine to look, from 1 to 32: the model is asked at this many points on each side, and takes time in proportion to their square.

        Returns:
            JSON with "width", "height" and "masks", a list of objects with "name", "confidence", "box" [x1, y1, x2, y2], "area" in pixels and "segmentation", the mask as COCO compressed RLE; then a picture with the masks drawn on it.
        """  # noqa: E501
        with _told():
            if points_per_side is None or not 1 <= points_per_side <= 32:
                raise ValueError(f"Expected points_per_side from 1 to 32, got {points_per_side}.")
            photo = open_photo(_given(image))
            options = {**everything_options(self.sam), "points_per_side": int(points_per_side)}
            return self._answer(photo, for_photo(self.sam, photo).generate(**options))

    def _segment(
        self, image: Any, text: Any, points: Any, boxes: Any, negative_text: Any, threshold: Any, multimask: Any
    ) -> tuple[dict[str, Any], np.ndarray]:
        words, unwanted = parse_words(text or ""), parse_words(negative_text or "")
        asked: dict[str, Any] = {"text": list(words) or None, "negative_text": list(unwanted) or None}
        if points:
            asked["points"], asked["point_labels"] = _points(points)
        if boxes:
            if len(boxes) > LIMITS.points:
                raise ValueError(f"Expected at most {LIMITS.points} boxes, got {len(boxes)}.")
            asked["boxes"] = boxes
        if points and boxes and len(boxes) > 1:
            raise ValueError(f"Points belong to one object, and here are {len(boxes)} boxes: give one box.")
        if (points or boxes) and len(words) > 1:
            raise ValueError(f"With points or boxes one text says what the object is, here are {len(words)}.")
        if not words and not points and not boxes:
            raise ValueError("Expected text, points or boxes, got none: say what to segment, or call generate.")
        photo = open_photo(_given(image))
        sam = for_photo(self.sam, photo)
        return self._answer(photo, sam.predict(**asked, threshold=threshold or None, multimask_output=bool(multimask)))

    def _answer(self, photo: Any, detections: Any) -> tuple[dict[str, Any], np.ndarray]:
        if len(detections) > LIMITS.masks:
            detections = detections[(-detections.confidence).argsort(kind="stable")[: LIMITS.masks]]
        record = image_record("photo", photo, detections)
        masks = []
        for annotation in record.annotations:
            x, y, width, height = annotation["bbox"]
            masks.append(
                {
                    "name": annotation["category_name"],
                    "confidence": annotation["score"],
                    "box": [x, y, x + width, y + height],
                    "area": annotation["area"],
                    "segmentation": annotation["segmentation"],
                }
            )
        return {"width": record.width, "height": record.height, "masks": masks}, draw_overlay(photo, detections)


def _points(points: Any) -> tuple[list[list[float]], list[float]]:
    if len(points) > LIMITS.points:
        raise ValueError(f"Expected at most {LIMITS.points} points, got {len(points)}.")
    if any(not isinstance(point, list) or len(point) not in (2, 3) for point in points):
        raise ValueError("Expected points as [x, y] or [x, y, label], such as [[120, 80, 1]].")
    return [point[:2] for point in points], [point[2] if len(point) == 3 else 1 for point in points]


def _given(image: str | None) -> str:
    if not image:
        raise ValueError("Expected an image, got none.")
    return image


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a request goes to who made it, in one sentence; a traceback helps nobody there."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise gr.Error(sentence(error), print_exception=False) from None
