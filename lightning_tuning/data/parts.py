"""Which samples are for training, validation and test: as the data say, or drawn by size, share or fold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_tuning.data.folds import fold_of
from lightning_tuning.data.splits import stratified_split
from lightning_tuning.errors import InvalidValueError

Size = int | float | None
DEFAULT_SHARE = 0.1


class Parts(NamedTuple):
    """Sorted indices of the samples of each part."""

    test: np.ndarray
    val: np.ndarray
    train: np.ndarray


def as_size(name: str, value: Size, optional: bool = True) -> Size:
    """``value``, a number of samples, a share of them, or None.

    A number may come as a float: jsonargparse reads ``3`` as 3.0 where an earlier class of the run had ``float | int |
    None``, which Python's ``typing`` takes for the same as ours, and hands out in that order.

    Raises:
        InvalidValueError: ``value`` is none of these. 1.0 is not: it may be meant as one or as all.

    Example:
        >>> as_size("val_size", 3.0)
        3
        >>> as_size("val_size", 1.5)
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: val_size is 1.5; it must be a number of samples, an integer of at \
least 0, or a share of them between 0 and 1, as 0.1, or None.
    """
    if isinstance(value, float) and value.is_integer() and value != 1:
        value = int(value)
    is_count = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0
    is_share = isinstance(value, float) and 0 < value < 1
    if not (is_count or is_share or (value is None and optional)):
        raise InvalidValueError(
            f"{name} is {value!r}; it must be a number of samples, an integer of at least 0, or a share of them "
            f"between 0 and 1, as 0.1{', or None' if optional else ''}."
        )
    return value


def make_parts(
    labels: np.ndarray,
    val_size: Size,
    test_size: Size,
    seed: int,
    *,
    fold: str | None = None,
    groups: np.ndarray | None = None,
    given: np.ndarray | None = None,
    known: np.ndarray | None = None,
    least: int = 1,
) -> Parts:
    """Divide samples into three parts.

    Args:
        labels: The targets, as for :func:`~lightning_tuning.data.splits.stratified_split`, ``[N]`` or ``[N, ...]``.
        val_size: Validation samples: a number, or a share of those that it is taken from. They come from what the data
            give as validation, or else from what is left. None: all that are given, or else a tenth.
        test_size: Test samples, likewise.
        seed: Chooses the samples, 0 to 2**32 - 1.
        fold: The validation part is this fold, such as ``2/5``, of all that is not for test; ``val_size`` is not used.
        groups: What each sample belongs to, ``[N]``. Parts that are drawn hold whole groups.
        given: The part that the data give, ``train``, ``val`` or ``test``, text ``[N]``. None: none is given.
        known: Which samples have a label, bool ``[N]``; the others are for training, unless the data give them as
            validation or test, or their group is held out: then they are in no part. None: all.
        least: How many samples training needs.

    Raises:
        InvalidValueError: The sizes do not fit the data, or a group is in two given parts.

    Example:
        >>> parts = make_parts(np.arange(10) % 2, 2, 0.2, seed=0)
        >>> [len(part) for part in parts]
        [2, 2, 6]
    """
    everywhere = np.arange(len(labels))
    known = np.ones(len(labels), dtype=bool) if known is None else known
    given = np.full(len(labels), "train") if given is None else given
    rest, val, test = (everywhere[known & (given == part)] for part in ("train", "val", "test"))
    if fold is not None:
        rest, val = np.sort(np.concatenate([rest, val])), val[:0]
    if groups is not None:
        _check_groups({"train": groups[rest], "val": groups[val], "test": groups[test]})
    drawn = {}
    if not len(test):
        drawn["test_size"] = _number("test_size", test_size, len(rest))
    if not len(val) and fold is None:
        drawn["val_size"] = _number("val_size", val_size, len(rest))
    _check_room(drawn, len(rest), least)
    if len(test):
        test = _some_of(test, labels, test_size, seed, "test_size")
    if len(val):
        val = _some_of(val, labels, val_size, seed, "val_size")
    *parts, train = _split(rest, labels, [*drawn.values()], seed, groups)
    for name, part in zip(drawn, parts, strict=True):
        test, val = (part, val) if name == "test_size" else (test, part)
    if fold is not None:
        kept, held_out = fold_of(labels[train], fold, seed, None if groups is None else groups[train])
        train, val = train[kept], train[held_out]
    unlabeled = everywhere[~known & (given == "train")]
    if groups is not None:
        held_out = groups[np.concatenate([test, val])]
        unlabeled = unlabeled[~np.isin(groups[unlabeled], held_out)]
    return Parts(test, val, np.sort(np.concatenate([train, unlabeled])))


def _number(name: str, size: Size, of: int) -> int:
    """A size as a number of samples."""
    share = DEFAULT_SHARE if size is None else size
    number = round(share * of) if isinstance(share, float) else int(share)
    if isinstance(size, float) and not number:
        raise InvalidValueError(
            f"{name} is {size}, which is none of {of} samples. Write a larger share, a number of samples, or 0 for no "
            "such part."
        )
    return number


def _check_room(sizes: dict[str, int], available: int, least: int) -> None:
    """Whether training keeps what it needs when ``sizes`` are held out."""
    most = available - least
    if most < 0:
        raise InvalidValueError(
            f"There are {available} samples with a label to train on, but {least} classes; there must be one of each."
        )
    if sum(sizes.values()) > most:
        names = [f"{name} is {size}" for name, size in sorted(sizes.items(), reverse=True)]
        raise InvalidValueError(
            f"{' and '.join(names)}; {'together they' if len(names) > 1 else 'it'} must be at most {most}: "
            f"there are {available} samples to take from, and training needs "
            f"{f'one for each of the {least} classes' if least > 1 else 'at least one'}."
        )


def _some_of(pool: np.ndarray, labels: np.ndarray, size: Size, seed: int, name: str) -> np.ndarray:
    """As many samples of a given part as are wanted."""
    wanted = len(pool) if size is None else _number(name, size, len(pool))
    if wanted > len(pool):
        raise InvalidValueError(f"{name} is {size}, but the part that the data give has {len(pool)} samples.")
    return _split(pool, labels, [wanted], seed, None)[0]


def _check_groups(groups: dict[str, np.ndarray]) -> None:
    """Whether each group is in one part; parts that the data give may break one."""
    part_of: dict[object, str] = {}
    for part, own in groups.items():
        for group in np.unique(own).tolist():
            first = part_of.setdefault(group, part)
            if first != part:
                raise InvalidValueError(
                    f"The group {group!r} is in {first} and in {part}, as the data give the parts, and no group may be "
                    "in two. Correct the parts, or leave group out."
                )


def _split(
    pool: np.ndarray, labels: np.ndarray, sizes: list[int], seed: int, groups: np.ndarray | None
) -> list[np.ndarray]:
    parts = stratified_split(labels[pool], sizes, seed, groups=None if groups is None else groups[pool])
    return [pool[part] for part in parts]
