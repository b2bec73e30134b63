"""From columns of text to targets: class ids, multi-hot labels or values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_tuning.errors import InvalidValueError, check_choice

TASKS = ("multiclass", "multilabel", "regression")


def read_targets(columns: Mapping[str, Sequence[str]], task: str, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The targets that the columns of a table hold, and their names.

    Args:
        columns: The fields of each target column, by name.
        task: ``multiclass``: one column, whose fields are the classes' names, numbered by number if all are integers
            and else by alphabet. ``multilabel``: a column for each label, 1 where a sample has it, else 0.
            ``regression``: a column of numbers for each value.
        source: What the columns come from, for messages.

    Returns:
        For ``multiclass`` int64 ``[N]`` and the classes' names; for ``multilabel`` float32 ``[N, K]``, for
        ``regression`` float32 ``[N, D]``, and the columns' names.

    Raises:
        InvalidValueError: A field is no such target; the message names column and row.

    Example:
        >>> ids, names = read_targets({"animal": ["dog", "cat", "dog"]}, "multiclass", "a.csv")
        >>> ids.tolist(), names
        ([1, 0, 1], ('cat', 'dog'))
    """
    check_choice("task", task, TASKS)
    if not columns:
        raise InvalidValueError("target is empty; it must name the column, or the columns, of the targets.")
    if task == "multiclass":
        if len(columns) > 1:
            raise InvalidValueError(
                f"target names {len(columns)} columns, but with task='multiclass' it must be one. Columns of 0 and 1 "
                "are for task='multilabel'."
            )
        (fields,) = columns.values()
        names = sorted(set(fields), key=_by_number if all(map(_is_integer, fields)) else str)
        number = {name: position for position, name in enumerate(names)}
        return np.array([number[field] for field in fields], dtype=np.int64), tuple(names)
    values = np.stack([_numbers(name, fields, source) for name, fields in columns.items()], axis=1)
    if task == "multilabel":
        bad = np.argwhere((values != 0) & (values != 1))
        if len(bad):
            row, column = bad[0]
            raise InvalidValueError(
                f"{source}, row {row + 1}: {[*columns][column]!r} is {values[row, column]:g}; with task='multilabel' "
                "it must be 1 where the sample has the label, else 0."
            )
    return values.astype(np.float32), tuple(columns)


def read_classes(
    columns: Mapping[str, Sequence[str]], task: str, source: str, blank: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """As :func:`read_targets`, but a class may be missing.

    Args:
        columns: See there.
        task: See there. Only for ``multiclass`` a field may be empty.
        source: What the columns come from, for messages.
        blank: Whether one may.

    Returns:
        See there; -1 stands for no class.

    Example:
        >>> read_classes({"animal": ["dog", "", "cat"]}, "multiclass", "a.csv", blank=True)[0].tolist()
        [1, -1, 0]
    """
    fields = next(iter(columns.values()), [])
    known = np.array([bool(field.strip()) for field in fields], dtype=bool)
    if not blank or task != "multiclass" or len(columns) != 1 or known.all():
        return read_targets(columns, task, source)
    (name,) = columns
    if not known.any():
        raise InvalidValueError(f"{source}: {name!r} is empty in all rows; some must have a label.")
    labels = np.full(len(fields), -1)
    labels[known], names = read_targets({name: [field for field in fields if field.strip()]}, task, source)
    return labels, names


def read_weights(name: str, fields: Sequence[str], source: str) -> np.ndarray:
    """How often samples are drawn, in proportion: float64 ``[N]``.

    Raises:
        InvalidValueError: A field is no finite number of at least 0; the message names column and row.
    """
    weights = _numbers(name, fields, source)
    bad = np.flatnonzero(weights < 0)
    if len(bad):
        raise InvalidValueError(
            f"{source}, row {bad[0] + 1}: {name!r} is {weights[bad[0]]:g}; a weight must be at least 0."
        )
    return weights


def read_features(columns: Mapping[str, Sequence[str]], source: str) -> np.ndarray:
    """The numbers of the columns: float32 ``[N, F]``.

    Raises:
        InvalidValueError: A field is no finite number; the message names column and row.
    """
    return np.stack([_numbers(name, fields, source) for name, fields in columns.items()], axis=1).astype(np.float32)


def _is_integer(field: str) -> bool:
    try:
        return str(int(field)) == field
    except ValueError:
        return False


def _by_number(field: str) -> int:
    return int(field)


def _numbers(name: str, fields: Sequence[str], source: str) -> np.ndarray:
    try:
        values = np.array(fields, dtype=np.float64)
    except ValueError:
        values = np.array([_number(field) for field in fields])
    # 3e38 is about the largest float32.
    bad = np.flatnonzero(~(np.abs(values) < 3e38))
    if len(bad):
        field = fields[bad[0]]
        what = "is empty" if not field.strip() else f"is {field!r}"
        raise InvalidValueError(
            f"{source}, row {bad[0] + 1}: {name!r} {what}; it must be a finite number. {len(bad)} of {len(fields)} "
            "fields of this column are none: fill them in, take the rows out, or leave the column out."
        )
    return values


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return math.nan
