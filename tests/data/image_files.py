"""Bytes of image files for tests, the PNGs put together by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageChops

ROWS, COLUMNS = np.mgrid[:16, :24]
RGB = np.stack([ROWS * 16, COLUMNS * 10, 255 - ROWS * 6 - COLUMNS * 6], axis=-1).astype(np.uint8)
"""Smooth, and different in each corner and after each turn."""
GREY = RGB[..., 1] // 2 + RGB[..., 0] // 2
ALPHA = ((ROWS * 24 + COLUMNS) * 255 // 383).astype(np.uint8)
DEEP = (ROWS * 4001 + COLUMNS * 211).astype(np.uint16)
DEEP_RGB = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=-1)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels, colour, bits=8, before=(), after=()):
    """A PNG of colour type ``colour``: ``pixels`` ``[H, W]`` or ``[H, W, C]``, below 8 bits a channel packed."""
    pixels = np.asarray(pixels)
    height, width = pixels.shape[:2]
    if bits < 8:
        lines = np.unpackbits(pixels[..., None].astype(np.uint8), axis=-1)[..., 8 - bits :]
        lines = np.packbits(lines.reshape(height, -1), axis=1)
    else:
        lines = pixels.reshape(height, -1).astype(">u2" if bits == 16 else np.uint8)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        *before,
        (b"IDAT", data),
        *after,
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks) + chunk(b"IEND", b"")


def key(*colour):
    """The chunk that makes a colour transparent."""
    return [(b"tRNS", struct.pack(f">{len(colour)}H", *map(int, colour)))]


def exif(orientation):
    """EXIF data with one tag, the orientation, as it stands in a PNG."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def saved(pixels, kind, mode=None, **kwargs):
    """Bytes of an image as Pillow writes them."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **kwargs)
    return file.getvalue()


def jpeg(pixels=RGB, orientation=None, **kwargs):
    if orientation is not None:
        kwargs["exif"] = b"Exif\0\0" + exif(orientation)
    return saved(pixels, "JPEG", **{"quality": 95, **kwargs})


def by_pillow(data, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def three(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(colour, alpha, top=255):
    """The textbook's formula in float64, in 8 bits."""
    share = alpha[..., None].astype(float) / top
    return np.rint((colour * share + top * (1 - share)) * 255 / top)


def without(colour, value, top=255):
    """Where ``colour`` is ``value``: white."""
    return over_white(colour, np.where((colour == value).all(-1), 0, top), top)


BANDS = np.repeat(np.repeat(np.arange(8), 16)[None], 16, axis=0)
INKS = np.array(
    [[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [0] * 4, [60, 20, 0, 99], [200, 90, 9, 0]]
)
INKS = np.vstack([INKS, [[0, 130, 250, 30]]]).astype(np.uint8)
CMYK = Image.frombytes("CMYK", BANDS.shape[::-1], INKS[BANDS].tobytes())
"""Eight bands of one mixture of inks each, 16 x 16 pixels."""
INKS_AS_RGB = np.rint((255.0 - INKS[:, :3]) * (255.0 - INKS[:, 3:]) / 255)[BANDS]


def unmarked_cmyk():
    """What no Adobe marker inverts: Pillow inverts and marks, so invert before and cut the marker out."""
    data = saved(ImageChops.invert(CMYK), "JPEG", quality=100)
    place = data.index(b"\xff\xee")
    assert data[place + 4 : place + 9] == b"Adobe"
    return data[:place] + data[place + 16 :]


INDEXED = Image.fromarray(RGB).quantize(16)
PALETTE = np.array(INDEXED.getpalette()[:48]).reshape(16, 3)
INDICES = np.asarray(INDEXED)
PLTE = (b"PLTE", PALETTE.astype(np.uint8).tobytes())
FADING = np.arange(0, 256, 17).astype(np.uint8)
THUMBNAIL = b"Exif\0\0" + exif(1) + jpeg(RGB[:8, :8])

GOOD = {  # name: (bytes, pixels [H, W, 3] as they must come out, largest difference allowed)
    "JPEG": (jpeg(), by_pillow(jpeg()), 1),
    "JPEG, as it was meant": (jpeg(quality=100, subsampling=0), RGB, 3),
    "JPEG, colours at half size": (jpeg(subsampling=2), by_pillow(jpeg(subsampling=2)), 1),
    "JPEG, progressive": (jpeg(progressive=True), by_pillow(jpeg(progressive=True)), 1),
    "JPEG, restart markers": (jpeg(restart_marker_blocks=1), by_pillow(jpeg(restart_marker_blocks=1)), 1),
    "JPEG, grey": (jpeg(GREY), three(by_pillow(jpeg(GREY), "L")), 1),
    "JPEG, RGB not YCbCr": (jpeg(keep_rgb=True), RGB, 6),
    "JPEG, fill bytes": (jpeg().replace(b"\xff\xdb", b"\xff\xff\xff\xdb"), by_pillow(jpeg()), 1),
    "JPEG and junk": (jpeg() + b"junk", by_pillow(jpeg()), 1),
    "JPEG and a second one": (jpeg() + jpeg(RGB[::-1]), by_pillow(jpeg()), 1),
    "JPEG with a thumbnail": (jpeg(exif=THUMBNAIL), by_pillow(jpeg()), 1),
    "JPEG, CMYK by Adobe": (saved(CMYK, "JPEG", quality=100), INKS_AS_RGB, 3),
    "JPEG, CMYK unmarked": (unmarked_cmyk(), INKS_AS_RGB, 3),
    "JPEG, corrupt EXIF": (jpeg(exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), by_pillow(jpeg()), 1),
    "PNG": (png(RGB, 2), RGB, 0),
    "PNG, grey": (png(GREY, 0), three(GREY), 0),
    "PNG, alpha": (png(np.dstack([RGB, ALPHA]), 6), over_white(RGB, ALPHA), 0),
    "PNG, grey and alpha": (png(np.dstack([GREY, ALPHA]), 4), over_white(three(GREY), ALPHA), 0),
    "PNG, one colour transparent": (png(RGB, 2, before=key(*RGB[3, 5])), without(RGB, RGB[3, 5]), 0),
    "PNG, one grey transparent": (png(GREY, 0, before=key(GREY[3, 5])), without(three(GREY), GREY[3, 5]), 0),
    "PNG, palette": (png(INDICES, 3, 4, before=[PLTE]), PALETTE[INDICES], 0),
    "PNG, palette and alpha": (
        png(INDICES, 3, 8, before=[PLTE, (b"tRNS", FADING.tobytes())]),
        over_white(PALETTE[INDICES], FADING[INDICES]),
        0,
    ),
    "PNG, 1 bit": (png(GREY > 99, 0, 1), three(np.where(GREY > 99, 255, 0)), 0),
    "PNG, 2 bits": (png(GREY // 64, 0, 2), three(GREY // 64 * 85), 0),
    "PNG, 4 bits, one transparent": (png(INDICES, 0, 4, before=key(3)), without(three(INDICES * 17), 51), 0),
    "PNG, 16 bits": (png(DEEP, 0, 16), three(np.rint(DEEP / 257)), 0),
    "PNG, 16 bits, RGB": (png(DEEP_RGB, 2, 16), np.rint(DEEP_RGB / 257), 0),
    "PNG, 16 bits, alpha": (png(np.dstack([DEEP_RGB, DEEP]), 6, 16), over_white(DEEP_RGB, DEEP, 65535), 1),
    "PNG, 16 bits, one transparent": (
        png(DEEP_RGB, 2, 16, before=key(*DEEP_RGB[3, 5])),
        without(DEEP_RGB, DEEP_RGB[3, 5], 65535),
        0,
    ),
    "BMP": (saved(RGB, "BMP"), RGB, 0),
    "GIF": (saved(INDEXED, "GIF"), PALETTE[INDICES], 0),
    "PPM": (saved(RGB, "PPM"), RGB, 0),
    "PPM, 16 bits": (b"P5 24 16 65535\n" + DEEP.astype(">u2").tobytes(), three(np.rint(DEEP / 257)), 0),
    "TIFF": (saved(RGB, "TIFF", compression="tiff_lzw"), RGB, 0),
    "TIFF, 1 bit": (saved(GREY > 99, "TIFF"), three(np.where(GREY > 99, 255, 0)), 0),
    "TIFF, 16 bits": (saved(DEEP, "TIFF"), three(np.rint(DEEP / 257)), 0),
    "TIFF, 16 bits, big-endian": (saved(DEEP.astype(">u2"), "TIFF"), three(np.rint(DEEP / 257)), 0),
    "TIFF, CMYK": (saved(CMYK, "TIFF"), INKS_AS_RGB, 1),
    "WebP": (saved(RGB, "WEBP", lossless=True), RGB, 0),
    "WebP, alpha": (
        saved(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True),
        over_white(RGB, ALPHA),
        0,
    ),
}
