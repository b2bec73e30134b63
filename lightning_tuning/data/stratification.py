"""What splits and folds share: the strata of all kinds of targets, and how to allot labels and groups to parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_tuning.data.hashing import permutation
from lightning_tuning.errors import InvalidValueError

_BINS = 10


def strata(targets: np.ndarray) -> np.ndarray:
    """What the parts of a split should hold in equal shares.

    Args:
        targets: Class ids ``[N]`` (integers, booleans or text), multi-hot labels ``[N, K]`` (0 and 1 of any type), or
            values ``[N]`` or ``[N, D]`` (floating).

    Returns:
        For class ids their numbers from 0, for values ``[N]`` the tenth of the data that each lies in, equal values in
        the same one: int64 ``[N]``. For labels, without those that no sample has, and for values ``[N, D]``, with one
        column for each tenth of each value: bool ``[N, K]``.

    Raises:
        InvalidValueError: A value is not finite, a class id is missing, or the targets are something else.

    Example:
        >>> strata(np.array(["dog", "cat", "dog"])).tolist()
        [1, 0, 1]
        >>> strata(np.linspace(0, 1, 20)).tolist()
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    """
    targets = np.asarray(targets)
    if targets.ndim == 2 and targets.dtype.kind in "biuf" and ((targets == 0) | (targets == 1)).all():
        labels = targets.astype(bool)
        return labels[:, labels.any(axis=0)]
    if targets.ndim not in (1, 2) or (targets.ndim == 2 and targets.dtype.kind != "f"):
        raise InvalidValueError(
            f"The targets are {targets.dtype} {list(targets.shape)}; to be stratified they must be class ids [N], "
            "multi-hot labels [N, K] of 0 and 1, or floating values [N] or [N, D]. For masks write which classes each "
            "of them shows, [N, K]."
        )
    if targets.dtype.kind != "f":
        return dense_ids("targets", targets)
    if not np.isfinite(targets).all():
        place = int(np.argwhere(~np.isfinite(targets))[0, 0])
        raise InvalidValueError(f"targets[{place}] is {targets[place]}; every target must be finite to be stratified.")
    tenths = [_tenths(column) for column in targets.reshape(len(targets), -1).T]
    if len(tenths) == 1:
        return tenths[0]
    return np.concatenate([ids[:, None] == np.unique(ids) for ids in tenths], axis=1)


def _tenths(values: np.ndarray) -> np.ndarray:
    edges = np.sort(values)[len(values) * np.arange(1, _BINS) // _BINS]
    return dense_ids("targets", np.searchsorted(edges, values, side="right"))


def dense_ids(name: str, values: Sequence | np.ndarray) -> np.ndarray:
    """Number what is equal alike, from 0 in sorted order: int64 ``[N]``.

    Args:
        name: What the values are, for the message.
        values: Integers or text, ``[N]``.

    Raises:
        InvalidValueError: One of them is None, NaN or empty text: what is unknown is not therefore equal.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "biu":
        places = [
            place for place, value in enumerate(values.tolist()) if value is None or value != value or value == ""
        ]
        if places:
            raise InvalidValueError(
                f"{len(places)} of {len(values)} {name} are missing, the first at index {places[0]}: "
                f"{values[places[0]]!r}. Give each sample one."
            )
    values = values.astype(str) if values.dtype.kind == "O" else values
    return np.unique(values, return_inverse=True)[1]


def allot(
    kinds: np.ndarray, sizes: Sequence[float] | np.ndarray, seed: int, purpose: str, groups: np.ndarray | None = None
) -> np.ndarray:
    """Deal multi-label or grouped samples out to parts.

    Args:
        kinds: What :func:`strata` returns.
        sizes: Wanted number of samples of each part; they add up to ``N`` and may be fractions. Without groups they are
            met, up to rounding; with groups as nearly as :func:`_allot_groups` can.
        seed: Chooses among equals, 0 to 2**32 - 1.
        purpose: Keeps the random numbers of two uses apart.
        groups: Group of each sample, ``[N]``; samples of a group stay together. Needed if ``kinds`` is ``[N]``.

    Returns:
        The number of each sample's part, int64 ``[N]``.

    Raises:
        InvalidValueError: With groups, a part that should hold something stays empty.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    if groups is None:
        return _allot_labels(kinds, sizes, permutation(len(kinds), seed, purpose))
    if np.shape(groups) != (len(kinds),):
        raise InvalidValueError(
            f"groups has the shape {list(np.shape(groups))}; there must be one for each of the {len(kinds)} samples."
        )
    ids = dense_ids("groups", groups)
    parts = _allot_groups(kinds, sizes, ids, permutation(int(ids.max()) + 1, seed, purpose))
    empty = [f"{size:g}" for part, size in enumerate(sizes) if size and part not in parts]
    if empty:
        raise InvalidValueError(
            f"The part of {empty[0]} samples stays empty: there are {ids.max() + 1} groups with up to "
            f"{np.bincount(ids).max()} samples, which stay together. Make the part larger, or the groups smaller."
        )
    return parts


def _allot_labels(labels: np.ndarray, sizes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Iterative stratification: the rarest label first, each of its samples to the part that misses it most.

    Of parts that miss it equally, the one with most room gets the sample, then the first. Unlike in the paper, a part
    that is full gets no more, so that the sizes are met.

    Args:
        labels: Bool ``[N, K]``.
        sizes: ``[P]``.
        order: Permutation of the samples, ``[N]``.

    Source: Sechidis, Tsoumakas and Vlahavas, 2011, "On the stratification of multi-label data", algorithm 1.
    """
    parts = np.full(len(labels), -1)
    room = np.diff(np.rint(np.cumsum(sizes)).astype(np.int64), prepend=0)
    left = labels.sum(axis=0)
    missing = np.outer(sizes / max(len(labels), 1), left)
    while left.any():
        label = np.argmin(np.where(left > 0, left, len(labels) + 1))
        samples = order[labels[order, label] & (parts[order] < 0)]
        for sample in samples:
            wish = np.where(room > 0, missing[:, label], -np.inf)
            part = np.argmax(np.where(wish == wish.max(), room, -1))
            parts[sample] = part
            room[part] -= 1
            missing[part, labels[sample]] -= 1
        left -= labels[samples].sum(axis=0)
    parts[order[parts[order] < 0]] = np.repeat(np.arange(len(room)), room)
    return parts


def _allot_groups(kinds: np.ndarray, sizes: np.ndarray, ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Greedy: large groups first, each to the part where it makes the counts fit best.

    How badly the counts fit is Pearson's chi-square: the squared difference between held and wanted, divided by wanted,
    added up over all parts, for their sizes and for each stratum. Large groups come first, but those of one octave
    (2 to 3 samples, 4 to 7, ...) in random order, so that the seed matters where all sizes differ.

    Args:
        kinds: What :func:`strata` returns.
        sizes: ``[P]``.
        ids: Group of each sample, 0 to G - 1, ``[N]``.
        order: Permutation of the groups, ``[G]``.
    """
    columns = kinds.max() + 1 if kinds.ndim == 1 else kinds.shape[1]

    def counts(samples: np.ndarray) -> np.ndarray:
        rows = kinds[samples]
        return np.append(np.bincount(rows, minlength=columns) if kinds.ndim == 1 else rows.sum(axis=0), len(samples))

    group_sizes = np.bincount(ids)
    members = np.split(np.argsort(ids, kind="stable"), np.cumsum(group_sizes)[:-1])
    octave = np.frexp(group_sizes)[1]
    possible = np.flatnonzero(sizes)
    wanted = np.outer(sizes[possible] / len(ids), counts(np.arange(len(ids))))
    held = np.zeros_like(wanted)
    parts = np.empty(len(ids), dtype=np.int64)
    for group in order[np.argsort(-octave[order], kind="stable")]:
        count = counts(members[group])
        growth = (count * (count + 2 * (held - wanted)) / wanted).sum(axis=1)
        best = np.argmin(growth)
        held[best] += count
        parts[members[group]] = possible[best]
    return parts
