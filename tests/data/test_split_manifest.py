import os
from pathlib import Path

import numpy as np
import pytest

from lightning_tuning.data import Split, find_duplicates, load_split, save_split
from lightning_tuning.errors import InvalidValueError

KEYS = ["b.png", "a.png", "d/x.png", "c.png", "e.png", "f.png"]
TEXT = """key,part,label
a.png,val,yes
b.png,train,yes
c.png,unused,no
d/x.png,train,no
e.png,test,yes
f.png,train,yes
"""


def split(train=(0, 2, 5), val=(1,), test=(4,), labeled=(0, 5)):
    return Split(*(np.array(part, dtype=np.int64) for part in (train, val, test, labeled)))


def same(a, b):
    return all(x.tolist() == y.tolist() for x, y in zip(a, b, strict=True))


@pytest.fixture
def path(tmp_path):
    """A manifest of ``split()``."""
    save_split(tmp_path / "run" / "split.csv", KEYS, split())
    return tmp_path / "run" / "split.csv"


def test_what_is_written(path):
    assert path.read_text() == TEXT
    assert os.listdir(path.parent) == ["split.csv"]


def test_a_split_comes_back_whatever_the_order_of_the_data(path):
    assert same(load_split(path, KEYS), split())
    moved = [3, 5, 0, 4, 2, 1]
    loaded = load_split(path, [KEYS[i] for i in moved])
    for part, wanted in zip(loaded, split(), strict=True):
        assert part.dtype == np.int64
        assert sorted(KEYS[moved[i]] for i in part) == sorted(KEYS[i] for i in wanted)
        assert (np.diff(part) > 0).all()


def test_odd_names_come_back(tmp_path):
    keys = [
        "a,b",
        'say "x"',
        "two\nlines",
        "carriage\rreturn",
        " space ",
        "ümlaut",
        os.fsdecode(b"latin\xe4"),
        "'",
        "#",
    ]
    made = split(range(7), [7], [8], [0, 6])
    save_split(tmp_path / "split.csv", keys, made)
    assert same(load_split(tmp_path / "split.csv", keys), made)


def test_empty_parts_come_back(tmp_path):
    save_split(tmp_path / "split.csv", KEYS, Split(np.arange(6), np.array([]), np.array([]), np.array([])))
    assert same(load_split(tmp_path / "split.csv", KEYS), split(range(6), (), (), ()))


def test_the_same_split_leaves_the_file_alone(path):
    os.utime(path, ns=(1, 1))
    save_split(path, KEYS[::-1], split((0, 3, 5), (4,), (1,), (5, 0)))
    assert (path.read_text(), path.stat().st_mtime_ns) == (TEXT, 1)


@pytest.mark.parametrize(
    ("keys", "changed", "message"),
    [
        (KEYS, split(val=(3,)), r"2 samples \('a.png', 'c.png'\) in another part. It is not overwritten"),
        (KEYS, split(labeled=(0,)), r"1 sample \('f.png'\) with another label"),
        (
            [*KEYS[:5], "new.png"],
            split(),
            r"1 sample \('f.png'\) only in the file; 1 sample \('new.png'\) only in the new",
        ),
    ],
)
def test_another_split_is_not_overwritten(path, keys, changed, message):
    with pytest.raises(InvalidValueError, match=f"holds another split: {message}"):
        save_split(path, keys, changed)
    assert path.read_text() == TEXT


def test_what_is_no_split_is_not_overwritten(path):
    path.write_text("dear diary")
    with pytest.raises(InvalidValueError, match="is no split: its first line is 'dear diary'"):
        save_split(path, KEYS, split())
    assert path.read_text() == "dear diary"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    seen = []

    def fail(source, target):
        seen.append(Path(source).read_text())
        raise OSError("disk full")

    monkeypatch.setattr("lightning_tuning.data.split_manifest.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_split(tmp_path / "split.csv", KEYS, split())
    assert seen == [TEXT]  # whole, under another name, before it gets its own
    assert os.listdir(tmp_path) == []


def test_other_data_are_refused(path):
    with pytest.raises(InvalidValueError) as caught:
        load_split(path, ["a.png", *(f"{i}.png" for i in range(5))])
    message = str(caught.value)
    assert "5 samples ('b.png', 'c.png', 'd/x.png', ...) missing in the data" in message
    assert "5 samples ('0.png', '1.png', '2.png', ...) new in the data" in message


def test_keys_must_tell_the_samples_apart(path, tmp_path):
    for action in (lambda keys: load_split(path, keys), lambda keys: save_split(tmp_path / "x.csv", keys, split())):
        with pytest.raises(InvalidValueError, match=r"The data has 2 keys \('b.png', 'a.png'\) more than once"):
            action([*KEYS[:4], "b.png", "a.png"])
        with pytest.raises(InvalidValueError, match="The data has an empty key"):
            action([*KEYS[:5], ""])
    assert not (tmp_path / "x.csv").exists()
    path.write_text(TEXT + "a.png,train,no\n")
    with pytest.raises(InvalidValueError, match=r"The split .*split.csv has 1 key \('a.png'\) more than once"):
        load_split(path, KEYS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line is ''; it must be 'key,part,label'"),
        (TEXT.replace("label", "labels"), "first line is 'key,part,labels'"),
        (
            TEXT.replace("val,yes", "valid,yes"),
            "line 2: 'a.png,valid,yes' is no row of a split; .* train, val, test, unused",
        ),
        (TEXT.replace("unused,no", "unused,0"), "line 4: 'c.png,unused,0'"),
        (TEXT[:-5], "line 7: 'f.png,train' is no row"),
        (TEXT + '"open', "cannot be read: "),
    ],
)
def test_a_broken_manifest_is_refused(path, text, message):
    path.write_text(text)
    with pytest.raises(InvalidValueError, match=message):
        load_split(path, KEYS)


def test_a_manifest_that_a_spreadsheet_saved_is_read(path):
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert same(load_split(path, KEYS), split())


def test_a_manifest_that_is_not_there_or_a_folder_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"There is no split .*none.csv; save_split writes one"):
        load_split(tmp_path / "none.csv", KEYS)
    with pytest.raises(InvalidValueError, match="cannot be read"):
        load_split(tmp_path, KEYS)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (split(val=(1, 5)), r"1 sample \('f.png'\) would be in train and in val"),
        (split(test=(1,)), r"1 sample \('a.png'\) would be in val and in test"),
        (split(labeled=(0, 1, 3)), r"2 samples \('a.png', 'c.png'\) would keep a label outside the training part"),
        (split(test=(4, 6)), "test has indices from 4 to 6; there are 6 keys, so they must be from 0 to 5"),
        (split(labeled=(-1, 0)), "labeled has indices from -1 to 0"),
    ],
)
def test_splits_that_are_none_are_refused(tmp_path, bad, message):
    with pytest.raises(InvalidValueError, match=message):
        save_split(tmp_path / "split.csv", KEYS, bad)
    assert not os.listdir(tmp_path)


def test_duplicates_across_parts_are_named():
    hashes = {
        "train": {"a": b"1", "b": b"2", "c": b"2", "d": b"3"},
        "val": {"e": b"2", "f": b"4", "g": b"4"},
        "test": {"h": b"3", "i": b"2", "j": b"5"},
    }
    assert find_duplicates(hashes) == [
        {"train": ["b", "c"], "val": ["e"], "test": ["i"]},
        {"train": ["d"], "test": ["h"]},
    ]
    assert find_duplicates({"train": {"a": 1, "b": 1}, "val": {}}) == []
