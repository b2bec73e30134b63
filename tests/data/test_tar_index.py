"""Samples found in tar files: their keys, places and order, and every way in which a tar file can be wrong."""

import gzip
import io
import re
import tarfile

import pytest

from lightning_tuning.data.tar_index import read_index, shard_paths
from lightning_tuning.errors import InvalidValueError

from .tars import member, tar_bytes


def index(data):
    """Key and content of each member of each sample."""
    samples = list(read_index(io.BytesIO(data), "a.tar"))
    return [(s.key, {e: data[start : start + size] for e, (start, size) in s.members.items()}) for s in samples]


def message(data):
    with pytest.raises(InvalidValueError) as raised:
        list(read_index(io.BytesIO(data), "a.tar"))
    return str(raised.value)


TWO = [("1.jpg", b"first"), ("1.cls", b"0"), ("2.jpg", b"second" * 200), ("2.cls", b"1")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_in_their_order(form):
    long = "folder/" + "long" * 30 + "/b"
    data = tar_bytes([(f"{long}.jpg", b"zero"), *TWO[2:], *TWO[:2]], form)
    assert index(data) == [
        (long, {"jpg": b"zero"}),
        ("2", {"jpg": b"second" * 200, "cls": b"1"}),
        ("1", {"jpg": b"first", "cls": b"0"}),
    ]


def test_the_key_ends_at_the_first_dot_of_the_last_part():
    data = tar_bytes([("./v1.0/a.seg.PNG", b"x"), ("v1.0/a.JPG", b"y"), ("v2.0/a.jpg", b"z")])
    assert index(data) == [("v1.0/a", {"seg.png": b"x", "jpg": b"y"}), ("v2.0/a", {"jpg": b"z"})]


def test_what_is_no_member_of_a_sample():
    folder, link = member("v1.x", b"", tarfile.DIRTYPE), member("1.png", b"", tarfile.SYMTYPE)
    link[0].linkname = "/etc/passwd"
    between = [folder, link, ("README", b"r"), (".hidden", b"h"), ("._1.jpg", b"m"), ("dot.", b"d")]
    assert index(tar_bytes([TWO[0], *between, TWO[1]])) == [("1", {"jpg": b"first", "cls": b"0"})]


def test_members_apart_or_twice():
    apart = message(tar_bytes([TWO[0], *TWO[2:], TWO[1]]))
    assert apart.startswith("a.tar: the members of '1' do not stand together, or there are two samples of this name.")
    twice = message(tar_bytes([TWO[0], ("1.JPG", b"other")]))
    assert twice == "a.tar: 1.jpg comes twice. Each name may come once."


def test_every_cut_is_noticed():
    """At any byte before the archive's end marker, even between two members."""
    data = tar_bytes(TWO)
    end = 4 * 512 + 3 * 512 + 3 * 512  # headers; one block each of the short members; 1200 bytes
    assert data[end:] == bytes(len(data) - end)
    for size in [*range(0, end + 512, 256), *range(1, end + 512, 509), end - 1, end, end + 511]:
        text = message(data[:size])
        assert re.match(r"a\.tar (is empty|is truncated|cannot be read as tar: it is truncated, )", text)
        assert text.endswith(". Copy, download or write it again.")
        assert "\n" not in text
    assert (
        message(data[: end - 1]) == "a.tar is truncated: 2.cls goes beyond its end. Copy, download or write it again."
    )
    assert message(data[:1024]) == "a.tar is truncated at byte 1024 of 1024. Copy, download or write it again."
    assert len(index(data[: end + 512])) == 2


def test_what_stands_behind_the_end_and_broken_headers():
    data = tar_bytes(TWO[:2])
    second = 2 * 512  # the header of 1.cls
    for wrong, place in ((data + data, 4 * 512), (data[: second + 3] + b"X" + data[second + 4 :], second)):
        assert message(wrong) == (
            f"a.tar is corrupt, or several archives in one file, at byte {place} of {len(wrong)}. Copy, download or "
            "write it again."
        )


def test_sizes_below_zero_end():
    info = tarfile.TarInfo("1.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    assert "size below 0" in message(bytes(header) + bytes(2048))


def test_holes_are_refused():
    info, data = member("1.jpg", bytes(512))
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 512
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    assert message(bytes(header) + data + bytes(1024)) == "a.tar: 1.jpg is stored with holes; pack without --sparse."


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            gzip.compress(tar_bytes(TWO)),
            "is compressed; samples are drawn in any order, which needs a plain tar: `gunz",
        ),
        (b"\x28\xb5\x2f\xfd" + bytes(900), "which needs a plain tar: `unzstd a.tar`."),
        (b"<html>" * 300, "a.tar cannot be read as tar: it is truncated, corrupt or none ("),
        (b"", "a.tar is empty. Copy, download or write it again."),
    ],
)
def test_other_files(data, text):
    assert text in message(data)


def test_a_tar_file_without_samples():
    assert index(tar_bytes([])) == index(tar_bytes([("README", b"x")])) == []


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a-098.tar", "a-099.tar", "a-100.tar", "b[1].tar", "sub/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert shard_paths("a-099.tar") == ["a-099.tar"]
    assert shard_paths("a-*.tar") == ["a-098.tar", "a-099.tar", "a-100.tar"]
    assert shard_paths("a-{098..100}.tar") == ["a-098.tar", "a-099.tar", "a-100.tar"]
    assert shard_paths("a-0{98..99}.tar") == ["a-098.tar", "a-099.tar"]
    assert shard_paths("a-{0..0}{98..99}.tar") == ["a-098.tar", "a-099.tar"]
    assert shard_paths("b[1].tar") == ["b[1].tar"]
    assert shard_paths("**/c.tar") == ["sub/c.tar"]
    assert shard_paths(f"{tmp_path}/a-*9.tar") == [f"{tmp_path}/a-099.tar"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("s3://bucket/a.tar", "path is 's3://bucket/a.tar'; only local files are read"),
        ("pipe:cat a.tar", "only local files are read"),
        ("no-*.tar", "No file matches {here}/no-*.tar."),
        ("a-{8..9999999999}.tar", "There is no file {here}/a-8.tar; path is 'a-{{8..9999999999}}.tar'."),
        ("a-{9..8}.tar", "the range {{9..8}} has its larger number first"),
        ("", "There is no file"),
        (".", ". is a directory; name tar files, as ./*.tar."),
    ],
)
def test_paths_that_mean_no_file(path, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match=re.escape(text.format(here=tmp_path))):
        shard_paths(path)


def test_a_path_may_be_an_object(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", b"x")]))
    assert shard_paths(tmp_path / "a.tar") == [str(tmp_path / "a.tar")]
