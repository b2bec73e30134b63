"""Equal samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_tuning.data.audit.faults import NO_LABEL, Fault

_NAMED = 2


def copy_groups(hashes: np.ndarray, left_out: Sequence[int] = ()) -> np.ndarray:
    """Number the groups of samples with the same hash.

    Args:
        hashes: Of each sample, ``[N, 2]``.
        left_out: Samples that are in no group.

    Returns:
        ``[N]``: groups of two or more count from 1 in the order of their first samples; 0: no other is equal.

    Example:
        >>> copy_groups(np.array([[9, 9], [2, 2], [5, 5], [2, 2], [9, 9]], np.uint64)).tolist()
        [1, 2, 0, 2, 1]
    """
    groups = np.zeros(len(hashes), np.int64)
    indices = np.setdiff1d(np.arange(len(hashes)), np.asarray(left_out, np.int64))
    _, first, inverse, counts = np.unique(
        hashes[indices], axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    several = np.flatnonzero(counts > 1)
    numbers = np.zeros(len(counts), np.int64)
    numbers[several[np.argsort(first[several])]] = np.arange(1, len(several) + 1)
    groups[indices] = numbers[inverse.reshape(-1)]
    return groups


def members_of(groups: np.ndarray) -> Iterator[np.ndarray]:
    """The samples of each group, increasing, in the order of the groups' numbers."""
    order = np.argsort(groups, kind="stable")
    order = order[groups[order] > 0]
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def copy_faults(
    groups: np.ndarray, parts: np.ndarray, labels: np.ndarray | None, masks: np.ndarray, keys: Sequence[str]
) -> Iterator[tuple[int, Fault]]:
    """What is wrong with equal samples, by index.

    Args:
        groups: Of :func:`copy_groups`, ``[N]``.
        parts: The part of each sample; -1: it is in none, and nothing is wrong with it, ``[N]``.
        labels: What equal samples must agree in, class ids ``[N]``, of which -1 is none, or multi-hot labels
            ``[N, K]``. None: they need not.
        masks: Hashes of the masks, ``[N, 2]``.
        keys: Name of each sample.
    """
    for every in members_of(groups):
        members = every[parts[every] >= 0]
        here = np.unique(parts[members])
        elsewhere = {part: _named(members[parts[members] != part], keys) for part in here.tolist()}
        differ = len(np.unique(masks[members], axis=0)) > 1
        if labels is not None:
            given = labels[members]
            differ |= len(np.unique(given[given != NO_LABEL] if given.ndim == 1 else given, axis=0)) > 1
        first = members[: _NAMED + 1]
        for index in members.tolist():
            if len(here) > 1:
                yield index, Fault("leak", f"it is also in another part: {elsewhere[int(parts[index])]}")
            elif len(members) > 1:
                yield index, Fault("copy", f"it is equal to {_named(first[first != index], keys, len(members) - 1)}")
            if differ:
                yield index, Fault("contradiction", "one that is equal has another label")


def _named(indices: np.ndarray, keys: Sequence[str], count: int | None = None) -> str:
    more = (len(indices) if count is None else count) - _NAMED
    names = ", ".join(keys[index] for index in indices[:_NAMED].tolist())
    return f"{names} and {more} more" if more > 0 else names
