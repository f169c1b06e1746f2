"""What each frame of a video holds, one JSON line a frame, written as the video goes by, so that a run can go on.

The first line says what the run is of; a line that a crash cut off counts as never written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from textsam.files.export import SCORES, image_record
from textsam.files.images import RgbImage
from textsam.files.rle import decode_mask
from textsam.prompting.detections import to_detections

if TYPE_CHECKING:
    import supervision as sv


class FrameRecords:
    """A file of the tracked objects of a video's frames.

    Args:
        path: made where there is none; what it holds of the same run is kept, and `replayed` gives it back.
        identity: JSON values that, together, determine the results.
    Raises:
        ValueError: the file is of another run, or none of ours.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        first = (json.dumps(identity, allow_nan=False) + "\n").encode()
        self.count, end = 0, 0
        if path.exists():
            with path.open("rb") as file:
                header = file.readline()
                if not first.startswith(header):  # of which a crash may have left a part, or nothing
                    raise ValueError(
                        f"{path} is no record of this video with these options; give another name, or --overwrite."
                    )
                end = len(header) if header == first else 0
                for line in file:
                    if not _is_whole(line, self.count):
                        break
                    self.count, end = self.count + 1, end + len(line)
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(end)
        if not end:
            self._file.write(first)
        self._file.seek(0, 2)

    def replayed(self) -> Iterator[sv.Detections]:
        """The objects of each frame that was recorded when the file was opened, in order."""
        with self.path.open("rb") as file:
            file.readline()
            for _ in range(self.count):
                yield _detections(json.loads(file.readline()))

    def add(self, frame: RgbImage, number: int, found: sv.Detections) -> None:
        """Writes the objects of one more frame, counted from 0."""
        record = image_record("", frame, found)
        for row, annotation in enumerate(record.annotations):
            ids = {"tracker_id": int(found.tracker_id[row]), "class_id": int(found.class_id[row])}
            # Not rounded: a tracker that goes on from here decides by it.
            annotation |= {**ids, "score": float(found.confidence[row])}
        line = {"frame": number, "height": record.height, "width": record.width, "annotations": record.annotations}
        self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _is_whole(line: bytes, number: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["frame"] == number
    except (ValueError, KeyError, TypeError):
        return False


def _detections(line: dict[str, Any]) -> sv.Detections:
    rows = line["annotations"]
    masks = [decode_mask(row["segmentation"]) for row in rows]
    keys = [key for key in SCORES if all(key in row for row in rows)]
    found = to_detections(
        np.array(masks, bool).reshape(-1, line["height"], line["width"]),
        confidence=np.array([row["score"] for row in rows], np.float32),
        class_id=np.array([row["class_id"] for row in rows], np.int64),
        class_names=[row["category_name"] for row in rows],
        data={key: np.array([row[key] for row in rows], np.float32) for key in keys},
    )
    found.tracker_id = np.array([row["tracker_id"] for row in rows], np.int64)
    return found
