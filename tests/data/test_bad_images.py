"""One row for each kind of file that no image comes from, with the message."""

import os
import pickle
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile
from torch._utils import ExceptionWrapper

from lightning_tuning.data import BadSampleError, decode_image, decode_size, image_size, read_image

from .image_files import DEEP, DEEP_RGB, GOOD, RGB, THUMBNAIL, chunk, jpeg, png, saved


def bomb():
    """A PNG of 32 KB that decodes to 805 MB."""
    data = zlib.compress(bytes(16384 * (1 + 16384 // 8)), 9)
    ihdr = struct.pack(">IIBBBBB", 16384, 16384, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ihdr(height):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", 24, height, 8, 2, 0, 0, 0))


def in_scan(data):
    """Cut behind the head of the last scan."""
    return data[: data.rindex(b"\xff\xda") + 14]


def changed(data, place, by=0x55):
    return data[:place] + bytes([data[place] ^ by]) + data[place + 1 :]


AGAIN = "Copy or download it again, or take it out of the data."
NO_IMAGE = "it is no image that can be read (JPEG, PNG, BMP, GIF, PPM, TIFF, WEBP), or truncated; it begins with"
AS_PNG = "Save it as a PNG."
ONE = "it holds more than one picture", "Save the one that is meant as a PNG."
PNG, TIFF, WEBP, GIF = png(RGB, 2), GOOD["TIFF"][0], GOOD["WebP"][0], GOOD["GIF"][0]
HTML = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
APNG = png(RGB, 2, before=[(b"acTL", struct.pack(">II", 2, 0))])
CORRUPT_PNG = "its PNG data are corrupt or of a kind that is not read"

BAD = {  # name: (bytes, reason, remedy)
    "empty": (b"", "it is empty", AGAIN),
    "HTML": (HTML, "it is no image but text that begins with '<!DOCTYPE html> <html><head><title>404</'", AGAIN),
    "text that is cut within a letter": (
        b"\xef\xbb\xbf" + "ä".encode() * 31,
        f"it is no image but text that begins with '{'ä' * 30}'",
        AGAIN,
    ),
    "zeros": (bytes(1000), f"{NO_IMAGE} 00 00 00 00", AGAIN),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" * 20, f"{NO_IMAGE} 25 50 44 46", AGAIN),
    "EPS": (saved(RGB, "EPS")[:20] + b"\0", f"{NO_IMAGE} 25 21 50 53", AGAIN),
    "JPEG, cut in its header": (jpeg()[:200], "it is truncated", AGAIN),
    "JPEG, cut in its pixels": (in_scan(jpeg()), "it is truncated", AGAIN),
    "JPEG, cut by two bytes": (jpeg()[:-2], "it is truncated", AGAIN),
    "JPEG, cut and filled with zeros": (in_scan(jpeg()) + bytes(300), "it is truncated", AGAIN),
    "JPEG, progressive, cut": (in_scan(jpeg(progressive=True)), "it is truncated", AGAIN),
    "JPEG with a thumbnail, cut": (jpeg(exif=THUMBNAIL)[:-2], "it is truncated", AGAIN),
    "JPEG, CMYK, cut": (GOOD["JPEG, CMYK by Adobe"][0][:-2], "it is truncated", AGAIN),
    "JPEG without frame": (
        b"\xff\xd8\xff\xda\0\x02\xff\xd9",
        "its header is corrupt (no frame before the first scan)",
        AGAIN,
    ),
    "JPEG of nothing": (b"\xff\xd8\xff\xd9", "its header is corrupt (bytes ff d9 in place of a segment)", AGAIN),
    "JPEG, zeros in its header": (
        jpeg()[:20] + bytes(400),
        "its header is corrupt (bytes 00 00 in place of a segment)",
        AGAIN,
    ),
    "JPEG, segment of no length": (b"\xff\xd8\xff\xe0\0\0", "its header is corrupt (a segment of length 0)", AGAIN),
    "JPEG, no tables": (
        b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0abc\xff\xd9",
        "its JPEG data are corrupt or of a kind that is not read",
        AGAIN,
    ),
    "JPEG, no rows": (
        b"\xff\xd8\xff\xc0\0\x0b\x08\0\0\0\x08\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0abc\xff\xd9",
        "its header is corrupt (8 x 0 pixels)",
        AGAIN,
    ),
    "PNG, cut": (PNG[:-40], "it is truncated", AGAIN),
    "PNG, cut by one byte": (PNG[:-1], "it is truncated", AGAIN),
    "PNG, palette, cut": (GOOD["PNG, palette"][0][:-20], "it is truncated", AGAIN),
    "PNG, a byte changed": (changed(PNG, len(PNG) // 2), CORRUPT_PNG, AGAIN),
    "PNG, a check sum changed": (changed(PNG, -14), CORRUPT_PNG, AGAIN),
    "PNG, too few pixels": (png(RGB[:9], 2).replace(ihdr(9), ihdr(16)), CORRUPT_PNG, AGAIN),
    "PNG, colour type 5": (png(RGB, 5), "its header is corrupt (colour type 5)", AGAIN),
    "bomb": (
        bomb(),
        "it has 16384 x 16384 pixels, more than max_pixels = 64000000",
        "Shrink it, or raise max_pixels if the file can be trusted.",
    ),
    "PNG, animated": (APNG, *ONE),
    "GIF, animated": (saved(RGB, "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1])]), *ONE),
    "WebP, animated": (saved(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(RGB[::-1])]), *ONE),
    "TIFF of two pages": (saved(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB[::-1])]), *ONE),
    "GIF, cut": (GIF[:-50], "its GIF data are truncated or corrupt", AGAIN),
    "BMP, cut": (saved(RGB, "BMP")[:-50], "its BMP data are truncated or corrupt", AGAIN),
    "TIFF, cut": (saved(RGB, "TIFF")[:-50], "its TIFF data are truncated or corrupt", AGAIN),
    "TIFF, its directory cut off": (TIFF[:-50], f"{NO_IMAGE} 49 49 2a 00", AGAIN),
    "WebP, cut in its header": (WEBP[:8], f"{NO_IMAGE} 52 49 46 46", AGAIN),
    "WebP, cut in half": (WEBP[: len(WEBP) // 2], "its header is truncated or corrupt", AGAIN),
    "TIFF, fractions": (
        saved(DEEP / np.float32(7), "TIFF"),
        "its pixels are of a kind that is not read (mode F, 32 bits)",
        AS_PNG,
    ),
    "TIFF, 32 bits": (
        saved(DEEP.astype(np.int32), "TIFF"),
        "its pixels are of a kind that is not read (mode I, 32 bits)",
        AS_PNG,
    ),
    "TIFF, 16 bits, RGB": (
        cv2.imencode(".tiff", DEEP_RGB)[1].tobytes(),
        "its pixels are of a kind that is not read (mode RGB, 16 bits)",
        AS_PNG,
    ),
    "PFM": (
        b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.5, np.nan),
        "its pixels are of a kind that is not read (mode F)",
        AS_PNG,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name, tmp_path):
    data, reason, remedy = BAD[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(BadSampleError) as raised:
        read_image(path)
    error = raised.value
    detail = r" \(.+\)" if reason.endswith("truncated or corrupt") else ""  # what Pillow says
    assert re.fullmatch(re.escape(reason) + detail, error.reason)
    assert (error.path, error.remedy) == (str(path), remedy)
    assert str(error) == f"{path}: {error.reason}. {remedy}"
    assert "\n" not in str(error)
    with pytest.raises(BadSampleError) as raised:
        decode_image(data, "a.tar/1.jpg")
    assert (raised.value.path, raised.value.reason, raised.value.remedy) == ("a.tar/1.jpg", error.reason, remedy)


def test_missing_directory_link_pipe_and_rights(tmp_path, monkeypatch):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    outcomes = {
        "gone.png": "it does not exist. Correct the path, or put the file there.",
        "link.png": "it does not exist. Correct the path, or put the file there.",
        "": "it is a directory. Name an image file.",
        "pipe.png": "it is no regular file. Name an image file.",
    }
    for name, message in outcomes.items():
        for read in (read_image, image_size):
            with pytest.raises(BadSampleError) as raised:
                read(tmp_path / name)
            assert str(raised.value) == f"{tmp_path / name}: {message}"
    (tmp_path / "a.png").write_bytes(PNG)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(
        BadSampleError, match=r"a.png: it cannot be read \(Permission denied\)\. Check disk and rights\."
    ):
        read_image(tmp_path / "a.png")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    def decoded(*args, **kwargs):
        raise AssertionError

    path = tmp_path / "bomb.png"
    path.write_bytes(BAD["bomb"][0])
    assert path.stat().st_size < 33_000
    monkeypatch.setattr(cv2, "imdecode", decoded)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(BadSampleError, match="more than max_pixels = 64000000"):
        read_image(path)
    assert image_size(path) == decode_size(path.read_bytes(), "a") == (16384, 16384)
    with pytest.raises(BadSampleError, match=r"a\.tar/1\.jpg: it is empty"):
        decode_size(b"", "a.tar/1.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WebP"])
def test_max_pixels_is_the_largest_number_allowed(kind, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(GOOD[kind][0])
    assert read_image(path, max_pixels=16 * 24).shape == (16, 24, 3)
    with pytest.raises(BadSampleError, match="it has 24 x 16 pixels, more than max_pixels = 383"):
        read_image(path, max_pixels=16 * 24 - 1)


def test_the_limit_of_pillow(tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    path.write_bytes(GIF)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadSampleError, match=r"it has more than 200 pixels, the limit of Pillow\. Shrink it\."):
        read_image(path)


def test_the_error_of_a_worker_process_arrives_as_itself_in_one_line():
    error = BadSampleError("a.png", "it is empty", "Copy it again.")
    try:
        raise error
    except BadSampleError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(BadSampleError) as raised:
        wrapped.reraise()
    assert str(raised.value) == raised.value.reason == str(error) == "a.png: it is empty. Copy it again."
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (
        str(error),
        {"path": "a.png", "reason": "it is empty", "remedy": "Copy it again."},
    )
