import numpy as np
import pytest
from PIL import Image, ImageOps

from lightning_tuning.data import BadSampleError, read_mask
from lightning_tuning.errors import InvalidValueError

from .image_files import ALPHA, DEEP, GREY, INDICES, PLTE, RGB, exif, jpeg, key, png, saved

BITS = (GREY > 99).astype(int)
GOOD_MASKS = {  # name: (bytes, class ids)
    "grey": (png(GREY, 0), GREY),
    "palette of 8 bits": (png(INDICES, 3, 8, before=[PLTE]), INDICES),
    "palette of 4 bits": (png(INDICES, 3, 4, before=[PLTE]), INDICES),
    "palette of one colour": (png(INDICES % 2, 3, 1, before=[(b"PLTE", b"abcabc")]), INDICES % 2),
    "palette with alpha": (png(INDICES, 3, before=[PLTE, (b"tRNS", bytes(16))]), INDICES),
    "1 bit": (png(BITS, 0, 1), BITS),
    "2 bits": (png(GREY // 64, 0, 2), GREY // 64),
    "4 bits": (png(GREY // 16, 0, 4), GREY // 16),
    "16 bits": (png(DEEP, 0, 16), DEEP),
    "one grey transparent": (png(GREY, 0, before=key(GREY[3, 5])), GREY),
}


@pytest.mark.parametrize("name", GOOD_MASKS)
def test_class_ids(name, tmp_path):
    data, expected = GOOD_MASKS[name]
    (tmp_path / "m.png").write_bytes(data)
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.int64
    assert (mask == expected).all()
    assert mask.shape == expected.shape
    assert mask.flags.c_contiguous
    assert mask.flags.writeable


UNSURE = "which may hold fractions, NaN or blurred class ids"
BAD_MASKS = {
    "JPEG": (jpeg(GREY), f"it is a JPEG file, {UNSURE}"),
    "NaN": (saved(np.full((3, 4), np.nan, np.float32), "TIFF"), f"it is a TIFF file, {UNSURE}"),
    "RGB": (png(RGB, 2), "it has 3 channels; which colour is which class is not known"),
    "grey and alpha": (
        png(np.dstack([GREY, ALPHA]), 4),
        "it has 2 channels; which colour is which class is not known",
    ),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_what_is_no_mask(name, tmp_path):
    data, reason = BAD_MASKS[name]
    path = tmp_path / "m.png"
    path.write_bytes(data)
    with pytest.raises(BadSampleError) as raised:
        read_mask(path)
    assert str(raised.value) == f"{path}: {reason}. Save the class ids as an indexed or grey PNG."


def test_truncated_masks_and_bombs_are_refused(tmp_path):
    path = tmp_path / "m.png"
    path.write_bytes(png(GREY, 0)[:-20])
    with pytest.raises(BadSampleError, match="it is truncated"):
        read_mask(path)
    path.write_bytes(png(GREY, 0))
    with pytest.raises(BadSampleError, match="more than max_pixels = 383"):
        read_mask(path, max_pixels=383)


STORED = np.arange(16 * 24).reshape(16, 24) % 251
SQUARE = STORED[:, :16]


@pytest.fixture
def pair(tmp_path):
    """Writes an image with an EXIF orientation and a mask with or without its own; their paths."""

    def make(image_tag, mask, mask_tag=None):
        shape = SQUARE.shape if mask.shape == SQUARE.shape else STORED.shape
        (tmp_path / "i.jpg").write_bytes(jpeg(np.zeros((*shape, 3), np.uint8), orientation=image_tag))
        before = [] if mask_tag is None else [(b"eXIf", exif(mask_tag))]
        (tmp_path / "m.png").write_bytes(png(mask, 0, before=before))
        return tmp_path / "m.png", tmp_path / "i.jpg"

    return make


def by_pillow(mask, tag):
    """What Pillow makes of the mask with this orientation."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.getexif()[0x0112] = tag
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("tag", range(1, 9))
def test_its_own_orientation_counts(tag, pair):
    path, image = pair(tag, STORED, mask_tag=tag)
    expected = by_pillow(STORED, tag)
    assert (read_mask(path) == expected).all()
    for drawn_on in ("auto", "stored", "shown"):
        assert (read_mask(path, image, drawn_on) == expected).all()


@pytest.mark.parametrize("tag", range(1, 9))
def test_the_image_lends_its_orientation(tag, pair):
    path, image = pair(tag, STORED)
    expected = by_pillow(STORED, tag)
    assert (read_mask(path) == STORED).all()
    assert (read_mask(path, image, "stored") == expected).all()
    path, image = pair(tag, expected)
    assert (read_mask(path, image, "shown") == expected).all()


@pytest.mark.parametrize("tag", [1, 5, 6, 7, 8])
def test_auto_goes_by_the_size(tag, pair):
    expected = by_pillow(STORED, tag)
    for mask in (STORED, expected):
        assert (read_mask(*pair(tag, mask)) == expected).all()


def test_an_upright_square_fits(pair):
    assert (read_mask(*pair(1, SQUARE)) == SQUARE).all()
    assert (read_mask(*pair(None, SQUARE)) == SQUARE).all()
    assert (read_mask(*pair(6, by_pillow(SQUARE, 6), mask_tag=1)) == by_pillow(SQUARE, 6)).all()


@pytest.mark.parametrize(("tag", "mask"), [(3, STORED), (2, STORED), (6, SQUARE)])
def test_auto_does_not_guess(tag, mask, pair):
    path, image = pair(tag, mask)
    with pytest.raises(BadSampleError) as raised:
        read_mask(path, image)
    assert str(raised.value) == (
        f"{path}: its image {image} has EXIF orientation {tag}, it has none and fits both ways. "
        "Say drawn_on='stored' or 'shown'."
    )


@pytest.mark.parametrize("drawn_on", ["auto", "stored", "shown"])
def test_another_size_is_refused(drawn_on, pair):
    path, image = pair(1, STORED[:15])
    with pytest.raises(BadSampleError) as raised:
        read_mask(path, image, drawn_on)
    assert str(raised.value) == f"{path}: it is 24 x 15 pixels, its image {image} 24 x 16. Pair them anew."


def test_a_misspelt_word_is_refused():
    with pytest.raises(InvalidValueError, match="drawn_on is 'showed'; did you mean 'shown'"):
        read_mask("m.png", drawn_on="showed")
