"""Images and fields read from tar files by their place."""

import json
import os
import pickle
import re

import numpy as np
import pytest

from lightning_tuning.data import BadSampleError, tar_images
from lightning_tuning.data.tar_images import TarImages
from lightning_tuning.data.tar_table import read_tars
from lightning_tuning.errors import InvalidValueError

from .image_files import GREY, RGB, jpeg, png, three
from .tars import tar_bytes


@pytest.fixture
def write(tmp_path):
    """Writes a tar file and returns its path."""

    def written(members, name="a.tar"):
        (tmp_path / name).write_bytes(tar_bytes(members))
        return str(tmp_path / name)

    return written


def images_of(shards, endings=("jpg", "png"), **kwargs):
    table = read_tars(shards, endings, [])
    return TarImages(shards, table.places, table.names, **kwargs)


@pytest.fixture
def shards(write):
    """Two tar files with three images, of which the second is turned."""
    turned = jpeg(RGB, orientation=6)
    first = write([("x/1.png", png(RGB, 2)), ("x/2.jpg", turned)], "a.tar")
    return [first, write([("x/1.png", png(GREY, 0))], "b.tar")]


def test_images(shards):
    images = images_of(shards)
    assert len(images) == 3
    assert images.names == ["x/1.png", "x/2.jpg", "x/1.png"]
    assert images.places[:, 0].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(images[2], three(GREY))
    np.testing.assert_array_equal(images[0], RGB)
    assert np.abs(images[1].astype(int) - np.rot90(RGB, -1)).max() < 20
    assert [image.shape for image in images] == [(16, 24, 3), (24, 16, 3), (16, 24, 3)]
    assert [images.shape(index) for index in range(3)] == [(16, 24, 3), (24, 16, 3), (16, 24, 3)]
    assert images_of(shards, channels=1)[2].shape == images_of(shards, channels=1).shape(2) == (16, 24, 1)


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_files_are_opened_when_read_closed_at_the_end_and_not_pickled(shards):
    images = images_of(shards)
    assert images._open == {}
    images[0]
    images[1]
    assert [*images._open] == [0]
    copy = pickle.loads(pickle.dumps(images))
    assert copy._open == {}
    np.testing.assert_array_equal(copy[2], images[2])
    descriptors = [*images._open.values()]
    assert len(descriptors) == 2
    assert all(map(is_open, descriptors))
    del images
    assert not any(map(is_open, descriptors))
    assert is_open(copy._open[1])


def test_a_fork_reads_what_was_open_before(shards):
    images = images_of(shards)
    images[0]
    pid = os.fork()
    if not pid:
        right = all((images[0] == RGB).all() and (images[2] == three(GREY)).all() for _ in range(20))
        os._exit(0 if right else 1)
    assert all((images[0] == RGB).all() and (images[2] == three(GREY)).all() for _ in range(20))
    assert os.waitpid(pid, 0)[1] == 0


def test_not_all_files_stay_open(write, monkeypatch):
    monkeypatch.setattr(tar_images, "MOST_OPEN", 2)
    shards = [write([("1.png", png(RGB // (number + 1), 2))], f"{number}.tar") for number in range(4)]
    images = images_of(shards)
    images[0]
    first = images._open[0]
    for index in (1, 2, 3, 0, 0, 2):
        np.testing.assert_array_equal(images[index], RGB // (index + 1))
        assert len(images._open) <= 2
        assert is_open(first) == (index == 1 or first in images._open.values())  # a number may be given out again
    assert [*images._open] == [0, 2]


def test_bad_images(write):
    shard = write([("1.jpg", jpeg()[:-2]), ("2.jpg", b""), ("3.png", png(RGB, 2))])
    images = images_of([shard])
    for index, reason in ((0, "it is truncated"), (1, "it is empty")):
        with pytest.raises(BadSampleError, match=re.escape(f"{shard}/{index + 1}.jpg: {reason}. Copy or download")):
            images[index]
    with pytest.raises(BadSampleError, match="24 x 16 pixels, more than max_pixels = 383"):
        images_of([shard], max_pixels=383)[2]


def test_a_file_that_changed_or_went_away(shards):
    images = images_of(shards)
    os.truncate(shards[0], images.places[1, 1] + 5)
    os.remove(shards[1])
    with pytest.raises(BadSampleError, match=r"a\.tar/x/2\.jpg: its tar file has become shorter since it was indexed"):
        images[1]
    with pytest.raises(BadSampleError, match=r"b\.tar/x/1\.png: its tar file cannot be read \(No such file"):
        images[2]


PNG = png(RGB, 2)


def test_fields(write):
    entries = [{"kind": "dog", "age": 3, "ill": True, "a.b": 0.5}, {"kind": "cat", "age": 4, "ill": False, "a.b": -1}]
    members = [
        part
        for number, entry in enumerate(entries)
        for part in (
            (f"{number}.seg.png", b""),
            (f"{number}.jpg", PNG),
            (f"{number}.png", b""),
            (f"{number}.cls", b" 1\n"),
            (f"{number}.json", json.dumps(entry).encode()),
        )
    ]
    table = read_tars(
        [write(members)], ["webp", "jpg", "png"], ["json.kind", "cls", "json.ill", "json.a.b", "json.age"]
    )
    assert table.names == ["0.jpg", "1.jpg"]
    assert table.fields == {
        "json.kind": ["dog", "cat"],
        "cls": ["1", "1"],
        "json.ill": ["1", "0"],
        "json.a.b": ["0.5", "-1"],
        "json.age": ["3", "4"],
    }


@pytest.mark.parametrize(
    ("member", "field", "text"),
    [
        (
            ("1.json", b"{}"),
            "cls",
            "{}: '1' has no .cls, only .jpg, .json. Name the ending of the member that holds the",
        ),
        (("1.cls", b"2"), "json.label", "{}: '1' has no .json, only .jpg, .cls."),
        (("1.json", b'{"label": 1}'), "json.lable", "{}/1.json has no entry 'lable'; did you mean 'label'?"),
        (("1.json", b"{}"), "json.label", "{}/1.json has no entry 'label'. It has none."),
        (("1.json", b"{"), "json.label", "{}/1.json is no JSON: "),
        (("1.json", b"[" * 100_000), "json.label", "{}/1.json is no JSON: "),
        (("1.json", b"[]"), "json.label", "{}/1.json holds list; it must hold an object."),
        (("1.json", b'{"label": null}'), "json.label", "{}/1.json: 'label' is None; it must be a number or text."),
        (("1.json", b'{"label": NaN}'), "json.label", "'label' is nan; it must be a number or text."),
        (("1.json", b'{"label": [1]}'), "json.label", "'label' is [1]; it must be a number or text."),
        (("1.cls", b" \n"), "cls", "{}/1.cls is ''; it must be a number or text."),
        (("1.cls", b"\xff"), "cls", "{}/1.cls is no UTF-8 text: invalid start byte."),
    ],
)
def test_fields_that_are_none(member, field, text, write):
    shard = write([("1.jpg", PNG), member])
    with pytest.raises(InvalidValueError, match=re.escape(text.format(shard))):
        read_tars([shard], ["jpg"], [field])


def test_a_sample_without_an_image(write):
    shard = write([("1.jpg", PNG), ("2.cls", b"1")])
    with pytest.raises(InvalidValueError, match=re.escape(f"{shard}: '2' has no image (jpg, png), only .cls.")):
        read_tars([shard], ["jpg", "png"], [])


def test_a_file_that_may_not_be_read(write, monkeypatch):
    shard = write([("1.jpg", PNG)])

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InvalidValueError, match=r"a\.tar cannot be read: Permission denied\."):
        read_tars([shard], ["jpg"], [])
