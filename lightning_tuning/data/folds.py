"""Cross-validation: which samples a fold holds out, as a function of the data, a seed and the number of folds."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from lightning_tuning.data.hashing import permutation
from lightning_tuning.data.stratification import allot, dense_ids, strata
from lightning_tuning.errors import InvalidValueError, check_count


class Fold(NamedTuple):
    """One of several folds.

    Attributes:
        number: Which one, from 0.
        total: How many there are, at least 2.
    """

    number: int
    total: int


def parse_fold(text: str) -> Fold:
    """Read ``"2/5"``, the second of five folds.

    Args:
        text: Two integers with a slash between: the fold, from 1, and how many there are, at least 2.

    Raises:
        InvalidValueError: It is something else.

    Example:
        >>> parse_fold("2/5")
        Fold(number=1, total=5)
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text) if isinstance(text, str) else None
    number, total = map(int, match.groups()) if match else (0, 0)
    if not (total >= 2 and 1 <= number <= total):
        raise InvalidValueError(
            f"fold is {text!r}; it must be the fold's number, from 1, and the number of folds, at least 2, with a "
            "slash between: write '2/5' for the second of five folds."
        )
    return Fold(number - 1, total)


def fold_numbers(targets: np.ndarray, count: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """In which fold each sample is held out.

    Class ids: the numbers of a class in two folds, and the sizes of two folds, differ by at most one. Multi-label
    targets: iterative stratification (Sechidis et al., 2011); sizes differ by at most one. Values: stratified by
    tenths, whose numbers in two folds differ by at most one. With groups: no group is in two folds; large groups come
    first, each to the fold where it brings sizes and shares of the classes, labels or tenths nearest to even.

    Args:
        targets: Class ids ``[N]``, multi-hot labels ``[N, K]``, or floating values ``[N]`` or ``[N, D]``.
        count: Number of folds, from 2 to the number of samples, or of groups.
        seed: Chooses the samples, 0 to 2**32 - 1.
        groups: What each sample belongs to, such as a patient or a video, ``[N]``. None: every sample is its own.

    Returns:
        Numbers from 0 to ``count - 1``, int64 ``[N]``.

    Raises:
        InvalidValueError: There are too few samples or groups, or the targets or groups are no such arrays.

    Example:
        >>> fold_numbers(np.array([0, 0, 1, 1]), 2, seed=0, groups=np.array(["a", "b", "a", "b"])).tolist()
        [1, 0, 1, 0]
    """
    most = len(targets) if groups is None else int(dense_ids("groups", groups).max(initial=-1)) + 1
    check_count("The number of folds", count, 2)
    if count > most:
        kind = "samples" if groups is None else "groups"
        raise InvalidValueError(f"There are {count} folds for {most} {kind}; write at most '1/{most}'.")
    kinds = strata(targets)
    if groups is not None or kinds.ndim == 2:
        return allot(kinds, np.full(count, len(kinds) / count), seed, "folds", groups)
    order = permutation(len(kinds), seed, "folds")
    numbers = np.empty(len(kinds), dtype=np.int64)
    # Dealt out like cards, class by class, the next class going on where the last one ended.
    numbers[order[np.argsort(kinds[order], kind="stable")]] = np.arange(len(kinds)) % count
    return numbers


def fold_of(
    targets: np.ndarray, fold: str, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of one fold; over all folds every sample is held out exactly once.

    Args:
        targets: See :func:`fold_numbers`.
        fold: Such as ``"2/5"``, the second of five.
        seed: Chooses the samples, 0 to 2**32 - 1; the same for all folds.
        groups: See :func:`fold_numbers`.

    Returns:
        Sorted indices of the samples to train on, and of those that are held out.

    Raises:
        InvalidValueError: See :func:`parse_fold` and :func:`fold_numbers`.

    Example:
        >>> train, held_out = fold_of(np.array([0, 0, 0, 1, 1, 1]), "1/3", seed=0)
        >>> len(train), len(held_out)
        (4, 2)
    """
    number, total = parse_fold(fold)
    numbers = fold_numbers(targets, total, seed, groups)
    return np.flatnonzero(numbers != number), np.flatnonzero(numbers == number)
