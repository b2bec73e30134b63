"""Format, size and orientation of an image file, from its header alone."""

from __future__ import annotations

import os
import struct
import warnings
from typing import BinaryIO, NamedTuple

from PIL import Image

from lightning_tuning.data.bad_samples import BadSampleError

AGAIN = "Copy or download it again, or take it out of the data."
OTHER_FORMATS = ("BMP", "GIF", "PPM", "TIFF", "WEBP")
"""The formats besides JPEG and PNG, by Pillow's names. Not all that it knows: some start other programs."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Number of channels by the colour type."""


class Header(NamedTuple):
    """What the header of an image file says.

    Args:
        format: ``JPEG``, ``PNG`` or one of ``OTHER_FORMATS``.
        height: Number of rows as stored.
        width: Number of columns as stored.
        bits: Bits a channel.
        channels: Number of channels, alpha included; 1 if indexed.
        indexed: Whether the pixels are places in a palette (known of PNG).
        key: The colour that stands for transparent pixels, one number a channel (known of PNG).
        orientation: The EXIF tag, 1 to 8; None: there is none.
        animated: Whether there is more than one picture.
        adobe: Whether the writer marked itself as Adobe's, which inverts CMYK (JPEG).
        body: Where the pixels' data begin, in bytes (JPEG).
    """

    format: str
    height: int
    width: int
    bits: int = 8
    channels: int = 3
    indexed: bool = False
    key: tuple[int, ...] | None = None
    orientation: int | None = None
    animated: bool = False
    adobe: bool = False
    body: int = 0

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width as stored."""
        return self.height, self.width

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width after the EXIF rotation."""
        return (self.width, self.height) if (self.orientation or 1) > 4 else self.stored


def read_header(file: BinaryIO, path: str | os.PathLike[str]) -> Header:
    """Read the header of an image file.

    Of a JPEG no more is read than the header; of a PNG, whose EXIF data may stand behind the pixels, the pixels are
    stepped over.

    Args:
        file: The file, or its bytes.
        path: The file's name for messages.

    Raises:
        BadSampleError: The file is empty or of no format that is read, or its header is truncated or corrupt.
    """
    start = file.read(64)
    if not start:
        raise BadSampleError(path, "it is empty", AGAIN)
    try:
        if start.startswith(b"\xff\xd8\xff"):
            header = _jpeg(file)
        elif start.startswith(b"\x89PNG\r\n\x1a\n"):
            header = _png(file)
        else:
            header = _other(file)
    except EOFError:
        raise BadSampleError(path, "it is truncated", AGAIN) from None
    except (ValueError, struct.error) as error:
        raise BadSampleError(path, f"its header is corrupt ({error})", AGAIN) from None
    except Image.UnidentifiedImageError:
        raise BadSampleError(path, _what_it_is(start), AGAIN) from None
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the decoder
            raise
        raise BadSampleError(path, f"its header is truncated or corrupt ({error})", AGAIN) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadSampleError(path, f"it has more than {limit} pixels, the limit of Pillow", "Shrink it.") from None
    if not header.height * header.width:
        raise BadSampleError(path, f"its header is corrupt ({header.width} x {header.height} pixels)", AGAIN)
    return header


def orientation_of(exif: bytes) -> int | None:
    """The orientation in EXIF data, 1 to 8; None if there is none that is valid."""
    tags = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags.load(exif)
            value = tags.get(0x0112)
    except Exception:  # what a corrupt block raises is not settled, and the pixels do not need it
        return None
    return value if value in range(1, 9) else None


def _take(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _jpeg(file: BinaryIO) -> Header:
    file.seek(2)
    frame = orientation = None
    adobe = False
    while (marker := _next_marker(file)) != 0xDA:  # the start of the first scan
        (length,) = struct.unpack(">H", _take(file, 2))
        if length < 2:
            raise ValueError(f"a segment of length {length}")
        segment = _take(file, length - 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHHB", segment)
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = orientation or orientation_of(segment)
        elif marker == 0xEE and segment.startswith(b"Adobe"):
            adobe = True
    if frame is None:
        raise ValueError("no frame before the first scan")
    bits, height, width, channels = frame
    return Header("JPEG", height, width, bits, channels, orientation=orientation, adobe=adobe, body=file.tell())


def _next_marker(file: BinaryIO) -> int:
    first, marker = _take(file, 2)
    while marker == 0xFF:  # any number of them may precede a marker
        (marker,) = _take(file, 1)
    if first != 0xFF or marker in (0x00, 0xD9):
        raise ValueError(f"bytes {first:02x} {marker:02x} in place of a segment")
    return marker


def _png(file: BinaryIO) -> Header:
    file.seek(8)
    chunks: dict[bytes, bytes] = {}
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", _take(file, 8))
        if kind in (b"IHDR", b"tRNS", b"eXIf", b"acTL"):
            chunks[kind] = _take(file, length)
        else:
            file.seek(length, os.SEEK_CUR)
        _take(file, 4)  # the check sum
    width, height, bits, colour = struct.unpack_from(">IIBB", chunks.get(b"IHDR", b""))
    if colour not in PNG_CHANNELS:
        raise ValueError(f"colour type {colour}")
    channels = PNG_CHANNELS[colour]
    transparent = chunks.get(b"tRNS", b"")
    return Header(
        "PNG",
        height,
        width,
        bits,
        channels,
        indexed=colour == 3,
        key=struct.unpack_from(f">{channels}H", transparent) if transparent and colour != 3 else None,
        orientation=orientation_of(chunks[b"eXIf"]) if b"eXIf" in chunks else None,
        animated=chunks.get(b"acTL", b"")[:4] > b"\0\0\0\1",
    )


def _other(file: BinaryIO) -> Header:
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(file, formats=OTHER_FORMATS)
        # None of a TIFF, which Pillow turns itself; its size is that after the turn.
        exif = image.info.get("exif")
        animated = getattr(image, "is_animated", False)
    orientation = orientation_of(exif) if exif else None
    return Header(image.format or "", image.height, image.width, orientation=orientation, animated=animated)


def _what_it_is(start: bytes) -> str:
    start = start.removeprefix(b"\xef\xbb\xbf")
    text = start.decode("utf-8", "ignore")
    words = text.split()
    if len(text.encode()) > len(start) - 4 and "".join(words).isprintable():  # the last character may be cut
        return f"it is no image but text that begins with {' '.join(words)[:40]!r}"
    formats = ", ".join(("JPEG", "PNG", *OTHER_FORMATS))
    return f"it is no image that can be read ({formats}), or truncated; it begins with {start[:4].hex(' ')}"
