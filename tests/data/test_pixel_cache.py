import os
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_tuning.data import BadSampleError, PixelCache, SeededPipeline, named_transforms
from lightning_tuning.data.image_files import ImageFiles
from lightning_tuning.errors import InvalidValueError

from .image_files import jpeg, png
from .pixel_source import SHAPES, Nothing, Source, check, image

ENDS = [105, 153, 156, 192, 273]
"""Where each image ends in a block: the sums of 5*7*3, 4*4*3, 1*1*3, 6*2*3, 3*9*3."""


class Fixed(list):
    """The images given, each decoded as often as it is asked for."""


@pytest.fixture(params=["ram", "folder"])
def where(request, tmp_path):
    return "ram" if request.param == "ram" else tmp_path / "a" / "cache"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def test_each_image_is_decoded_once(where):
    source = Source()
    cache = PixelCache(source, SHAPES, where, "k")
    for epoch in range(3):
        for index in (3, 0, 4, 2, 1):
            pixels = cache[index]
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, image(index))
            assert not pixels.flags.writeable, epoch
    assert source.asked == [3, 0, 4, 2, 1]


def test_it_is_a_sequence(where):
    cache = PixelCache(Source(), SHAPES, where, "k")
    for images in (list(cache), list(cache), list(reversed(cache))[::-1]):
        assert [each.tolist() for each in images] == [image(index).tolist() for index in range(5)]
    assert len(cache) == 5
    for position in (-2, np.int64(3)):
        source = Source()
        np.testing.assert_array_equal(PixelCache(source, SHAPES, where, f"{position}")[position], image(3))
        assert source.asked == [3]
    for index in (5, -6):
        with pytest.raises(IndexError):
            cache[index]
    with pytest.raises(TypeError):
        cache[1.0]
    assert [each.tolist() for each in cache[-1:1:-2]] == [image(index).tolist() for index in (4, 2)]


def test_what_is_kept_is_told(where):
    cache = PixelCache(Source(), [*SHAPES[:2], (1000, 500, 3), *SHAPES[3:]], where, "k")
    cache[0]
    cache[2]  # of another shape
    assert cache.report() == "cached 1 of 5 images, 0.0 MB"
    cache = PixelCache(
        Fixed([np.zeros((1000, 500, 3), np.uint8)] * 3), [(1000, 500, 3), None, (1000, 500, 3)], where, "l"
    )
    list(cache)
    assert cache.report() == "cached 2 of 3 images, 3.0 MB"
    name = "ram" if where == "ram" else str(where / "pixels-")
    assert repr(cache).startswith(f"PixelCache({name}")
    assert repr(cache).endswith(": cached 2 of 3 images, 3.0 MB)")


def test_a_bad_sample_is_asked_for_again(where):
    source = Source(bad=[1, 3])
    cache = PixelCache(source, [SHAPES[0], None, *SHAPES[2:]], where, "k")
    for _ in range(2):
        for index in range(5):
            if index in (1, 3):
                with pytest.raises(BadSampleError, match=f"^{index}.png: it is empty. Copy it again.$"):
                    cache[index]
            else:
                np.testing.assert_array_equal(cache[index], image(index))
    assert source.asked == [0, 1, 2, 3, 4, 1, 3]


@pytest.mark.parametrize(
    ("promised", "pixels"),
    [
        (None, image(0)),
        ((7, 5, 3), image(0)),  # the same number of bytes
        ((5, 7, 1), image(0)),
        ((5, 7, 3), image(0).astype(np.int16)),
        ((5, 7, 3), image(0).astype(bool)),
        ((5, 7, 1), image(0)[..., 0]),
    ],
    ids=["unknown", "turned", "grey", "16 bits", "bool", "no channels"],
)
def test_what_does_not_keep_its_promise_is_not_kept(where, promised, pixels):
    source = Fixed([image(1), pixels, image(2)])
    cache = PixelCache(source, [SHAPES[1], promised, SHAPES[2]], where, "k")
    for _ in range(2):
        for index, expected in enumerate(source):
            assert cache[index].dtype == expected.dtype
            assert not cache[index].flags.writeable
            np.testing.assert_array_equal(cache[index], expected)
    assert "cached 2 of 3 images" in cache.report()
    assert pixels.flags.writeable  # the source's own array


def test_pixels_that_do_not_lie_in_a_row(where):
    turned = image(0).swapaxes(0, 1)[::-1]
    cache = PixelCache(Fixed([turned]), [(7, 5, 3)], where, "k")
    cache[0]
    cache.source = Nothing()
    np.testing.assert_array_equal(cache[0], turned)


@pytest.mark.parametrize("name", ["none", "weak", "strong", "randaugment", "trivialaugment", "augmix", "resized_crop"])
def test_augmentations_take_images_that_cannot_be_written_to(name):
    made = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cache = PixelCache(Fixed([made.copy()]), [made.shape])
    pipeline = SeededPipeline(named_transforms(name, 32, 3, True))
    for seed in range(12):
        assert (pipeline(cache[0], seed) == pipeline(made.copy(), seed)).all()
    assert (cache[0] == made).all()


def test_no_images(where):
    cache = PixelCache([], [], where, "k")
    assert (len(cache), list(cache), cache.report()) == (0, [], "cached 0 of 0 images, 0.0 MB")
    cache = PixelCache(Source(bad=range(5)), [None] * 5, where, "k")
    with pytest.raises(BadSampleError):
        cache[0]


def test_as_many_shapes_as_images(where):
    with pytest.raises(InvalidValueError, match="There are 4 shapes of 5 images"):
        PixelCache(Source(), SHAPES[:4], where, "k")


class Digests:
    """A dataset of sums over images, so that workers send back what they read."""

    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, index):
        return self.cache[index].astype(np.int64).ravel() @ np.arange(1, self.cache[index].size + 1)


EXPECTED = [int(image(i).astype(np.int64).ravel() @ np.arange(1, image(i).size + 1)) for i in range(len(SHAPES))]


@pytest.mark.parametrize(
    ("context", "persistent"),
    [("fork", True), ("fork", False), pytest.param("spawn", False, marks=pytest.mark.slow)],
)
def test_workers_share_it(where, context, persistent):
    source = Source()
    cache = PixelCache(source, SHAPES, where, "k")
    cache[2]  # before the workers start
    loader = DataLoader(
        Digests(cache), batch_size=1, num_workers=2, multiprocessing_context=context, persistent_workers=persistent
    )
    assert torch.cat(list(loader)).tolist() == EXPECTED
    cache.source = Nothing()
    check(cache)  # what the workers wrote
    if not persistent:
        assert torch.cat(list(loader)).tolist() == EXPECTED
    assert source.asked == [2]


def test_pickled_to_a_spawned_worker_it_is_a_handle(tmp_path):
    shape = (1000, 1000, 3)
    for where in ("ram", tmp_path):
        cache = PixelCache(Fixed(), [], where, "k")
        cache = PixelCache(Fixed([np.ones(shape, np.uint8)] * 2), [shape] * 2, where, "k")
        cache[0]
        cache.source = Nothing()
        data = ForkingPickler.dumps(cache)
        assert len(data) < 3000
        other = ForkingPickler.loads(data)
        assert (other[0] == 1).all()
        other.source = Fixed([None, np.full(shape, 7, np.uint8)])
        other[1]
        assert (cache[1] == 7).all()


@pytest.fixture
def files(tmp_path):
    """Five good ones, and a bad header, bad pixels, a large one, and none."""
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(png(image(index), 2))
    (tmp_path / "5.png").write_bytes(b"<html>")
    (tmp_path / "6.png").write_bytes(jpeg(image(0))[:-2])
    (tmp_path / "7.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8), 2))
    return ImageFiles([tmp_path / f"{index}.png" for index in range(9)], max_pixels=5 * 7)


def decoded(cache, monkeypatch):
    """Compare all images of ``files`` with what they must be, and tell which were decoded."""
    read, asked = ImageFiles.__getitem__, []
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda self, index: (asked.append(index), read(self, index))[1])
    check(cache)
    for index, reason in {5: "HTML|no image", 6: "truncated|corrupt", 7: "8 x 8 pixels", 8: "does not exist"}.items():
        with pytest.raises(BadSampleError, match=reason):
            cache[index]
    monkeypatch.setattr(ImageFiles, "__getitem__", read)
    return asked


def test_images_of_files(where, files, monkeypatch):
    cache = PixelCache.of_files(files, where)
    assert decoded(cache, monkeypatch) == [*range(9)]
    assert decoded(cache, monkeypatch) == [5, 6, 7, 8]
    assert cache._ends.tolist() == [*ENDS, 273, 378, 378, 378]
    assert cache._block.pixels.size == 378


def test_a_changed_file_makes_another_cache(files, folder, monkeypatch):
    assert decoded(PixelCache.of_files(files, folder), monkeypatch) == [*range(9)]
    assert decoded(PixelCache.of_files(files, folder), monkeypatch) == [5, 6, 7, 8]
    os.utime(files.paths[3], ns=(1, 1))
    assert decoded(PixelCache.of_files(files, folder), monkeypatch) == [*range(9)]
    assert len(os.listdir(folder)) == 2
    assert PixelCache.of_files(ImageFiles(files.paths, 1, 63), folder)[0].shape == (5, 7, 1)
    monkeypatch.setattr("cv2.__version__", "0.0")
    assert decoded(PixelCache.of_files(files, folder), monkeypatch) == [*range(9)]


def test_the_shape_comes_from_a_list_of_lists_or_an_array(where):
    for shapes in (np.array(SHAPES), [list(shape) for shape in SHAPES]):
        cache = PixelCache(Source(), shapes, where, "k")
        check(cache)
        cache.source = Nothing()
        check(cache)
