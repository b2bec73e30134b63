"""Whether an error means that a disk is full, and how much room there is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def system_error(error: BaseException, earlier: BaseException | None = None) -> OSError | None:
    """The refusal of the system that an error is, or was raised from or during, as torch does.

    Args:
        error: What was raised.
        earlier: What was under way before and does not count.
    """
    return next((one for one in _chain(error, earlier) if isinstance(one, OSError)), None)


def is_full(error: OSError) -> bool:
    """Whether the system refused to write for want of room: on the disk, in a quota, or in a limit on files."""
    return error.errno in _NO_SPACE


def room(path: str | Path) -> str:
    """How much is free on the disk that a path is on; it need not exist.

    Example:
        >>> room("no/such/folder")[-3:]
        ' MB'
    """
    place = Path(path).absolute()
    return megabytes(shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free)


def megabytes(size: int) -> str:
    """A number of bytes as text.

    Example:
        >>> megabytes(412_345_678)
        '412.3 MB'
    """
    return f"{size / 1e6:.1f} MB"


def _chain(error: BaseException | None, earlier: BaseException | None) -> Iterator[BaseException]:
    while error is not None and error is not earlier:
        yield error
        error = error.__cause__ or error.__context__
