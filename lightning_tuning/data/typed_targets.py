"""From columns of numbers, text and lists to targets: class ids, multi-hot labels or values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_tuning.data.fields import as_field
from lightning_tuning.data.targets import read_targets
from lightning_tuning.errors import InvalidValueError


def read_typed_targets(
    columns: Mapping[str, Sequence[Any]], task: str, source: str, names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The targets that columns of Python values hold, and their names.

    Args:
        columns: The values of each target column, by name.
        task: ``multiclass``: one column of classes, where None, and with ``names`` -1, stands for an unlabelled sample.
            ``multilabel``: a column of 0 and 1 for each label, or one column with the list of each sample's labels.
            ``regression``: a column of numbers for each value.
        source: What the columns come from, for messages.
        names: What the integers of a column of classes or labels stand for. None: they stand for themselves.

    Returns:
        For ``multiclass`` int64 ``[N]``, -1 where there is none, and the classes' names; for ``multilabel`` float32
        ``[N, K]``, for ``regression`` float32 ``[N, D]``, and the labels' or columns' names.

    Raises:
        InvalidValueError: A value is no such target; the message names column and row, from 0.

    Example:
        >>> read_typed_targets({"label": [1, -1, 0]}, "multiclass", "pets", ["cat", "dog"])
        (array([ 1, -1,  0]), ('cat', 'dog'))
        >>> read_typed_targets({"tags": [["cat"], [], ["dog", "cat"]]}, "multilabel", "pets")[0].tolist()
        [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """
    name, values = next(iter(columns.items()), ("", ()))
    one = len(columns) == 1
    if one and task == "multiclass":
        return _classes(values, name, source, names)
    if one and task == "multilabel" and any(isinstance(value, list) for value in values):
        return _label_lists(values, name, source, names)
    fields = {
        name: [as_field(value, f"{source}, row {row}: {name!r}") for row, value in enumerate(values)]
        for name, values in columns.items()
    }
    return read_targets(fields, task, source)


def _classes(
    values: Sequence[Any], name: str, source: str, names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    rows = [row for row, value in enumerate(values) if value is not None and not (names and value == -1)]
    ids = np.full(len(values), -1, dtype=np.int64)
    if names is None:
        fields = [as_field(values[row], f"{source}, row {row}: {name!r}") for row in rows]
        ids[rows], found = read_targets({name: fields}, "multiclass", source)
        return ids, found
    for row in rows:
        if not (isinstance(values[row], int) and 0 <= values[row] < len(names)):
            raise InvalidValueError(
                f"{source}, row {row}: {name!r} is {values[row]!r}; it must be an integer from 0 to {len(names) - 1}."
            )
    ids[rows] = [values[row] for row in rows]
    return ids, tuple(names)


def _label_lists(
    values: Sequence[Any], name: str, source: str, names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    for row, labels in enumerate(values):
        if not _are_labels(labels):
            raise InvalidValueError(
                f"{source}, row {row}: {name!r} is {labels!r}; it must be a list of different labels. Zeros and ones "
                "must stand in a column for each label."
            )
    ids, found = _classes([label for labels in values for label in labels], name, source, names)
    hot = np.zeros((len(values), len(found)), dtype=np.float32)
    hot[np.repeat(np.arange(len(values)), [len(labels) for labels in values]), ids] = 1
    return hot, found


def _are_labels(labels: Any) -> bool:
    known = isinstance(labels, list) and all(isinstance(label, (int, str)) and label != -1 for label in labels)
    return known and len({*labels}) == len(labels)
