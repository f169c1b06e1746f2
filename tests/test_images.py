"""Every kind of picture that a user may hand over: the right pixels, or one clear sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from textsam.files.images import IMAGE_SUFFIXES, list_images, read_image, upright

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_16_bit_rgb(value: int) -> bytes:
    """A 2x1 PNG with 16 bits per colour, which Pillow cannot write."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    row = b"\0" + struct.pack(">6H", *[value] * 6)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A PNG header that declares 60000x60000 pixels."""
    data = bytearray(encode(Image.new("RGB", (1, 1))))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def two_pixels(mode: str, *values: object) -> Image.Image:
    image = Image.new(mode, (2, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: display rotated by 90 degrees clockwise
    return exif


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    if transparent:
        image.info["transparency"] = 1
    return image


GOOD_FILES = {
    "rgb": (encode(two_pixels("RGB", RED, GREEN)), [[RED, GREEN]]),
    "gray": (encode(two_pixels("L", 0, 200)), [[(0,) * 3, (200,) * 3]]),
    "one bit": (encode(two_pixels("1", 0, 1)), [[(0,) * 3, WHITE]]),
    "one pixel": (encode(Image.new("RGB", (1, 1), RED)), [[RED]]),
    "palette": (encode(palette(False)), [[RED, GREEN]]),
    "palette, transparent": (encode(palette(True)), [[RED, WHITE]]),
    "alpha on white": (encode(two_pixels("RGBA", (*RED, 255), (0, 0, 0, 51))), [[RED, (204,) * 3]]),
    "gray with alpha": (encode(two_pixels("LA", (7, 255), (7, 0))), [[(7,) * 3, WHITE]]),
    "16 bit gray": (encode(two_pixels("I;16", 65535, 25700)), [[WHITE, (100,) * 3]]),
    "16 bit colour": (png_16_bit_rgb(0x6464), [[(100,) * 3] * 2]),
    "32 bit float tiff": (encode(two_pixels("F", 1.0, 0.4), "TIFF"), [[WHITE, (102,) * 3]]),
    "cmyk": (encode(two_pixels("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)), "TIFF"), [[RED, GREEN]]),
    "exif rotation": (encode(two_pixels("RGB", RED, GREEN), exif=rotated()), [[RED], [GREEN]]),
    "animation": (
        encode(Image.new("RGB", (1, 1), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (1, 1), GREEN)]),
        [[RED]],
    ),
    "webp": (encode(two_pixels("RGB", RED, GREEN), "WEBP", lossless=True), [[RED, GREEN]]),
}


@pytest.mark.parametrize("form", ["path", "str", "bytes", "file", "pil"])
@pytest.mark.parametrize("case", GOOD_FILES)
def test_good_files(case: str, form: str, tmp_path: Path) -> None:
    data, expected = GOOD_FILES[case]
    path = tmp_path / "picture.anything"
    path.write_bytes(data)
    if form == "pil":
        with Image.open(path) as opened:
            image = read_image(opened)
    else:
        image = read_image({"path": path, "str": str(path), "bytes": data, "file": io.BytesIO(data)}[form])
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.array(expected, np.uint8))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation(orientation: int) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    turned = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    flipped = pixels.transpose(1, 0, 2)
    turned |= {5: flipped, 6: flipped[:, ::-1], 7: flipped[::-1, ::-1], 8: flipped[::-1]}
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(pixels), kind, exif=exif)
        np.testing.assert_array_equal(read_image(data), turned.get(orientation, pixels))
        with Image.open(io.BytesIO(data)) as opened:
            np.testing.assert_array_equal(np.asarray(upright(opened)), turned.get(orientation, pixels))


def test_exif_that_cannot_be_written_anew() -> None:
    """Orientation 6, and the camera's make as a float, which is a text."""
    tags = struct.pack("<HHIHHHHIf", 0x0112, 3, 1, 6, 0, 0x010F, 11, 1, 0.5)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    assert read_image(encode(Image.new("RGB", (16, 8)), "JPEG", exif=exif)).shape == (16, 8, 3)


def test_jpeg_cmyk_is_not_inverted(tmp_path: Path) -> None:
    path = tmp_path / "ink.jpg"
    path.write_bytes(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(read_image(path).astype(int) - np.array(RED)).max() <= 3


def test_long_strip() -> None:
    strip = np.zeros((10, 20000, 3), np.uint8)
    strip[3, 19999] = RED
    np.testing.assert_array_equal(read_image(encode(Image.fromarray(strip))), strip)


RGB = np.array([[RED, GREEN]], np.uint8)
GOOD_ARRAYS = {
    "rgb": (RGB, RGB),
    "gray": (np.array([[9, 200]], np.uint8), [[(9,) * 3, (200,) * 3]]),
    "gray with axis": (np.array([[[9], [200]]], np.uint8), [[(9,) * 3, (200,) * 3]]),
    "rgba": (np.array([[[*RED, 255], [0, 0, 0, 0]]], np.uint8), [[RED, WHITE]]),
    "16 bit": (np.array([[65535, 257 * 7, 0]], np.uint16), [[WHITE, (7,) * 3, (0,) * 3]]),
    "float": (RGB / 255, RGB),
    "float16": (np.array([[0, 1]], np.float16), [[(0,) * 3, WHITE]]),
    "read-only view": (np.broadcast_to(RGB, (2, 2, 3))[::-1], [[RED, GREEN]] * 2),
    "tensor chw": (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
    "tensor hwc": (torch.from_numpy(RGB), RGB),
    "tensor gray": (torch.tensor([[9, 200]], dtype=torch.uint8), [[(9,) * 3, (200,) * 3]]),
    "tensor float with grad": ((torch.from_numpy(RGB) / 255).permute(2, 0, 1).requires_grad_(), RGB),
    "tensor bfloat16": ((torch.from_numpy(RGB) / 255).permute(2, 0, 1).bfloat16(), RGB),
}


@pytest.mark.parametrize("case", GOOD_ARRAYS)
def test_good_arrays(case: str) -> None:
    source, expected = GOOD_ARRAYS[case]
    np.testing.assert_array_equal(read_image(source), np.array(expected, np.uint8))


def test_rgb_array_is_not_copied() -> None:
    assert read_image(RGB) is RGB


PHOTO = encode(Image.effect_noise((64, 64), 80))
JPEG = encode(Image.effect_noise((64, 64), 80), "JPEG")
BAD = {
    "missing": ("no/such/file.png", FileNotFoundError, "no file no/such/file.png"),
    "address": ("https://example.org/cat.png", FileNotFoundError, "download the picture first"),
    "folder": (".", IsADirectoryError, "is a folder"),
    "empty": (b"", ValueError, "is empty"),
    "text": (b"hello, this is no picture" * 9, ValueError, "not a picture"),
    "executable": (b"\x7fELF" + bytes(500), ValueError, "not a picture"),
    "truncated png": (PHOTO[: len(PHOTO) // 2], ValueError, "truncated or damaged"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], ValueError, "truncated or damaged"),
    "header only": (PHOTO[:33], ValueError, "truncated or damaged|not a picture|cannot be read"),
    "bomb": (bomb(), ValueError, "pixels"),
    "32 bit too large": (encode(two_pixels("I", 70000, 1), "TIFF"), ValueError, "from 1 to 70000"),
    "text file object": (io.StringIO("x"), TypeError, "binary mode"),
    "none": (None, TypeError, "not NoneType"),
    "list": ([[1, 2]], TypeError, "not list"),
    "one axis": (np.zeros(5, np.uint8), ValueError, r"not \(5,\)"),
    "batch": (np.zeros((2, 4, 4, 3), np.uint8), ValueError, "predict_batch"),
    "channels first": (np.zeros((3, 40, 50), np.uint8), ValueError, "transpose"),
    "two channels": (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(4, 4, 2\)"),
    "no rows": (np.zeros((0, 4, 3), np.uint8), ValueError, "at least one pixel"),
    "int64": (np.zeros((4, 4, 3), np.int64), TypeError, "int64"),
    "strings": (np.array([["a"]]), TypeError, "uint8"),
    "float 0..255": (np.full((4, 4, 3), 200.0), ValueError, "200"),
    "negative float": (np.full((4, 4), -0.5), ValueError, "-0.5"),
    "nan": (np.array([[0.0, np.nan]]), ValueError, "NaN"),
    "infinite tensor": (torch.tensor([[0.0, float("inf")]]), ValueError, "NaN or infinite"),
    "tensor batch": (torch.zeros(1, 3, 4, 4), ValueError, "predict_batch"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    source, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        read_image(source)


@pytest.mark.parametrize("data", [PHOTO, JPEG], ids=["png", "jpeg"])
def test_cut_anywhere_is_a_value_error_or_the_picture(data: bytes) -> None:
    whole = read_image(data)
    for length in range(0, len(data), 7):
        try:
            image = read_image(data[:length])
        except ValueError:
            continue
        np.testing.assert_array_equal(image, whole)  # only the end marker is missing


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of damaged metadata and reads on
def test_flipped_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for data in (PHOTO, JPEG, GOOD_FILES["animation"][0], GOOD_FILES["cmyk"][0], GOOD_FILES["webp"][0]):
        for _ in range(60):
            broken = bytearray(data)
            for position in rng.integers(len(data), size=4):
                broken[position] = rng.integers(256)
            try:
                image = read_image(bytes(broken))
            except ValueError:
                continue
            assert image.ndim == 3


def test_the_file_is_named_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(PHOTO[:200])
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_image(path)
    path.unlink()


def test_pixel_limit_can_be_set() -> None:
    assert read_image(PHOTO, max_pixels=64 * 64).shape == (64, 64, 3)
    with pytest.raises(ValueError, match=r"64x64 = 4,096 pixels, more than the limit of 4,095"):
        read_image(PHOTO, max_pixels=64 * 64 - 1)


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]
    with pytest.raises(NotADirectoryError):
        list_images(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        list_images(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No pictures"):
        list_images(tmp_path / "empty")
    assert ".jpeg" in IMAGE_SUFFIXES
