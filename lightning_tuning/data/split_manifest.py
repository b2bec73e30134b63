"""The split of a run as a table beside it: which sample is in which part, and which keep their label."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_tuning.errors import InvalidValueError

_COLUMNS = ["key", "part", "label"]
_PARTS = ("train", "val", "test", "unused")


class Split(NamedTuple):
    """Sorted indices of the samples of each part, which do not overlap; samples in none of them are unused.

    Attributes:
        train: The training part.
        val: The validation part.
        test: The test part.
        labeled: Those of the training part that keep their label.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    labeled: np.ndarray


def save_split(path: str | Path, keys: Sequence[str], split: Split) -> None:
    """Write a split as CSV with the columns ``key``, ``part`` (train, val, test, unused) and ``label`` (yes, no).

    The rows stand in the order of the keys' text, whatever order the data come in. A reader sees no file or a whole
    one. A file that holds the same split is left as it is.

    Args:
        path: File to write; its folder is made.
        keys: Name of each sample, such as its path below the data's root with forward slashes, ``[N]``.
        split: Indices into ``keys``.

    Raises:
        InvalidValueError: A key is twice there or empty, the parts overlap or name other samples, a sample outside the
            training part is to keep its label, or the file holds another split.
    """
    path = Path(path)
    rows = _rows(keys, split)
    if path.exists():
        _check_same(path, _read(path), rows)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            # Only so does a carriage return in a key come back under Python 3.12 and older.
            returns = any("\r" in key for key in rows)
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
            writer.writerow(_COLUMNS)
            writer.writerows([key, *rows[key]] for key in sorted(rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_split(path: str | Path, keys: Sequence[str]) -> Split:
    """Read a split that :func:`save_split` wrote, for the same samples in any order.

    Args:
        path: The file.
        keys: Name of each sample of the data, ``[N]``.

    Raises:
        InvalidValueError: The file does not exist or is no split, or its keys are not those of the data.
    """
    path = Path(path)
    rows = _read(path)
    known = set(_unique("The data", keys))
    found = {
        "missing in the data": [key for key in rows if key not in known],
        "new in the data": [key for key in keys if key not in rows],
    }
    faults = [f"{named(names)} {what}" for what, names in found.items() if names]
    if faults:
        raise InvalidValueError(
            f"{path} is the split of other data: {'; '.join(faults)}. Bring back the data it was made of, or write a "
            "new split elsewhere."
        )
    parts = np.array([rows[key][0] for key in keys])
    kept = np.array([rows[key][1] == "yes" for key in keys], dtype=bool)
    train, val, test = (np.flatnonzero(parts == part) for part in _PARTS[:3])
    return Split(train, val, test, train[kept[train]])


def find_duplicates(hashes_by_part: Mapping[str, Mapping[str, Hashable]]) -> list[dict[str, list[str]]]:
    """Find contents that are in more than one part, so that what is measured was trained on.

    Where there are some, the hashes can be the ``groups`` of a split: then equal samples stay together.

    Args:
        hashes_by_part: For each part, such as ``train``, the hash of each sample's bytes by the sample's name.

    Returns:
        For each such content the names of the samples that have it, by part, in the order in which they came.

    Example:
        >>> find_duplicates({"train": {"a.png": 17, "b.png": 5, "c.png": 17}, "val": {"d.png": 17, "e.png": 8}})
        [{'train': ['a.png', 'c.png'], 'val': ['d.png']}]
    """
    places: dict[Hashable, dict[str, list[str]]] = {}
    for part, hashes in hashes_by_part.items():
        for name, content in hashes.items():
            places.setdefault(content, {}).setdefault(part, []).append(name)
    return [names for names in places.values() if len(names) > 1]


def _rows(keys: Sequence[str], split: Split) -> dict[str, tuple[str, str]]:
    """Part and label of each key."""
    split = Split(*(np.asarray(indices, dtype=np.int64) for indices in split))
    parts = np.full(len(keys), "unused")
    for part, indices in zip(_PARTS, split[:3], strict=False):
        _check_indices(part, indices, len(keys))
        taken = indices[parts[indices] != "unused"]
        if len(taken):
            names = [keys[index] for index in taken]
            raise InvalidValueError(
                f"{named(names)} would be in {parts[taken[0]]} and in {part}; parts must not overlap."
            )
        parts[indices] = part
    _check_indices("labeled", split.labeled, len(keys))
    astray = [keys[index] for index in split.labeled if parts[index] != "train"]
    if astray:
        raise InvalidValueError(
            f"{named(astray)} would keep a label outside the training part; leave it out of labeled."
        )
    kept = np.isin(parts, ["val", "test"])
    kept[split.labeled] = True
    labels = np.where(kept, "yes", "no")
    return dict(zip(_unique("The data", keys), zip(parts.tolist(), labels.tolist(), strict=True), strict=True))


def _check_indices(name: str, indices: np.ndarray, count: int) -> None:
    if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < count:
        raise InvalidValueError(
            f"{name} has indices from {np.min(indices)} to {np.max(indices)}; there are {count} keys, so they must be "
            f"from 0 to {count - 1}."
        )


def _read(path: Path) -> dict[str, tuple[str, str]]:
    """The rows of a manifest: part and label by key."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:  # Excel adds the mark
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header != _COLUMNS:
                raise InvalidValueError(
                    f"{path} is no split: its first line is {','.join(header)!r}; it must be {','.join(_COLUMNS)!r}."
                )
            rows = [_checked_row(path, reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise InvalidValueError(f"There is no split {path.absolute()}; save_split writes one.") from None
    except (OSError, csv.Error) as error:
        raise InvalidValueError(f"The split {path} cannot be read: {error}") from None
    _unique(f"The split {path}", [key for key, _, _ in rows])
    return {key: (part, label) for key, part, label in rows}


def _checked_row(path: Path, line: int, row: list[str]) -> list[str]:
    if len(row) != 3 or row[1] not in _PARTS or row[2] not in ("yes", "no"):
        raise InvalidValueError(
            f"{path}, line {line}: {','.join(row)!r} is no row of a split; it must be a key, one of "
            f"{', '.join(_PARTS)}, and yes or no."
        )
    return row


def _check_same(path: Path, old: dict[str, tuple[str, str]], new: dict[str, tuple[str, str]]) -> None:
    """Raise if two splits differ, naming how."""
    found = {
        "only in the file": [key for key in old if key not in new],
        "only in the new one": [key for key in new if key not in old],
        "in another part": [key for key in new if key in old and old[key][0] != new[key][0]],
        "with another label": [
            key for key in new if key in old and old[key][0] == new[key][0] and old[key] != new[key]
        ],
    }
    faults = [f"{named(names)} {what}" for what, names in found.items() if names]
    if faults:
        raise InvalidValueError(
            f"{path} holds another split: {'; '.join(faults)}. It is not overwritten: load it, or write elsewhere."
        )


def _unique(whose: str, keys: Iterable[str]) -> list[str]:
    """The keys as a list; refused if one is twice there or empty."""
    keys = list(keys)
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice or "" in keys:
        fault = f"{named(twice, 'key')} more than once" if twice else "an empty key"
        raise InvalidValueError(f"{whose} has {fault}; each sample needs one of its own.")
    return keys


def named(keys: Sequence[str], noun: str = "sample") -> str:
    """How many they are, and the first three.

    Example:
        >>> named(["a", "b", "c", "d", "e"])
        "5 samples ('a', 'b', 'c', ...)"
    """
    some = ", ".join(map(repr, keys[:3])) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {noun}{'' if len(keys) == 1 else 's'} ({some})"
