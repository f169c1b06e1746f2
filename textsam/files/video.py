"""Frames of a video out, frames of another in, with the sound as it was. PyAV, which supervision brings, does the work.

The new file appears whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace

from textsam.files.atomic import umask
from textsam.files.images import RgbImage

# The first of these that PyAV was built with encodes.
ENCODERS = ("libx264", "mpeg4")


@dataclass(frozen=True)
class VideoFacts:
    """What a file says of its first video stream.

    Attributes:
        frames: how many there are, as the file says or as its duration suggests; None: unknown.
        frame_rate: frames per second, on average. has_sound: there is an audio stream.
    """

    frames: int | None
    frame_rate: float
    has_sound: bool


def read_facts(path: str | Path) -> VideoFacts:
    """
    Raises:
        FileNotFoundError: there is no such file. ValueError: it is not a video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = float(_rate(stream))
        frames = stream.frames or None
        if frames is None and stream.duration:
            frames = round(float(stream.duration * stream.time_base) * rate)
        elif frames is None and container.duration:
            frames = round(container.duration / av.time_base * rate)
        return VideoFacts(frames, rate, bool(container.streams.audio))


def rewrite_video(
    source: str | Path,
    out: str | Path,
    change: Callable[[RgbImage], RgbImage],
    *,
    sound: bool = True,
    on_frame: Callable[[], None] = lambda: None,
) -> int:
    """Writes a video whose frames are those of another, changed, at the same times; sound is copied, not encoded anew.

    Args:
        source: any file that FFmpeg's libraries read.
        out: its suffix says the container (.mp4, .mkv, .mov, .avi ...). Frames are H.264, or MPEG-4 in a PyAV without
            x264.
        change: (H, W, 3) uint8 RGB to the same size; frames come upright, in order.
        sound: False leaves the audio streams out.
    Returns:
        the number of frames.
    Raises:
        FileNotFoundError: no such file, or no folder for the new one.
        ValueError: not a video, damaged, without a frame, or the container cannot hold the sound.
    """
    source, out = Path(source), Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} for {out.name}.")
    if out.exists() and out.samefile(source):
        raise ValueError(f"Expected another file than the input to write to, got {out} for both.")
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem[:50]}-", suffix=out.suffix)
    os.close(handle)
    try:
        with _open(source) as reading:
            try:
                writing = av.open(temporary, "w")
            except (FFmpegError, ValueError) as error:
                raise ValueError(f"Expected a name like out.mp4 to write to, got {out.name}: {error}.") from error
            with writing:
                try:
                    count = _rewrite(reading, writing, out, change, sound, on_frame)
                except (FFmpegError, StopIteration) as error:
                    why = getattr(error, "strerror", None) or "it has no frame"
                    raise ValueError(f"{source} cannot be read to its end: {why}.") from error
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp makes private files
        os.replace(temporary, out)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return count


def _rewrite(
    reading: Any,
    writing: Any,
    out: Path,
    change: Callable[[RgbImage], RgbImage],
    sound: bool,
    on_frame: Callable[[], None],
) -> int:
    """Packets are taken in the file's order, so that nothing has to wait for the end."""
    stream = reading.streams.video[0]
    stream.thread_type = "AUTO"
    with _open(reading.name) as beginning:  # opened twice, as some files, such as .h264, cannot go back
        first = next(beginning.decode(video=0))
    # All streams must be there before the first packet is written.
    encoder = _add_encoder(writing, stream, first)
    unit = encoder.codec_context.time_base
    copies = {}
    for audio in reading.streams.audio if sound else ():
        try:
            copies[audio.index] = writing.add_stream_from_template(audio)
        except (FFmpegError, ValueError) as error:
            raise ValueError(f"{out.suffix} cannot hold the sound ({audio.name}): write .mkv, or no sound.") from error
    step = max(round(1 / (_rate(stream) * unit)), 1)
    count, last = 0, -step
    for packet in reading.demux(stream, *(reading.streams.audio if sound else ())):
        if packet.stream.index in copies:
            if packet.dts is not None:  # the last one only says that it is the last
                packet.stream = copies[packet.stream.index]
                writing.mux(packet)
            continue
        for frame in packet.decode():
            # Some files, such as H.264 in AVI, do not say when a frame is shown, or say it in the wrong order.
            place = None if frame.pts is None else round(frame.pts * frame.time_base / unit)
            last = last + step if place is None or (count and place <= last) else place
            writing.mux(encoder.encode(_at_time(change(_upright(frame)), last, unit)))
            count += 1
            on_frame()
    writing.mux(encoder.encode())
    return count


def _add_encoder(writing: Any, stream: Any, first: Any) -> Any:
    """A stream for frames like the first one, once upright."""
    name = next(name for name in ENCODERS if name in av.codecs_available)
    try:
        encoder = writing.add_stream(name, rate=_rate(stream))
    except ValueError as error:
        raise ValueError(f"Expected .mp4, .mkv, .mov or .avi to write to, which hold {name}: {error}.") from error
    # H.264 halves the colours' sides, so these must be even.
    encoder.height, encoder.width = (side + side % 2 for side in _upright(first).shape[:2])
    encoder.pix_fmt = "yuv420p"
    context = encoder.codec_context
    aspect = stream.sample_aspect_ratio  # of pixels that are not square
    if aspect:
        context.sample_aspect_ratio = 1 / aspect if _quarter_turns(first) % 2 else aspect
    # What libswscale makes of RGB; where nothing is said, players take large frames to be of BT.709.
    context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
    context.color_primaries, context.color_trc = stream.codec_context.color_primaries, stream.codec_context.color_trc
    context.time_base = stream.time_base  # frames keep their times, also at a variable rate
    if writing.format.name == "avi":
        context.time_base = 1 / _rate(stream)  # by which AVI tells its rate
        context.max_b_frames = 0  # AVI has no times by which their order could be restored
    if name == "mpeg4":
        context.bit_rate = 4 * encoder.height * encoder.width
    return encoder


def _rate(stream: Any) -> Fraction:
    """Frames per second."""
    return stream.average_rate or Fraction(25)


def _upright(frame: Any) -> RgbImage:
    """Phones store frames as the sensor lies, and beside them by how much to turn them."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=_quarter_turns(frame)))


def _quarter_turns(frame: Any) -> int:
    return round(frame.rotation / 90) % 4


def _at_time(pixels: RgbImage, pts: int, time_base: Fraction) -> av.VideoFrame:
    height, width = (side % 2 for side in pixels.shape[:2])
    new = av.VideoFrame.from_ndarray(np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="edge"), format="rgb24")
    new.pts, new.time_base = pts, time_base
    return new


def _open(path: str | Path) -> Any:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        container = av.open(str(path))
    except (FFmpegError, ValueError) as error:
        raise ValueError(f"{path} is not a video that can be read ({error}).") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path} has no video stream.")
    return container
