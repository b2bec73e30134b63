"""The pixels of an image file by the decoder that gets them right, and what makes 8-bit RGB or grey of them."""

from __future__ import annotations

import os
import warnings
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, ImageChops

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.image_header import AGAIN, Header

RGB_AT_ONCE: int = getattr(cv2, "IMREAD_COLOR_RGB", 0)
"""OpenCV's flag for RGB in place of BGR, which saves an eighth of the time; 0 in older versions, which lack it."""


def by_opencv(path: str | os.PathLike[str], data: bytes, header: Header) -> np.ndarray:
    """Decode a JPEG of 1 or 3 channels, or a PNG without a palette.

    Returns:
        Grey, grey with alpha, RGB or RGBA as stored: uint8 or uint16 ``[H, W, 1 to 4]``.

    Raises:
        BadSampleError: The file is corrupt.
    """
    is_rgb = header.format == "JPEG" and header.channels == 3 and RGB_AT_ONCE > 0
    flags = RGB_AT_ONCE | cv2.IMREAD_IGNORE_ORIENTATION if is_rgb else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise BadSampleError(path, f"its {header.format} data are corrupt or of a kind that is not read", AGAIN)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif not is_rgb:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    if header.key is None:
        return pixels
    # Which keys become an alpha channel differs between versions of OpenCV.
    pixels = pixels[..., : header.channels]
    top = _top(pixels)
    visible = (pixels != np.array(header.key) * top // (2**header.bits - 1)).any(-1, keepdims=True)
    return np.concatenate([pixels, np.where(visible, top, 0).astype(pixels.dtype)], axis=-1)


def by_pillow(path: str | os.PathLike[str], data: bytes, header: Header, indices: bool = False) -> np.ndarray:
    """Decode any format that is read.

    Args:
        path: The file's name for messages.
        data: Its content.
        header: What its header says.
        indices: Whether to return the places in the palette of an indexed PNG.

    Returns:
        Grey, RGB or RGBA: uint8 or uint16 ``[H, W, 1 or 3 or 4]``.

    Raises:
        BadSampleError: The file is truncated or corrupt, or its numbers are not those of 8 or 16 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = Image.open(BytesIO(data), formats=[header.format])
            bits = max(file.tag_v2.get(258, (1,))) if header.format == "TIFF" else 8  # type: ignore[attr-defined]
            file.load()
            image = file if indices else _plain(file, header)
    except Exception as error:  # what Pillow's decoders raise is not settled
        raise BadSampleError(path, f"its {header.format} data are truncated or corrupt ({error})", AGAIN) from None
    pixels = np.array(image)  # a copy: Pillow's own bytes are not writable
    if header.format == "PPM" and image.mode == "I":  # 16 bits, which Pillow has spread over 0 to 65535
        pixels = pixels.astype(np.uint16)
    elif image.mode in ("I", "F") or bits not in (1, 2, 4, 8, 16) or (bits == 16 and pixels.dtype == np.uint8):
        kind = f"mode {image.mode}" + (f", {bits} bits" if header.format == "TIFF" else "")
        raise BadSampleError(path, f"its pixels are of a kind that is not read ({kind})", "Save it as a PNG.")
    return pixels.reshape(*pixels.shape[:2], -1)


def _plain(image: Image.Image, header: Header) -> Image.Image:
    """In one of the modes L, RGB, RGBA, I, F, I;16."""
    if header.format == "JPEG" and not header.adobe:  # four channels, which Pillow inverts whoever wrote them
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Pixels laid over white: ``[H, W, 1 or 3]`` from ``[H, W, 1 to 4]``, where alpha is the last of 2 or 4 channels.

    Example:
        >>> over_white(np.array([[[100, 255], [100, 51]]], np.uint8)).ravel().tolist()
        [100, 224]
    """
    if pixels.shape[2] % 2:
        return pixels
    top = np.uint32(_top(pixels))
    colour, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
    return ((colour * alpha + top * (top - alpha) + top // 2) // top).astype(pixels.dtype)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 from uint16 by division by 257, which maps 65535 to 255, rounded; uint8 as it is.

    Example:
        >>> eight_bits(np.array([128, 129, 256, 65535], np.uint16)).tolist()
        [0, 1, 1, 255]
    """
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """RGB or grey from grey or RGB: ``[H, W, channels]``; grey is 0.299 red + 0.587 green + 0.114 blue.

    Example:
        >>> with_channels(np.array([[[255, 0, 0]]], np.uint8), 1).item()
        76
    """
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]


def _top(pixels: np.ndarray) -> int:
    """The number of full intensity."""
    return 2 ** (8 * pixels.dtype.itemsize) - 1
