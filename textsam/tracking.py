"""Words on the frames of a video: the same thing keeps its number.

Two ways. ByteTrack: every frame is asked for the words, and boxes of following frames are joined by their overlap.
Masks: a frame is asked for the words now and then, and in between each object's last mask, with its word, is the prompt
of the next frame, as in SAM's interactive use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from textsam.files.images import RgbImage
from textsam.predictor import TextSam

if TYPE_CHECKING:
    import supervision as sv

# Detections of at least this share of the threshold may continue a track, but not start one.
CONTINUES = 0.5

# ByteTrack remembers a lost object for a second. Slower videos count as of this many frames per second, so that an
# object may be missed once.
SLOWEST = 2.0


class Tracker(Protocol):
    """One video; frames are given in order."""

    def __call__(self, frame: RgbImage) -> sv.Detections:
        """(H, W, 3) uint8 RGB -> objects as of `TextSam.predict`, with tracker_id (N,) int64, from 1."""

    def replay(self, found: sv.Detections) -> None:
        """Take a frame's objects as they were given for it in a former run, without looking at it."""


class ByteTracking:
    """Every frame is asked; ByteTrack (of the `trackers` package), one for each text, joins boxes.

    Args:
        texts: what to find, one text or several.
        frame_rate: frames per second.
        threshold: least confidence of a new object; None: the model's own.
        negative_texts: as in `TextSam.predict`.
    Raises:
        ImportError: the `video` extra is not installed.
    """

    def __init__(
        self,
        sam: TextSam,
        texts: str | Sequence[str],
        *,
        frame_rate: float = 30.0,
        threshold: float | None = None,
        negative_texts: str | Sequence[str] = (),
    ) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ImportError('ByteTrack needs trackers: pip install "textsam[video]", or track by masks.') from error
        self.sam, self.texts, self.negative_texts = sam, _listed(texts), _listed(negative_texts) or None
        self.thresholds = _thresholds(sam, self.texts, threshold)
        only_sure = threshold is None and sam.network.config.text_trained and not _levels(sam, self.texts)
        self.share_of_best = sam.text_options.share_of_best if only_sure else 0.0
        self._trackers = [
            ByteTrackTracker(
                frame_rate=max(frame_rate, SLOWEST),
                track_activation_threshold=least,
                high_conf_det_threshold=least,
                minimum_consecutive_frames=1,
            )
            for least in self.thresholds
        ]
        self._given = 0

    def __call__(self, frame: RgbImage) -> sv.Detections:
        lowest = CONTINUES * min(self.thresholds, default=0.0)
        found = self.sam.predict(frame, text=self.texts, negative_text=self.negative_texts, threshold=lowest)
        enough = CONTINUES * np.array(self.thresholds)
        return self._number(found[found.confidence >= enough[found.class_id]])

    def replay(self, found: sv.Detections) -> None:
        """The boxes that belonged to a track are all that the trackers remember of a frame."""
        expected = found.tracker_id
        numbered = self._number(found[:])
        if sorted(numbered.tracker_id.tolist()) != sorted(expected.tolist()):
            raise ValueError("The records of the frames do not fit this tracker; begin anew, with --overwrite.")

    def _number(self, found: Any) -> Any:
        import supervision as sv

        asked = enumerate(zip(self._trackers, self.thresholds, strict=True))
        parts = [self._update(tracker, least, found[found.class_id == i]) for i, (tracker, least) in asked]
        parts = [part for part in parts if len(part)]
        if parts:
            return sv.Detections.merge(parts)
        none = found[:0]
        none.tracker_id = np.zeros(0, np.int64)
        return none

    def _update(self, tracker: Any, least: float, found: Any) -> Any:
        """The detections that belong to a track. A new one has its number at once, not from its second frame on.

        What `TextSam.predict` leaves out as faint may continue a track, too, but not start one.
        """
        faint = found.confidence < self.share_of_best * found.confidence.max(initial=0)
        found.data["own_confidence"] = found.confidence
        found.confidence = np.where(faint, np.minimum(found.confidence, least - 1e-6), found.confidence)
        updated = tracker.update(found)
        if not len(updated):
            return updated
        new = np.flatnonzero((updated.tracker_id == -1) & (updated.confidence >= least))
        # In the order in which the tracker came upon the detections that began them.
        begun = [track for track in tracker.tracks if track.tracker_id == -1]
        for row, track in zip(new, begun, strict=True):
            self._given += 1
            track.tracker_id = updated.tracker_id[row] = self._given
        updated.confidence = updated.data.pop("own_confidence")
        return updated[updated.tracker_id > 0]


class MaskTracking:
    """The last mask of an object is the prompt of the next frame.

    Args:
        texts, threshold, negative_texts: as `ByteTracking`.
        ask_every: frames from one asking for the words, which finds new objects, to the next; while nothing is
            followed, every frame is asked.
        iou_threshold: an object that is asked for is one that is followed when their masks' IoU is at least this.
    Raises:
        ValueError: levels of written text, which are read and not asked for with masks; or ask_every below 1.
    """

    def __init__(
        self,
        sam: TextSam,
        texts: str | Sequence[str],
        *,
        threshold: float | None = None,
        negative_texts: str | Sequence[str] = (),
        ask_every: int = 10,
        iou_threshold: float = 0.3,
    ) -> None:
        if ask_every < 1:
            raise ValueError(f"Expected ask_every of at least 1 frame, got {ask_every}.")
        levels = _levels(sam, _listed(texts))
        if levels:
            raise ValueError(
                f"Expected texts that masks can follow, got {levels[0]!r}, a level of written text, which is read anew "
                "on every frame: use ByteTracking, or --track bytetrack."
            )
        self.sam, self.texts, self.negative_texts = sam, _listed(texts), _listed(negative_texts) or None
        self.asked_from, self.threshold = threshold, _threshold(sam, threshold)
        self.ask_every, self.iou_threshold = ask_every, iou_threshold
        self._followed: Any = None
        self._frames = self._given = 0

    def __call__(self, frame: RgbImage) -> sv.Detections:
        self.sam.set_image(frame)
        followed = self._follow()
        if self._frames % self.ask_every == 0 or followed is None or not len(followed):
            asked = self.sam.predict(
                text=self.texts, negative_text=self.negative_texts, threshold=self.asked_from, return_logits=True
            )
            followed = self._join(followed, asked)
        self._frames += 1
        self._followed = followed
        result = followed[:]
        result.data = {key: value for key, value in followed.data.items() if key != "low_res_logits"}
        return result  # type: ignore[no-any-return]

    def replay(self, found: sv.Detections) -> None:
        """Of the last frame the masks are what the next one is asked with, in the place of their logits."""
        self._frames += 1
        self._followed = found[:]
        self._given = max(self._given, int(found.tracker_id.max(initial=0)))

    def _follow(self) -> Any:
        """The objects of the last frame in this one, without those that are gone."""
        before = self._followed
        if before is None or not len(before):
            return before
        names = [str(name) for name in before.data["class_name"]]
        masks = before.data.get("low_res_logits", before.mask)
        now = self.sam.predict(text=names, mask_input=masks, return_logits=True)
        now.class_id, now.tracker_id = before.class_id, before.tracker_id
        return now[(now.confidence >= CONTINUES * self.threshold) & now.mask.any(axis=(1, 2))]

    def _join(self, followed: Any, asked: Any) -> Any:
        """What was asked for takes the number of what was followed; an object that was not found again is kept."""
        import supervision as sv

        asked.tracker_id = np.zeros(len(asked), np.int64)
        kept = []
        if followed is not None and len(followed):
            overlaps = sv.mask_iou_batch(followed.mask, asked.mask) if len(asked) else np.zeros((len(followed), 0))
            overlaps = overlaps * (followed.class_id[:, None] == asked.class_id)
            rows, columns = linear_sum_assignment(overlaps, maximize=True)
            same = overlaps[rows, columns] >= self.iou_threshold
            asked.tracker_id[columns[same]] = followed.tracker_id[rows[same]]
            kept = [followed[np.setdiff1d(np.arange(len(followed)), rows[same])]]
        new = asked.tracker_id == 0
        asked.tracker_id[new] = self._given + 1 + np.arange(new.sum())
        self._given += int(new.sum())
        parts = [part for part in (asked, *kept) if len(part)]
        return sv.Detections.merge(_common(parts)) if parts else asked


def _common(parts: list[Any]) -> list[Any]:
    """With the entries of `data` that mean the same in both ways of asking and that all parts have."""
    keys = ("class_name", "predicted_iou", "stability_score", "presence", "low_res_logits")
    shared = [key for key in keys if all(key in part.data for part in parts)]
    for part in parts:
        part.data = {key: part.data[key] for key in shared}
    return parts


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _levels(sam: TextSam, texts: Sequence[str]) -> list[str]:
    """The levels of written text among the texts, if this model reads any."""
    return sam.text_reader.levels_asked(texts) if sam.text_reader is not None else []


def _thresholds(sam: TextSam, texts: Sequence[str], threshold: float | None) -> list[float]:
    """Of each text, the least confidence of a new object; levels of written text have their own."""
    levels = _levels(sam, texts)
    if threshold is None and sam.text_reader is not None and levels:
        return [sam.text_reader.options.least_score(level) for level in levels]
    return [_threshold(sam, threshold)] * len(texts)


def _threshold(sam: TextSam, threshold: float | None) -> float:
    options = sam.text_options if sam.network.config.text_trained else sam.ranking_options
    return options.confidence_threshold if threshold is None else threshold
