"""Where each sample's members stand in the tar files of the WebDataset convention."""

from __future__ import annotations

import glob
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

from lightning_tuning.errors import InvalidValueError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_UNPACKED_BY = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_AGAIN = "Copy, download or write it again."


class TarSample(NamedTuple):
    """The members of one sample, which share everything before the first dot of their names' last part.

    Args:
        key: What they share: ``0001`` of ``0001.jpg`` and ``0001.seg.png``.
        members: Offset and size in bytes of each member's content by what follows that dot, in small letters.
    """

    key: str
    members: dict[str, tuple[int, int]]


def shard_paths(path: str | os.PathLike[str]) -> list[str]:
    """The tar files that a path means.

    Args:
        path: A file, a pattern such as ``shards/*.tar``, or a range such as ``train-{000..099}.tar``.

    Returns:
        The files of a pattern by name, those of a range by number.

    Raises:
        InvalidValueError: There is no such file, or the path means something else.
    """
    path = os.fspath(path)
    if "://" in path or path.startswith("pipe:"):
        raise InvalidValueError(
            f"path is {path!r}; only local files are read, for samples are drawn in any order. Download the shards."
        )
    files: dict[str, None] = {}
    for name in _expanded(path):
        is_pattern = glob.has_magic(name) and not os.path.exists(name)
        for file in sorted(glob.glob(name, recursive=True)) if is_pattern else [name]:
            if os.path.isdir(file):
                raise InvalidValueError(f"{file} is a directory; name tar files, as {os.path.join(file, '*.tar')}.")
            if not os.path.exists(file):
                raise InvalidValueError(f"There is no file {os.path.abspath(file)}; path is {path!r}.")
            files[file] = None
    if not files:
        raise InvalidValueError(f"No file matches {os.path.abspath(path)}.")
    return list(files)


def read_index(file: BinaryIO, path: str) -> Iterator[TarSample]:
    """The samples of a tar file in their order, from its headers alone.

    Directories, links, hidden files and names without a dot belong to no sample.

    Args:
        file: The file, which can be searched.
        path: Its name for messages.

    Raises:
        InvalidValueError: The file is truncated, corrupt, compressed or no tar file; a sample has two members of one
            name, or its members do not stand together.
    """
    seen: set[str] = set()
    for key, parts in groupby(_parts(file, path), key=lambda part: part[0]):
        if key in seen:
            raise InvalidValueError(
                f"{path}: the members of {key!r} do not stand together, or there are two samples of this name. Write "
                "the members of a sample one behind the other, as `tar --sort=name` does."
            )
        seen.add(key)
        members: dict[str, tuple[int, int]] = {}
        for _, ending, place in parts:
            if ending in members:
                raise InvalidValueError(f"{path}: {key}.{ending} comes twice. Each name may come once.")
            members[ending] = place
        yield TarSample(key, members)


def _expanded(path: str) -> Iterator[str]:
    """The paths of ranges in braces, with as many digits as the first number has."""
    found = _RANGE.search(path)
    if found is None:
        yield path
        return
    first, last = found.groups()
    if int(first) > int(last):
        raise InvalidValueError(f"path is {path!r}; the range {found[0]} has its larger number first.")
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{path[: found.start()]}{number:0{len(first)}d}{path[found.end() :]}")


def _parts(file: BinaryIO, path: str) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Key, ending, and offset and size of each member that belongs to a sample."""
    for member in _members(file, path):
        folder, base = posixpath.split(member.name.removeprefix("./"))
        stem, _, ending = base.partition(".")
        if stem and ending:
            yield posixpath.join(folder, stem), ending.lower(), (member.offset_data, member.size)


def _members(file: BinaryIO, path: str) -> Iterator[tarfile.TarInfo]:
    """The regular members, after which the file must end as tar files do."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset > size:
                    raise InvalidValueError(f"{path} is truncated: {member.name} goes beyond its end. {_AGAIN}")
                if tar.offset <= member.offset:
                    raise InvalidValueError(f"{path} is corrupt: {member.name} has a size below 0. {_AGAIN}")
                if member.issparse():
                    raise InvalidValueError(f"{path}: {member.name} is stored with holes; pack without --sparse.")
                if member.isreg():
                    yield member
                tar.members.clear()  # type: ignore[attr-defined]  # some 1000 bytes each
            end = tar.offset
    except InvalidValueError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise InvalidValueError(_why_not_read(file, path, str(error))) from None
    # To tarfile a cut between two members and a broken header are the end, too.
    file.seek(end)
    rest = file.read(2**20)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        what = "truncated" if len(rest) < tarfile.BLOCKSIZE else "corrupt, or several archives in one file,"
        raise InvalidValueError(f"{path} is {what} at byte {end} of {size}. {_AGAIN}")


def _why_not_read(file: BinaryIO, path: str, error: str) -> str:
    file.seek(0)
    start = file.read(8)
    program = next((program for magic, program in _UNPACKED_BY.items() if start.startswith(magic)), None)
    if program is not None:
        return f"{path} is compressed; samples are drawn in any order, which needs a plain tar: `{program} {path}`."
    if not start:
        return f"{path} is empty. {_AGAIN}"
    return f"{path} cannot be read as tar: it is truncated, corrupt or none ({error}). {_AGAIN}"
