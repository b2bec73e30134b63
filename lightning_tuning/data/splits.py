"""Stratified splits that depend on the targets, the groups and a seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_tuning.data.hashing import permutation
from lightning_tuning.data.stratification import allot, strata
from lightning_tuning.errors import InvalidValueError


def rank_in_class(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each sample, how many samples of its class stand before it in ``order``.

    Args:
        labels: Class ids, ``[N]``.
        order: A permutation of ``0 .. N - 1``, ``[N]``.

    Returns:
        ``[N]``, aligned with ``labels``.

    Example:
        >>> rank_in_class(np.array([5, 5, 8, 5]), np.array([3, 2, 1, 0])).tolist()
        [2, 1, 0, 0]
    """
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = np.arange(len(members))
    return ranks


def stratified_split(
    labels: np.ndarray, sizes: Sequence[int], seed: int, *, groups: np.ndarray | None = None
) -> list[np.ndarray]:
    """Split into disjoint parts in which every class has its share, up to rounding.

    The samples are lined up so that every stretch of the line holds the classes in proportion; the parts are cut
    from its start, one after the other. Values are treated as the classes of their tenths. Multi-label targets and
    groups are dealt out as in :func:`~lightning_tuning.data.folds.fold_numbers`.

    Args:
        labels: Class ids ``[N]``, multi-hot labels ``[N, K]``, or floating values ``[N]`` or ``[N, D]``.
        sizes: Number of samples in each part but the last, each at least 0. With groups the parts come near these
            sizes, but need not meet them.
        seed: Chooses the samples, 0 to 2**32 - 1.
        groups: What each sample belongs to, such as a patient or a video, ``[N]``; no group is in two parts. None:
            every sample is its own.

    Returns:
        One sorted array of indices for each size, then one with what is left.

    Raises:
        InvalidValueError: The sizes add up to more than ``N``, a part stays empty because the groups are too large, or
            the targets or groups are no such arrays.

    Example:
        >>> val, train = stratified_split(np.array([0, 0, 0, 0, 1, 1]), [3], seed=0)
        >>> np.bincount(np.array([0, 0, 0, 0, 1, 1])[val]).tolist()
        [2, 1]
    """
    if sum(sizes) > len(labels):
        raise InvalidValueError(f"The parts of {list(sizes)} samples do not fit into {len(labels)} samples.")
    kinds = strata(labels)
    if groups is not None or kinds.ndim == 2:
        parts = allot(kinds, [*sizes, len(labels) - sum(sizes)], seed, "split", groups)
        return [np.flatnonzero(parts == part) for part in range(len(sizes) + 1)]
    order = permutation(len(labels), seed, "split")
    position = (rank_in_class(kinds, order) + 0.5) / np.bincount(kinds)[kinds]
    line = order[np.argsort(position[order], kind="stable")]
    return [np.sort(part) for part in np.split(line, np.cumsum(sizes))]
