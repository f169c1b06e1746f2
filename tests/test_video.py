"""Videos: frames, times and sound survive, and tracked objects keep their numbers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from miniatures import HashedWords, mobile_miniature
from typer.testing import CliRunner

from textsam.commands.cli import app
from textsam.files.frame_records import FrameRecords
from textsam.files.video import read_facts, rewrite_video
from textsam.predictor import TextSam
from textsam.prompting.detections import to_detections
from textsam.tracking import ByteTracking, MaskTracking

CODEC = "libx264" if "libx264" in av.codecs_available else "mpeg4"
TIMES = [0, 1, 2, 5, 6, 11]  # in frames: the rate varies


def write_video(path: Path, frames: list[np.ndarray], times: list[int] | None = None, sound: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODEC, rate=12)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 12)
        tones = container.add_stream("aac", rate=16000) if sound else None
        if tones is not None:
            tones.layout = "mono"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times or range(len(frames)))[number], Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tones is not None:
            wave = np.sin(np.arange(16000) * 0.17) * 8000
            tone = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
            tone.sample_rate, tone.pts = 16000, 0
            container.mux(tones.encode(tone))
            container.mux(tones.encode())
    return path


def squares(count: int = 6, size_hw: tuple[int, int] = (64, 96)) -> list[np.ndarray]:
    """A red square that goes right, and a blue one that goes left, on grey."""
    frames = []
    for step in range(count):
        frame = np.full((*size_hw, 3), 128, np.uint8)
        frame[8:24, 4 + 4 * step : 24 + 4 * step] = (220, 20, 20)
        frame[36:56, 70 - 4 * step : 90 - 4 * step] = (20, 20, 220)
        frames.append(frame)
    return frames


def sound_of(path: Path) -> tuple[list[float], list[bytes]]:
    """Times, in seconds, and contents of the packets of sound."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.dts is not None]
        return [float(packet.pts * packet.time_base) for packet in packets], [bytes(packet) for packet in packets]


def decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.time for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_times_and_sound(tmp_path: Path, suffix: str) -> None:
    source = write_video(tmp_path / "in.mp4", squares(), TIMES, sound=True)
    seen: list[np.ndarray] = []

    def invert(frame: np.ndarray) -> np.ndarray:
        seen.append(frame)
        return 255 - frame

    assert rewrite_video(source, tmp_path / f"out{suffix}", invert) == 6
    times, frames = decoded(tmp_path / f"out{suffix}")
    old_times, old_frames = decoded(source)
    # Matroska knows no time below zero, where AAC begins: there all streams move together.
    shift = 1024 / 16000 if suffix == ".mkv" else 0
    np.testing.assert_allclose(np.array(times) - shift, old_times, atol=2e-3)
    np.testing.assert_array_equal(seen, old_frames)
    for new, old in zip(frames, old_frames, strict=True):
        assert abs(new.astype(int) - (255 - old.astype(int))).mean() < 6
    (starts, sound), (old_starts, old_sound) = sound_of(tmp_path / f"out{suffix}"), sound_of(source)
    assert sound == old_sound
    assert len(sound) > 10
    np.testing.assert_allclose(np.array(starts) - shift, old_starts, atol=2e-3)
    facts = read_facts(tmp_path / "out.mp4") if suffix == ".mp4" else None
    assert facts is None or (facts.frames == 6 and facts.has_sound)
    rewrite_video(source, tmp_path / "mute.mp4", invert, sound=False)
    assert not read_facts(tmp_path / "mute.mp4").has_sound


@pytest.mark.parametrize(
    ("name", "out"), [("in.mp4", "out.avi"), ("in.avi", "out.mp4"), ("in.avi", "out.avi"), ("in.h264", "out.mp4")]
)
def test_frames_stay_in_order_where_a_file_does_not_say_their_times(tmp_path: Path, name: str, out: str) -> None:
    if name == "in.h264" and CODEC != "libx264":
        pytest.skip("this PyAV cannot encode H.264")
    brighter = [np.full((64, 96, 3), 20 * step + 10, np.uint8) for step in range(12)]
    source = write_video(tmp_path / name, brighter)
    assert rewrite_video(source, tmp_path / out, lambda frame: frame) == 12
    times, frames = decoded(tmp_path / out)
    assert (np.diff(times) > 0).all()
    np.testing.assert_allclose([frame.mean() for frame in frames], [frame.mean() for frame in brighter], atol=4)


def test_avi_tells_the_rate(tmp_path: Path) -> None:
    """It has no times, and the fine ones of MP4 and Matroska are not its frames."""
    for name in ("in.mp4", "in.mkv"):
        source = write_video(tmp_path / name, squares(), TIMES)
        rewrite_video(source, tmp_path / "out.avi", lambda frame: frame)
        there, here = read_facts(source), read_facts(tmp_path / "out.avi")
        assert here.frame_rate == pytest.approx(there.frame_rate, abs=0.05)
        assert here.frames <= 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pixels_keep_their_shape_and_say_their_colours(tmp_path: Path, suffix: str) -> None:
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream(CODEC, rate=12)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        stream.codec_context.colorspace = Colorspace.ITU709
        for pixels in squares():
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
    rewrite_video(tmp_path / "wide.mp4", tmp_path / f"out{suffix}", lambda frame: frame)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
        assert next(container.decode(video=0)).colorspace == Colorspace.ITU601
    for new, old in zip(decoded(tmp_path / f"out{suffix}")[1], squares(), strict=True):
        assert abs(new.astype(int) - old).mean() < 3


def test_odd_sides_are_filled_up(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", squares())
    rewrite_video(source, tmp_path / "out.mp4", lambda frame: frame[:63, :95])
    assert decoded(tmp_path / "out.mp4")[1][0].shape == (64, 96, 3)


def test_nothing_half_written(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", squares())
    (tmp_path / "out.mp4").write_bytes(b"old")

    def fail(frame: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite_video(source, tmp_path / "out.mp4", fail)
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("nowhere.mp4", "out.mp4", "no file .*nowhere.mp4"),
        ("words.mp4", "out.mp4", "words.mp4 is not a video"),
        ("half.mkv", "out.mp4", "half.mkv (is not a video|cannot be read to its end)"),
        ("in.mp4", "in.mp4", "another file than the input"),
        ("in.mp4", "deep/out.mp4", "no folder .*deep for out.mp4"),
        ("in.mp4", "out.words", "Expected a name like out.mp4"),
        ("in.mp4", "out.webm", r"Expected \.mp4, \.mkv, \.mov or \.avi"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, source: str, out: str, message: str) -> None:
    whole = write_video(tmp_path / "in.mp4", squares())
    (tmp_path / "words.mp4").write_text("words")
    (tmp_path / "half.mkv").write_bytes(whole.read_bytes()[:300])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        rewrite_video(tmp_path / source, tmp_path / out, lambda frame: frame)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


class Colours(TextSam):
    """Finds the red and the blue square by their pixels, so that the truth of tracking is known."""

    def __init__(self) -> None:
        super().__init__(mobile_miniature(), HashedWords())
        self.frame = np.zeros((1, 1, 3), np.uint8)
        self.confident = 0.9
        self.asked = 0

    def set_image(self, image: np.ndarray) -> None:
        self.frame = image

    def predict(self, image=None, text=None, mask_input=None, threshold=None, return_logits=False, **rest):
        frame = self.frame if image is None else image
        masks = {"red": frame[..., 0] > 180, "blue": frame[..., 2] > 180}
        masks = {name: mask & (frame.min(axis=2) < 90) for name, mask in masks.items()}
        self.asked += mask_input is None
        wanted = [name for name in text if mask_input is not None or masks[name].any()]
        wanted = [name for name in wanted if self.confident >= (threshold or 0)]
        logits = np.zeros((len(wanted), 4, 4), np.float32)
        data = {"predicted_iou": np.full(len(wanted), 0.9), "low_res_logits": logits}
        return to_detections(
            np.array([masks[name] for name in wanted], bool).reshape(-1, *frame.shape[:2]),
            confidence=np.full(len(wanted), self.confident, np.float32),
            class_id=np.array([text.index(name) for name in wanted]),
            class_names=wanted,
            data=data,
        )


@pytest.mark.parametrize("tracking", [ByteTracking, MaskTracking])
def test_numbers_stay(tracking) -> None:
    sam = Colours()
    tracker = tracking(sam, ["blue", "red"], threshold=0.5)
    numbers: dict[str, set[int]] = {"red": set(), "blue": set()}
    for step, frame in enumerate(squares()):
        sam.confident = 0.3 if step == 3 else 0.9  # too little to begin, enough to go on
        found = tracker(frame)
        assert sorted(found.data["class_name"]) == ["blue", "red"], step
        for name, number, mask in zip(found.data["class_name"], found.tracker_id, found.mask, strict=True):
            numbers[name].add(int(number))
            np.testing.assert_array_equal(mask, frame[..., 0 if name == "red" else 2] > 180)
    assert sorted(map(sorted, numbers.values())) == [[1], [2]]
    assert tracker(np.full((64, 96, 3), 128, np.uint8)).tracker_id.shape == (0,)


@pytest.mark.parametrize("tracking", [ByteTracking, MaskTracking])
def test_what_comes_later_gets_the_next_number(tracking) -> None:
    sam = Colours()
    tracker = tracking(sam, ["red", "blue"], threshold=0.5, **({"ask_every": 2} if tracking is MaskTracking else {}))
    frames = squares()
    for frame in frames[:2]:
        frame[30:] = 128  # the blue one is not there yet
    found = [tracker(frame) for frame in frames]
    assert [each.tracker_id.tolist() for each in found[:2]] == [[1], [1]]
    assert dict(zip(found[-1].data["class_name"], found[-1].tracker_id, strict=True)) == {"red": 1, "blue": 2}
    if tracking is MaskTracking:
        assert sam.asked == 3  # of six frames


def test_masks_follow_nothing_until_something_is_found() -> None:
    tracker = MaskTracking(Colours(), ["red", "blue"], threshold=0.5, ask_every=3)
    frames = squares()
    for frame in frames[:3]:
        frame[:] = 128
    found = [tracker(frame) for frame in frames]
    assert [len(each) for each in found] == [0, 0, 0, 2, 2, 2]
    assert all(each.mask.shape[1:] == (64, 96) for each in found)
    assert [each.tracker_id.tolist() for each in found[2:4]] == [[], [1, 2]]


def test_masks_ask_every_frame_while_nothing_is_followed() -> None:
    sam = Colours()
    tracker = MaskTracking(sam, ["red", "blue"], threshold=0.5, ask_every=10)
    frames = squares()
    frames[0][:] = frames[3][:] = 128
    assert [len(tracker(frame)) for frame in frames] == [0, 2, 2, 0, 2, 2]
    assert sam.asked == 4  # not in the frames in which masks follow


class Unnamed(Colours):
    """As a model whose text prompt was not trained: what is followed has no presence. It can overlook things."""

    overlooked: str | None = None

    def predict(self, image=None, text=None, mask_input=None, **rest):
        found = super().predict(image, text, mask_input, **rest)
        if mask_input is not None:
            return found
        found.data["presence"] = found.confidence
        return found[found.data["class_name"] != self.overlooked]


def test_masks_go_on_where_asking_overlooks_something() -> None:
    sam = Unnamed()
    tracker = MaskTracking(sam, ["red", "blue"], threshold=0.5, ask_every=1)
    first, second = squares(2)
    assert tracker(first).tracker_id.tolist() == [1, 2]
    sam.overlooked = "red"
    found = tracker(second)
    assert dict(zip(found.data["class_name"], found.tracker_id, strict=True)) == {"red": 1, "blue": 2}
    assert sorted(found.data) == ["class_name", "predicted_iou"]


def test_one_string_is_one_text() -> None:
    for tracker in (ByteTracking, MaskTracking):
        made = tracker(Colours(), "red", negative_texts="blue")
        assert (made.texts, made.negative_texts) == (["red"], ["blue"])


def test_a_slow_video_may_miss_an_object_once() -> None:
    tracker = ByteTracking(Colours(), ["red", "blue"], frame_rate=0.5, threshold=0.5)
    frames = squares(4)
    frames[2][:] = 128
    assert [sorted(tracker(frame).tracker_id.tolist()) for frame in frames] == [[1, 2], [1, 2], [], [1, 2]]


def test_nothing_faint_begins_a_track() -> None:
    sam = Colours()
    sam.confident = 0.3
    tracker = ByteTracking(sam, ["red"], threshold=0.5)
    assert [len(tracker(frame)) for frame in squares()] == [0] * 6


class TwoSquares(Colours):
    """Both squares are "square", the blue one less surely."""

    def predict(self, image=None, text=None, threshold=None, **rest):
        masks = np.array([image[..., 0] > 180, image[..., 2] > 180])
        return to_detections(
            masks & (image.min(axis=2) < 90),
            confidence=np.array([0.9, self.confident], np.float32),
            class_id=np.zeros(2, np.int64),
            class_names=["square"] * 2,
            data={"predicted_iou": np.full(2, 0.9)},
        )


@pytest.mark.parametrize(("threshold", "begun"), [(None, 1), (0.45, 2)])
def test_what_predict_would_leave_out_may_only_continue_a_track(threshold: float | None, begun: int) -> None:
    sam = TwoSquares()
    assert sam.network.config.text_trained
    frames = squares()
    sam.confident = 0.6
    found = ByteTracking(sam, ["square"], threshold=threshold)(frames[0])
    assert found.confidence.tolist() == pytest.approx([0.9, 0.6][:begun])
    assert "own_confidence" not in found.data
    tracker = ByteTracking(sam, ["square"], threshold=threshold)
    for step, frame in enumerate(frames):
        sam.confident = 0.6 if step else 0.8
        found = tracker(frame)
        assert sorted(found.tracker_id.tolist()) == [1, 2]
        assert sorted(found.confidence.tolist()) == pytest.approx([sam.confident, 0.9])


@pytest.mark.parametrize("tracking", [ByteTracking, MaskTracking])
def test_a_run_goes_on_from_its_records(tracking, tmp_path: Path) -> None:
    """Also where the last line was cut off; ByteTrack gives exactly what it would have given without a break."""
    frames, path, identity = squares(8), tmp_path / "frames.jsonl", {"of": "this"}
    looked: list[int] = []

    def run(frame_count: int) -> list:
        sam = Colours()
        tracker = tracking(sam, ["blue", "red"], threshold=0.5)
        records = FrameRecords(path, identity)
        found = list(records.replayed())
        for each in found:
            tracker.replay(each)
        looked.append(frame_count - len(found))
        for step in range(len(found), frame_count):
            sam.confident = 0.3 if step in (3, 5) else 0.9
            found.append(tracker(frames[step]))
            records.add(frames[step], step, found[-1])
        records.close()
        return found

    whole = run(8)
    lines = path.read_bytes().splitlines(keepends=True)
    assert [json.loads(line).get("frame") for line in lines] == [None, *range(8)]
    for kept in (0, 4, 5, 6):
        path.write_bytes(b"".join(lines[: kept + 1]) + lines[kept + 1][:-5])
        again = run(8)
        assert looked[-1] == 8 - kept
        assert len(again) == 8
        for first, second in zip(whole, again, strict=True):
            assert first.tracker_id.tolist() == second.tracker_id.tolist()
            assert first.data["class_name"].tolist() == second.data["class_name"].tolist()
            np.testing.assert_array_equal(first.mask, second.mask)
            np.testing.assert_array_equal(first.confidence, second.confidence)
            np.testing.assert_array_equal(first.xyxy, second.xyxy)
        assert path.read_bytes() == b"".join(lines)
    with pytest.raises(ValueError, match="no record of this video"):
        FrameRecords(path, {"of": "that"})


@pytest.mark.parametrize("track", ["bytetrack", "mask"])
def test_command(track: str, in_tmp: Path, cat_photo: np.ndarray) -> None:
    frames = [np.ascontiguousarray(cat_photo[20:280, 8 * step : 8 * step + 360]) for step in range(3)]
    write_video(Path("in.mp4"), frames, sound=True)
    words = ["video", "in.mp4", "--text", "cat, dog", "--out", "out.mp4", "--track", track, "--device", "cpu"]
    words += ["--records", "frames.jsonl"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "1 cat, 0 dogs in 3 frames" in result.output
    times, made = decoded(Path("out.mp4"))
    assert times == decoded(Path("in.mp4"))[0]
    assert (made[2].astype(int) - frames[2])[100:200, 100:200, 0].mean() > 20  # tinted
    assert sound_of(Path("out.mp4")) == sound_of(Path("in.mp4"))
    lines = [json.loads(line) for line in Path("frames.jsonl").read_text().splitlines()]
    assert [[each["tracker_id"] for each in line["annotations"]] for line in lines[1:]] == [[1]] * 3
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert "out.mp4 exists" in again.output

    Path("out.mp4").unlink()
    text = Path("frames.jsonl").read_text()
    Path("frames.jsonl").write_text("".join(text.splitlines(keepends=True)[:3]))  # as if it had been stopped
    gone_on = CliRunner().invoke(app, words)
    assert gone_on.exit_code == 0, gone_on.output
    assert "2 frames of a former run" in gone_on.output
    assert "1 cat, 0 dogs in 3 frames" in gone_on.output
    if track == "bytetrack":
        assert Path("frames.jsonl").read_text() == text
        for first, second in zip(made, decoded(Path("out.mp4"))[1], strict=True):  # the encoder is not exact
            assert np.abs(first.astype(int) - second).mean() < 2
    for wrong in ("in.mp4", "new.mp4"):
        refused = CliRunner().invoke(app, [*words[:4], "--out", "new.mp4", "--records", wrong, "--overwrite"])
        assert refused.exit_code == 2
        assert "one of the videos" in refused.output


def test_records_cut_off_anywhere_go_on(tmp_path: Path) -> None:
    frame, path = squares(1)[0], tmp_path / "records.jsonl"
    found = to_detections(
        frame[None, :, :, 0] > 200,
        confidence=np.float32([0.5]),
        class_id=np.zeros(1, int),
        class_names=["red"],
        data={},
    )
    found.tracker_id = np.ones(1, np.int64)

    def record() -> int:
        records = FrameRecords(path, {"of": "this"})
        for number in range(records.count, 3):
            records.add(frame, number, found)
        records.close()
        return records.count

    assert record() == 0
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert record() == max(whole[:size].count(b"\n") - 1, 0)
        assert path.read_bytes() == whole
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="no record of this video"):
        record()


def test_command_keeps_the_records_where_there_is_no_folder(in_tmp: Path) -> None:
    write_video(Path("in.mp4"), squares())
    Path("frames.jsonl").write_text("of a long run")
    words = ["video", "in.mp4", "--text", "cat", "--out", "deep/out.mp4", "--records", "frames.jsonl", "--overwrite"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "There is no folder deep for out.mp4" in " ".join(result.output.replace("│", " ").split())
    assert Path("frames.jsonl").read_text() == "of a long run"
