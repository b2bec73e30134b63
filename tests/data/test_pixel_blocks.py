import errno
import os
import shutil
import signal
import warnings
from collections import namedtuple
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from lightning_tuning.data import PixelCache
from lightning_tuning.data import pixel_blocks as blocks
from lightning_tuning.errors import InvalidValueError

from .pixel_source import SHAPES, Nothing, Source, check, image, only_file

ENDS = [105, 153, 156, 192, 273]
"""Where each image ends in a block: the sums of 5*7*3, 4*4*3, 1*1*3, 6*2*3, 3*9*3."""
SUMS_AT = 64  # 32 bytes that say what it is, 32 of the hash
PIXELS_AT = SUMS_AT + 4 * len(SHAPES)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def test_a_later_run_decodes_nothing(folder):
    check(PixelCache(Source(), SHAPES, folder, "k"))
    check(PixelCache(Nothing(), SHAPES, folder, b"k"))
    check(PixelCache(Nothing(), SHAPES, str(folder), "k"))
    assert only_file(folder).name.startswith("pixels-")


def test_simultaneous_runs_share_the_file(folder):
    one, two = PixelCache(Source(), SHAPES, folder, "k"), PixelCache(Source(bad=[0]), SHAPES, folder, "k")
    one[0]
    np.testing.assert_array_equal(two[0], image(0))
    two[1]
    one.source = Nothing()
    np.testing.assert_array_equal(one[1], image(1))
    one._block.write(1, ENDS[0], image(1), int(one._block.sums[1]))  # the same again
    np.testing.assert_array_equal(two[1], image(1))


def test_other_data_have_another_file(folder):
    check(PixelCache(Source(), SHAPES, folder, "k"))
    first = only_file(folder)
    before = first.read_bytes()
    for number, (shapes, key) in enumerate(
        [(SHAPES, "l"), ([*SHAPES[:4], (9, 3, 3)], "k"), ([*SHAPES[:4], None], "k")]
    ):
        source = Source()
        PixelCache(source, shapes, folder, key)[0]
        assert source.asked == [0]
        assert len(os.listdir(folder)) == number + 2
    assert first.read_bytes() == before


def test_the_form_of_the_file(folder):
    PixelCache(Source(), SHAPES, folder, "k")[1]
    data = only_file(folder).read_bytes()
    assert len(data) == PIXELS_AT + ENDS[-1]
    assert np.frombuffer(data[SUMS_AT:PIXELS_AT], "<u4").astype(bool).tolist() == [False, True, False, False, False]
    start, end = PIXELS_AT + ENDS[0], PIXELS_AT + ENDS[1]
    assert data[start:end] == image(1).tobytes()
    assert not any(data[PIXELS_AT:start] + data[end:])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda data: data[:-1], f"has {PIXELS_AT + ENDS[-1] - 1} bytes in place of {PIXELS_AT + ENDS[-1]}"),
        (lambda data: data + b"\0", "has "),
        (lambda data: b"", "has 0 bytes"),
        (lambda data: bytes(len(data)), "holds something else"),
        (lambda data: data[:40] + b"\0\0" + data[42:], "holds something else"),  # a hash that begins alike
    ],
)
def test_a_damaged_or_foreign_file_is_left_alone(folder, damage, fault):
    check(PixelCache(Source(), SHAPES, folder, "k"))
    path = only_file(folder)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    for source in (Source(), Nothing()):
        with pytest.warns(UserWarning, match=f"{path.name} is not the cache that its name says: it {fault}"):
            cache = PixelCache(source, SHAPES, folder, "k")
        check(cache)
    assert path.read_bytes() == before
    assert sorted(os.listdir(folder)) == sorted([path.name, path.name.replace(".cache", "-2.cache")])


@pytest.mark.parametrize("place", [SUMS_AT + 4, PIXELS_AT + ENDS[0], PIXELS_AT + ENDS[1] - 1])
def test_damaged_pixels_are_decoded_again(folder, place):
    check(PixelCache(Source(), SHAPES, folder, "k"))
    path = only_file(folder)
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    data[place] ^= 1
    path.write_bytes(data)
    source = Source()
    check(PixelCache(source, SHAPES, folder, "k"))
    assert source.asked == [1]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("place", range(2))
def test_a_run_that_is_killed_leaves_no_half_image(folder, monkeypatch, place):
    """Killed within the pixels, and between the pixels and the checksum."""
    pwrite = os.pwrite

    def killed(handle, data, at):
        if place == 0:
            pwrite(handle, data[: len(data) // 2], at)
        if place == 0 or at < PIXELS_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return pwrite(handle, data, at)

    child = os.fork()
    if not child:
        monkeypatch.setattr(os, "pwrite", killed)
        PixelCache(Source(), SHAPES, folder, "k")[4]
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    data = only_file(folder).read_bytes()
    assert not any(data[SUMS_AT:PIXELS_AT])
    assert any(data[PIXELS_AT:])
    source = Source()
    check(PixelCache(source, SHAPES, folder, "k"))
    assert source.asked == [0, 1, 2, 3, 4]


def test_a_write_in_pieces_is_finished(folder, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:10], at))
    check(PixelCache(Source(), SHAPES, folder, "k"))
    check(PixelCache(Nothing(), SHAPES, folder, "k"))


def test_a_full_disk_costs_time_alone(folder, monkeypatch):
    def full(handle, data, at):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = Source()
    cache = PixelCache(source, SHAPES, folder, "k")
    cache[0]
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(UserWarning, match=r"cannot be written to \(No space left on device\). Images that") as caught:
        check(cache, times=2)
    assert len(caught) == 1
    assert source.asked == [0, 1, 2, 3, 4, 1, 2, 3, 4]


def test_of_two_that_make_the_file_at_once_one_wins(folder, monkeypatch):
    link, others = os.link, []

    def late(source, target):
        if not others:
            others.append(None)
            others[0] = PixelCache(Source(), SHAPES, folder, "k")
            others[0][0]
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    cache = PixelCache(Nothing(), SHAPES, folder, "k")
    np.testing.assert_array_equal(cache[0], image(0))
    only_file(folder)


def test_a_file_system_without_links(folder, monkeypatch):
    def fail(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    check(PixelCache(Source(), SHAPES, folder, "k"))
    check(PixelCache(Nothing(), SHAPES, folder, "k"))
    only_file(folder)


def test_nobody_sees_a_part_of_the_file(folder, monkeypatch):
    def fail(handle):
        seen.extend(os.listdir(folder))
        raise OSError(errno.EIO, "Input/output error")

    seen = []
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InvalidValueError, match=r"cache is '.*', where no file can be kept: .*Input/output error"):
        PixelCache(Source(), SHAPES, folder, "k")
    assert [name[:8] for name in seen] == [".pixels-"]
    assert os.listdir(folder) == []


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("dear diary")
    with pytest.raises(
        InvalidValueError, match=r"file', where no file can be kept: .*exists.* Write 'ram' or a folder"
    ):
        PixelCache(Source(), SHAPES, tmp_path / "file", "k")
    assert (tmp_path / "file").read_text() == "dear diary"


@pytest.mark.parametrize("key", ["", b""])
def test_a_folder_needs_a_key(folder, key):
    with pytest.raises(InvalidValueError, match="there it needs a key of the images"):
        PixelCache(Source(), SHAPES, folder, key)
    assert not folder.exists()


def test_keys_of_odd_names(folder):
    for key in (os.fsdecode(b"latin\xe4.png"), "\ud800", "ü", "ü".encode("latin1")):
        PixelCache(Source(), SHAPES, folder, key)
    assert len(os.listdir(folder)) == 4


Usage = namedtuple("Usage", "total used free")


class TestRoom:
    """Caches of 1 GB that are not to be made; 1.25 GB must be free."""

    SHAPE = (10**4, 10**5, 1)

    @pytest.fixture(autouse=True)
    def _nothing_is_made(self, monkeypatch):
        monkeypatch.setattr(blocks.np, "empty", lambda *args: pytest.fail("allocated"))

    @pytest.fixture
    def free(self, monkeypatch):
        def set_free(memory=10**12, disk=10**12):
            monkeypatch.setattr(blocks, "available_memory", lambda: memory)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: (asked.append(str(path)), Usage(0, 0, disk))[1])

        asked = []
        self.asked = asked
        return set_free

    def make(self, where="ram"):
        return PixelCache([None], [self.SHAPE], where, "k")

    def test_too_little_memory(self, free):
        free(memory=1_249_000_000)
        with pytest.raises(InvalidValueError) as caught:
            self.make()
        assert str(caught.value) == (
            "cache is 'ram', but 1 decoded images take 1.0 GB, more than 80% of the 1.2 GB that are free in memory. "
            "Write a folder in place of 'ram', or store the images smaller."
        )

    def test_too_little_shared_memory(self, free, monkeypatch):
        free(disk=67_000_000)
        monkeypatch.setattr(blocks, "SHARED_MEMORY", "/")
        with pytest.raises(
            InvalidValueError, match=r"more than 80% of the 67.0 MB that are free in /, where shared"
        ) as e:
            self.make()
        assert "docker run --shm-size" in str(e.value)
        assert self.asked == ["/"]

    def test_enough(self, free):
        free(memory=1_250_000_000, disk=1_250_000_000)
        with pytest.raises(pytest.fail.Exception, match="allocated"):
            self.make()

    def test_too_small_a_disk(self, free, folder):
        free(disk=1_249_000_000)
        with pytest.raises(
            InvalidValueError, match=r"take 1.0 GB, more than 80% of the 1.2 GB that are free on its disk"
        ):
            self.make(folder)
        assert self.asked == [str(folder)]
        assert os.listdir(folder) == []

    def test_the_disk_is_used_as_the_file_is_filled(self, free, folder):
        free(disk=1_251_000_000)
        self.make(folder)
        assert only_file(folder).stat().st_size > 10**9
        assert only_file(folder).stat().st_blocks * 512 < 10**6
        free(disk=0)
        self.make(folder)  # it is there already


def test_nothing_is_left_open(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = PixelCache(Source(), SHAPES, folder, "k")
        handle = cache._block._file
        pixels = cache[0]
        pixels = cache[0]
        del cache
    assert handle.closed
    np.testing.assert_array_equal(pixels, image(0))  # the image outlives its cache


def test_relative_folders_stay_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = PixelCache(Source(), SHAPES, "cache", "k")
    (tmp_path / "elsewhere").mkdir()
    data = ForkingPickler.dumps(cache)
    monkeypatch.chdir(tmp_path / "elsewhere")
    ForkingPickler.loads(data)[0]
    assert not Path("cache").exists()
    cache.source = Nothing()
    np.testing.assert_array_equal(cache[0], image(0))


def test_the_home_folder_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    PixelCache(Source(), SHAPES, "~/cache", "k")
    only_file(tmp_path / "cache")
