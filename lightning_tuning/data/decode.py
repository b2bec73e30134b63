"""Image files to pixels: the right ones, or an error that says what is wrong with the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO, Literal

import numpy as np

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.image_header import AGAIN, Header, read_header
from lightning_tuning.data.image_pixels import by_opencv, by_pillow, eight_bits, over_white, with_channels
from lightning_tuning.errors import InvalidValueError, check_choice

MAX_PIXELS = 64_000_000
"""The largest height times width that is decoded unless told otherwise."""

PathLike = str | os.PathLike[str]


def read_image(path: PathLike, channels: int = 3, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image as it is meant to be seen.

    The EXIF rotation is applied. Transparent pixels are laid over white. 16 bits become 8 by division by 257, rounded.
    One channel becomes three equal ones; three become one by the weights 0.299, 0.587, 0.114 of ITU-R BT.601. Colour
    profiles are ignored. JPEG and PNG are decoded by OpenCV; other formats, palettes and CMYK by Pillow.

    Args:
        path: A JPEG, PNG, BMP, GIF, PPM, TIFF or WebP file; what counts is its content, not its name.
        channels: 3 for RGB, 1 for grey.
        max_pixels: The largest height times width that is decoded.

    Returns:
        uint8 ``[H, W, channels]``.

    Raises:
        BadSampleError: The file is missing, empty, truncated, corrupt, no image, too large, animated, or of 32 bits a
            channel. Bytes that changed within a JPEG need not be noticed: it has no check sum.
        InvalidValueError: ``channels`` is neither 1 nor 3.

    Source:
        ISO/IEC 10918-6:2013, 6.1, for CMYK in JPEG: 0 is no ink, but full ink where an Adobe marker stands. Pillow
        takes 0 as full ink always.
    """
    _check_channels(channels)
    return decode_image(_content(path), path, channels, max_pixels=max_pixels)


def decode_image(data: bytes, name: PathLike, channels: int = 3, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As :func:`read_image`, of the bytes of a file that lies within another, such as an archive.

    Args:
        data: All bytes of the file.
        name: What messages call it.
        channels: 3 for RGB, 1 for grey.
        max_pixels: The largest height times width that is decoded.

    Returns:
        uint8 ``[H, W, channels]``.

    Raises:
        BadSampleError: As :func:`read_image`.
        InvalidValueError: ``channels`` is neither 1 nor 3.
    """
    _check_channels(channels)
    header = _checked_header(data, name, max_pixels)
    opencv_is_right = header.channels < 4 if header.format == "JPEG" else header.format == "PNG" and not header.indexed
    pixels = by_opencv(name, data, header) if opencv_is_right else by_pillow(name, data, header)
    pixels = with_channels(eight_bits(over_white(pixels)), channels)
    return np.ascontiguousarray(turned(pixels, header.orientation or 1))


def read_mask(
    path: PathLike,
    image: PathLike | None = None,
    drawn_on: Literal["auto", "stored", "shown"] = "auto",
    *,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Read the class id of each pixel from a PNG: its places in the palette, or its grey values as they are stored.

    The EXIF rotation of the mask is applied. A mask that has none, of an image that has one, may have been drawn on the
    pixels as they are stored or as they are shown: ``drawn_on``.

    Args:
        path: An indexed or grey PNG of 1 to 16 bits.
        image: The file of the image that the mask belongs to; its rotation is then known, and its size is compared.
        drawn_on: ``stored``: a mask without a rotation gets the image's; ``shown``: it needs none; ``auto``: whichever
            fits the image's size, and an error where both do.
        max_pixels: The largest height times width that is decoded.

    Returns:
        int64 ``[H, W]``.

    Raises:
        BadSampleError: As :func:`read_image`; also if the file is no PNG, has several channels, is not of its image's
            size, or if it cannot be told whether the image's rotation concerns it.
        InvalidValueError: ``drawn_on`` is none of the three.
    """
    check_choice("drawn_on", drawn_on, ("auto", "stored", "shown"))
    data = _content(path)
    header = _checked_header(data, path, max_pixels)
    if header.format != "PNG":
        _refuse_as_mask(path, f"it is a {header.format} file, which may hold fractions, NaN or blurred class ids")
    if header.channels != 1:
        _refuse_as_mask(path, f"it has {header.channels} channels; which colour is which class is not known")
    if header.indexed:
        pixels = by_pillow(path, data, header, indices=True)
    else:
        step = 1 if header.bits >= 8 else 255 // (2**header.bits - 1)  # OpenCV spreads fewer bits over 0 to 255
        pixels = by_opencv(path, data, header)[..., :1] // step
    orientation = header.orientation or 1
    if image is not None:
        with _opened(image) as file:
            of_image = read_header(file, image)
        orientation = header.orientation or _orientation_like(path, header, image, of_image, drawn_on)
    mask = turned(pixels[..., 0].astype(np.int64), orientation)
    if image is not None and mask.shape != of_image.shown:
        sizes = [f"{width} x {height}" for height, width in (mask.shape, of_image.shown)]
        raise BadSampleError(
            path, f"it is {sizes[0]} pixels, its image {os.fspath(image)} {sizes[1]}", "Pair them anew."
        )
    return np.ascontiguousarray(mask)


def image_size(path: PathLike) -> tuple[int, int]:
    """Height and width of an image after the EXIF rotation, from its header alone.

    Raises:
        BadSampleError: The file is missing, empty or no image, or its header is corrupt.
    """
    with _opened(path) as file:
        return read_header(file, path).shown


def decode_size(data: bytes, name: PathLike) -> tuple[int, int]:
    """As :func:`image_size`, of the bytes of a file that lies within another.

    Raises:
        BadSampleError: As :func:`image_size`.
    """
    return read_header(BytesIO(data), name).shown


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels ``[H, W, ...]`` as stored, turned to how they are meant to be seen.

    Args:
        pixels: An image or a mask.
        orientation: The EXIF tag, 1 to 8.

    Returns:
        A view, ``[W, H, ...]`` for orientations above 4.

    Example:
        >>> turned(np.array([[1, 2], [3, 4]]), 6).tolist()  # a quarter turn clockwise
        [[3, 1], [4, 2]]
    """
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    flip = (orientation - 1) % 4
    rows, columns = (flip in (2, 3)), (flip in (1, 2))
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


@contextmanager
def _opened(path: PathLike) -> Iterator[BinaryIO]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise BadSampleError(path, f"it is {what}", "Name an image file.")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise BadSampleError(path, "it does not exist", "Correct the path, or put the file there.") from None
    except OSError as error:
        raise BadSampleError(path, f"it cannot be read ({error.strerror or error})", "Check disk and rights.") from None


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise InvalidValueError(f"channels is {channels!r}; it must be 1 (grey) or 3 (RGB).")


def _content(path: PathLike) -> bytes:
    with _opened(path) as file:
        return file.read()


def _checked_header(data: bytes, name: PathLike, max_pixels: int) -> Header:
    """The header of a file that may be decoded."""
    header = read_header(BytesIO(data), name)
    if header.height * header.width > max_pixels:
        raise BadSampleError(
            name,
            f"it has {header.width} x {header.height} pixels, more than max_pixels = {max_pixels}",
            "Shrink it, or raise max_pixels if the file can be trusted.",
        )
    if header.animated:
        raise BadSampleError(name, "it holds more than one picture", "Save the one that is meant as a PNG.")
    # Within the pixels' data ff is followed by 00 or by a restart marker, so ff d9 can only be the end.
    if header.format == "JPEG" and data.rfind(b"\xff\xd9", header.body) < 0:
        raise BadSampleError(name, "it is truncated", AGAIN)
    return header


def _refuse_as_mask(path: PathLike, reason: str) -> None:
    raise BadSampleError(path, reason, "Save the class ids as an indexed or grey PNG.")


def _orientation_like(path: PathLike, mask: Header, image: PathLike, of_image: Header, drawn_on: str) -> int:
    """The orientation of a mask that has none of its own."""
    orientation = of_image.orientation or 1
    if orientation == 1 or drawn_on == "shown":
        return 1
    if drawn_on == "auto" and of_image.stored == of_image.shown:
        raise BadSampleError(
            path,
            f"its image {os.fspath(image)} has EXIF orientation {orientation}, it has none and fits both ways",
            "Say drawn_on='stored' or 'shown'.",
        )
    return orientation if drawn_on == "stored" or mask.stored == of_image.stored else 1
