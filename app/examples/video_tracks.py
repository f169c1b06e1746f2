"""A video in which the cat keeps its number; the same as `textsam video pan.mp4 --text cat --out tracked.mp4`."""

# %% A camera that pans over a cat.
import av
import numpy as np
from skimage import data

import textsam
from textsam.files.export import draw_overlay
from textsam.files.video import rewrite_video
from textsam.tracking import MaskTracking

with av.open("pan.mp4", "w") as video:
    stream = video.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=8)
    stream.width, stream.height, stream.pix_fmt = 360, 260, "yuv420p"
    for step in range(4):
        pixels = np.ascontiguousarray(data.chelsea()[20:280, 10 * step : 10 * step + 360])
        video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    video.mux(stream.encode())

# %% Masks that prompt the next frame; `ByteTracking` asks every frame instead and joins boxes.
tracker = MaskTracking(textsam.load(), ["cat"])
numbers = []


def follow(frame: np.ndarray) -> np.ndarray:
    found = tracker(frame)
    numbers.append(found.tracker_id.tolist())
    return draw_overlay(frame, found)


count = rewrite_video("pan.mp4", "tracked.mp4", follow)
print(f"{count} frames, numbers {numbers}")
