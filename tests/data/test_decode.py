import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lightning_tuning.data import decode_image, decode_size, image_size, read_image
from lightning_tuning.errors import InvalidValueError

from .image_files import CMYK, GOOD, INDICES, PLTE, RGB, exif, jpeg, png, saved

good = pytest.mark.parametrize("name", GOOD)


@pytest.fixture
def file(tmp_path):
    """Makes a file whose name says JPEG, whatever is in it."""

    def make(data, name="a.jpg"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return make


@good
def test_pixels(name, file):
    data, expected, tolerance = GOOD[name]
    pixels = read_image(file(data))
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(float)).max() <= tolerance
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@good
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_are_read_as_the_file_is(name, channels, file):
    data = GOOD[name][0]
    np.testing.assert_array_equal(decode_image(data, "a.tar/1.jpg", channels), read_image(file(data), channels))


@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith("JPEG")])
def test_pixels_without_the_newer_flag(name, file, monkeypatch):
    monkeypatch.setattr("lightning_tuning.data.image_pixels.RGB_AT_ONCE", 0)
    test_pixels(name, file)


@good
def test_grey_is_the_luma_of_the_colours(name, file):
    data, expected, tolerance = GOOD[name]
    pixels = read_image(file(data), channels=1)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*expected.shape[:2], 1)
    luma = np.rint(expected @ [0.299, 0.587, 0.114])
    assert np.abs(pixels[..., 0] - luma).max() <= tolerance + (np.ptp(expected, axis=2).max() > 0)
    assert pixels.flags.writeable


@good
def test_size_without_decoding(name, file, monkeypatch):
    def decoded(*args, **kwargs):
        raise AssertionError

    data, expected, _ = GOOD[name]
    path = file(data)
    monkeypatch.setattr(cv2, "imdecode", decoded)
    monkeypatch.setattr(Image.Image, "tobytes", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    assert image_size(path) == decode_size(data, "a.tar/1.jpg") == expected.shape[:2]


TURNED = {
    "JPEG": lambda tag: jpeg(orientation=tag),
    "JPEG, CMYK": lambda tag: jpeg(CMYK.resize((24, 16)), orientation=tag),
    "PNG": lambda tag: png(RGB, 2, before=[(b"eXIf", exif(tag))]),
    "PNG, EXIF behind the pixels": lambda tag: png(RGB, 2, after=[(b"eXIf", exif(tag))]),
    "PNG, palette": lambda tag: png(INDICES, 3, before=[PLTE, (b"eXIf", exif(tag))]),
    "TIFF": lambda tag: saved(RGB, "TIFF", tiffinfo={0x0112: tag}),
    "WebP": lambda tag: saved(RGB, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(tag)),
}


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("name", TURNED)
def test_exif_rotation(name, tag, file):
    data = TURNED[name](tag)
    image = Image.open(io.BytesIO(data))
    assert image.getexif()[0x0112] == tag
    expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((16, 24) if tag < 5 else (24, 16))
    path = file(data)
    assert image_size(path) == expected.shape[:2]
    for channels in (1, 3):
        pixels = read_image(path, channels)
        reference = expected if channels == 3 else np.rint(expected @ [0.299, 0.587, 0.114])[..., None]
        assert np.abs(pixels.astype(int) - reference).max() <= 1
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_ignored(tag, file):
    assert (read_image(file(jpeg(orientation=tag))) == read_image(file(jpeg(), "b.jpg"))).all()


def test_the_first_exif_block_counts(file):
    turned, other = jpeg(orientation=6), b"Exif\0\0" + exif(3)
    frame = turned.index(b"\xff\xc0")
    both = turned[:frame] + b"\xff\xe1" + (len(other) + 2).to_bytes(2, "big") + other + turned[frame:]
    assert (read_image(file(both)) == read_image(file(turned, "b.jpg"))).all()


@pytest.mark.parametrize("channels", [0, 2, 4, "3"])
def test_other_channels_are_refused(channels):
    with pytest.raises(InvalidValueError, match=f"channels is {channels!r}; it must be 1"):
        read_image("a.png", channels)
    with pytest.raises(InvalidValueError, match=f"channels is {channels!r}; it must be 1"):
        decode_image(b"", "a.png", channels)
