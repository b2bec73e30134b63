"""Stratified splits that depend on the labels and a seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_tuning.data.hashing import permutation
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


def stratified_split(labels: np.ndarray, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Split into disjoint parts in which every class has its share, up to rounding.

    The samples are lined up so that every stretch of the line holds the classes in proportion; the parts are cut
    from its start, one after the other.

    Args:
        labels: Class ids, ``[N]``.
        sizes: Number of samples in each part but the last, each at least 0.
        seed: Chooses the samples, 0 to 2**32 - 1.

    Returns:
        One sorted array of indices for each size, then one with what is left.

    Raises:
        InvalidValueError: The sizes add up to more than ``N``.

    Example:
        >>> val, train = stratified_split(np.array([0, 0, 0, 0, 1, 1]), [3], seed=0)
        >>> np.bincount(np.array([0, 0, 0, 0, 1, 1])[val]).tolist()
        [2, 1]
    """
    if sum(sizes) > len(labels):
        raise InvalidValueError(f"The parts of {list(sizes)} samples do not fit into {len(labels)} samples.")
    order = permutation(len(labels), seed, "split")
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    position = (rank_in_class(labels, order) + 0.5) / counts[inverse]
    line = order[np.argsort(position[order], kind="stable")]
    return [np.sort(part) for part in np.split(line, np.cumsum(sizes))]
