"""Writing a file so that under its name there is always a whole one."""

from __future__ import annotations

import errno
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write_whole(content: Any, path: Path) -> None:
    """``torch.save`` by way of :func:`whole_file`.

    Raises:
        OSError: The system refuses to write. (Or a RuntimeError in its context: torch has its own for some cases.)
    """
    with whole_file(path) as file:
        torch.save(content, file)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, that takes its name at the context's end: at any time, also after a power cut, there is the old
    file of this name or the new one, and after an error the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            _is_locked(file)
            yield file
            file.flush()
            _sync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        for rest in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with suppress(OSError), rest.open("r+b") as file:
                if _is_locked(file):  # a killed process left it
                    rest.unlink()
    _sync_folder(path.parent)


def _is_locked(file: BinaryIO) -> bool:
    """Lock a file until it is closed; False where another process has, or where there are no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:  # by some network file systems
            raise


def _sync_folder(folder: Path) -> None:
    """Bring the new name onto the disk, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)
