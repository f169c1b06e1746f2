"""Reading pictures, well made or not, into one form: (H, W, 3) uint8 RGB, upright.

Whoever calls `read_image` afterwards need not think of colour modes, bit depths, transparency or camera rotation.
Colour profiles are not applied: pixel values are taken as sRGB, as SAM's own training did.
"""

import io
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

RgbImage = npt.NDArray[np.uint8]

MAX_IMAGE_PIXELS = 178_956_970
"""Files that declare more pixels are refused before they are decoded (a decompression bomb is a few kB on disk and
gigabytes in memory). Pillow refuses at the same figure; to go higher, raise `PIL.Image.MAX_IMAGE_PIXELS` as well."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# What Pillow's decoders raise on broken files, depending on format and on where the damage lies.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: Any, *, max_pixels: int | None = None) -> RgbImage:
    """One picture, whatever it comes as.

    Args:
        source: a path (str or Path); the bytes of a file, or an open binary file; a PIL image; a NumPy array
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; a PyTorch tensor (C, H, W) or (H, W, C). Arrays and
            tensors hold uint8 in [0, 255], uint16 in [0, 65535] or floats in [0, 1].
        max_pixels: files that declare more pixels are refused; default `MAX_IMAGE_PIXELS`.
    Returns:
        (H, W, 3) uint8 RGB, H and W at least 1. The EXIF rotation of files and PIL images has been applied;
        transparent pixels lie on white; 16 bits are scaled to 8 (not clipped); of an animation, the first frame.
        A uint8 RGB array is returned as it is, without a copy.
    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: the path cannot be opened.
        ValueError: empty, truncated, not a picture, too many pixels, a wrong shape, or values out of range.
        TypeError: a kind of object or a dtype that is not a picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    torch = sys.modules.get("torch")  # a tensor cannot exist before torch has been imported
    if torch is not None and isinstance(source, torch.Tensor):
        return _from_array(_channels_last(source))
    limit = MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        _check_path(path)
        with path.open("rb") as file:
            return _decode(file, str(path), limit)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "the bytes given", limit)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError('The file object gives text; open it in binary mode, open(path, "rb").')
        return _decode(io.BytesIO(data), str(getattr(source, "name", "the file object")), limit)
    raise TypeError(
        f"An image is a path, bytes, an open binary file, a PIL image, a NumPy array or a tensor, "
        f"not {type(source).__name__}."
    )


def list_images(folder: str | Path) -> list[Path]:
    """The picture files directly inside a folder, by their suffix, sorted by name; hidden files are left out.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: the folder has no picture in it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder.")
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise ValueError(f"No pictures in {folder}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return paths


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a picture; name one file in it.")
    if not path.exists():
        is_address = str(path).startswith(("http:", "https:"))
        hint = " Addresses are not fetched: download the picture first." if is_address else ""
        raise FileNotFoundError(f"There is no file {path}.{hint}")


def _decode(file: BinaryIO, name: str, max_pixels: int) -> RgbImage:
    """Bytes to pixels; every way in which a decoder fails becomes one ValueError that names the file."""
    try:
        # Pillow warns at half of its limit; here the limit is ours and is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} declares more pixels than are safe to decode ({error}).") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        what = "is not a picture in a format that can be read" if file.read(1) else "is empty"
        raise ValueError(f"{name} {what}.") from error
    except _DECODE_ERRORS as error:
        raise ValueError(f"{name} cannot be read as a picture ({error}).") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{name} declares {width}x{height} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
                "scale it down first."
            )
        return _from_pil(image, name)


def _from_pil(image: Image.Image, name: str) -> RgbImage:
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels: its size is {image.size[0]}x{image.size[1]}.")
    try:
        image.load()  # decoding happens here; a damaged EXIF block shows in the line below
    except _DECODE_ERRORS as error:
        raise ValueError(f"{name} is truncated or damaged: {error}.") from error
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        # One channel of 16 or 32 bits; Pillow's own conversion to RGB would clip at 255.
        return _from_array(_high_depth(np.asarray(image), name))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """As it is to be shown. `ImageOps.exif_transpose` also writes EXIF anew, which odd tags make impossible."""
    image.load()  # which turns a TIFF already
    method = _TURNS.get(exif_orientation(image))
    return image if method is None else image.transpose(method)


def exif_orientation(image: Image.Image) -> Any:
    """1 to 8; 1 where nothing is said."""
    try:
        return image.getexif().get(0x0112, 1)
    except _DECODE_ERRORS:
        return 1  # an unreadable EXIF block says nothing about rotation; the pixels are good


def _high_depth(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Pillow's modes I;16, I and F as an array that `_from_array` knows."""
    if values.dtype.kind == "f":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"{name} holds 32-bit values from {values.min()} to {values.max()}; expected 0 to 65535. Scale them first."
        )
    return values.astype(np.uint16)


def _channels_last(tensor: Any) -> npt.NDArray[Any]:
    """(C, H, W), torchvision's order, to (H, W, C); (H, W) and (H, W, C) stay. (3, W, 3) is read as (C, H, W)."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    channels_first = tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4)
    if channels_first and not (tensor.shape[0] == 1 and tensor.shape[2] in (3, 4)):
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy()


def _from_array(array: npt.NDArray[Any]) -> RgbImage:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"An image array has the shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}.{_mend(array)}"
        )
    if array.size == 0:
        raise ValueError(f"An image has at least one pixel; the shape given is {array.shape}.")
    array = _to_uint8(array)
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return _on_white(array) if array.shape[2] == 4 else array


def _mend(array: npt.NDArray[Any]) -> str:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return " The channels come first here: pass array.transpose(1, 2, 0)."
    if array.ndim == 4:
        return " Pass one image at a time, or a list of images to predict_batch."
    return ""


def _to_uint8(array: npt.NDArray[Any]) -> RgbImage:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255, rounded
    if array.dtype.kind != "f":
        raise TypeError(f"An image array holds uint8, uint16 or floats in [0, 1], not {array.dtype}.")
    if not np.isfinite(array).all():
        raise ValueError("The image holds NaN or infinite values.")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"A float image holds values in [0, 1]; these go from {low:g} to {high:g}. Scale them, or pass uint8."
        )
    return np.rint(array * 255).astype(np.uint8)


def _on_white(rgba: npt.NDArray[np.uint8]) -> RgbImage:
    """What a viewer shows: hidden colours under transparent pixels are often black or noise."""
    alpha = rgba[:, :, 3:].astype(np.uint32)
    mixed = rgba[:, :, :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
