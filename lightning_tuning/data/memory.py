"""How much memory there is, and the refusal of what would take too much of it or of a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lightning_tuning.errors import InvalidValueError

SHARE = 0.8
"""How much of what is free may be taken at once; the rest is for batches, workers and checkpoints."""

# Of control groups version 2 and 1: where they are mounted, limit, use, and the part of the use that can be dropped.
_CONTROL_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that can be had without swapping, by what the machine has left and what a container may use.

    Args:
        root: Where ``proc`` and ``sys`` are. Without ``proc/meminfo``, as on macOS, all memory counts as available.
    """
    try:
        left = _numbers(root / "proc/meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):
        left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(left, *_left_to_groups(root), left), 0)


def check_room(what: str, needed: int, free: int, where: str, remedy: str) -> None:
    """Raise :class:`InvalidValueError` if ``needed`` bytes are more than four fifths of those that are free.

    Args:
        what: What needs them, in the plural.
        needed: Bytes that it takes.
        free: Bytes that there are.
        where: The place of the free ones, as the end of a sentence.
        remedy: What to do, as a sentence.

    Example:
        >>> check_room("The images", 9 * 10**9, 10**10, "in memory", "Buy some.")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: The images take 9.0 GB, more than 80% of the 10.0 GB that are free \
in memory. Buy some.
    """
    if needed > SHARE * free:
        raise InvalidValueError(
            f"{what} take {in_words(needed)}, more than {SHARE:.0%} of the {in_words(free)} that are free {where}. "
            f"{remedy}"
        )


def in_words(num_bytes: int) -> str:
    """A number of bytes as text.

    Example:
        >>> in_words(34_540_000), in_words(9_800_000_000)
        ('34.5 MB', '9.8 GB')
    """
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _left_to_groups(root: Path) -> Iterator[int]:
    """What each control group that this process is in may still take, where there is a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for (mount, limit, used, droppable), controllers in zip(_CONTROL_GROUPS, ("", "memory"), strict=True):
        for line in lines:
            _, names, path = line.split(":", 2)
            if controllers in names.split(","):
                group = root / mount / path.strip("/")
                # A container may see the path that it has outside: then only the mount itself exists.
                for folder in (group, *group.parents[: len(Path(path.strip("/")).parts)]):
                    yield from _left_to(folder, limit, used, droppable)


def _left_to(folder: Path, limit: str, used: str, droppable: str) -> list[int]:
    try:
        most, now = (int((folder / name).read_text()) for name in (limit, used))
        return [most - now + _numbers(folder / "memory.stat").get(droppable, 0)]
    except (OSError, ValueError):  # not there, or "max"
        return []


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line by the word before it."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}
