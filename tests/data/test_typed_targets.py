"""Targets from Python values, with class names and without, with lists and gaps."""

import re

import numpy as np
import pytest

from lightning_tuning.data.typed_targets import read_typed_targets
from lightning_tuning.errors import InvalidValueError

NAMES = ["ape", "bee", "cat"]


@pytest.mark.parametrize(
    ("values", "names", "ids", "found"),
    [
        ([2, -1, 0, None], NAMES, [2, -1, 0, -1], ("ape", "bee", "cat")),
        ([7, None, -1, 12], None, [1, -1, 0, 2], ("-1", "7", "12")),
        (["b", "a", None], None, [1, 0, -1], ("a", "b")),
        ([True, False], None, [1, 0], ("0", "1")),
        ([None, -1], NAMES, [-1, -1], ("ape", "bee", "cat")),
    ],
)
def test_classes(values, names, ids, found):
    labels, classes = read_typed_targets({"label": values}, "multiclass", "pets", names)
    assert labels.dtype == np.int64
    assert labels.tolist() == ids
    assert classes == found


def test_lists_of_labels():
    hot, names = read_typed_targets({"tags": [[2, 0], [], [1]]}, "multilabel", "pets", NAMES)
    assert hot.dtype == np.float32
    assert hot.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert names == ("ape", "bee", "cat")
    hot, names = read_typed_targets({"tags": [[10, 9], [], [9]]}, "multilabel", "pets")
    assert hot.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert names == ("9", "10")


def test_columns_of_labels_and_values():
    hot, names = read_typed_targets({"ape": [0, 1], "bee": [True, False]}, "multilabel", "pets")
    assert hot.tolist() == [[0, 1], [1, 0]]
    assert names == ("ape", "bee")
    values, names = read_typed_targets({"age": [0.5, 2]}, "regression", "pets")
    assert values.tolist() == [[0.5], [2]]
    assert values.dtype == np.float32
    assert names == ("age",)
    assert read_typed_targets({"ape": [0, 1]}, "multilabel", "pets")[0].tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("columns", "task", "names", "text"),
    [
        ({"label": [0, 3]}, "multiclass", NAMES, "pets, row 1: 'label' is 3; it must be an integer from 0 to 2."),
        ({"label": [0, -2]}, "multiclass", NAMES, "pets, row 1: 'label' is -2; it must be an integer from 0 to 2."),
        ({"label": [[0], [1, 2]]}, "multiclass", NAMES, "pets, row 0: 'label' is [0]; it must be an integer from 0"),
        ({"label": ["a", " "]}, "multiclass", None, "pets, row 1: 'label' is ' '; it must be a number or text."),
        ({"tags": [[1], [0, 1, 0]]}, "multilabel", None, "pets, row 1: 'tags' is [0, 1, 0]; it must be a list of diff"),
        ({"tags": [[1], None]}, "multilabel", None, "pets, row 1: 'tags' is None; it must be a list of different lab"),
        ({"tags": [[1], [-1]]}, "multilabel", NAMES, "pets, row 1: 'tags' is [-1]; it must be a list of different lab"),
        (
            {"tags": [[1], [[1]]]},
            "multilabel",
            None,
            "pets, row 1: 'tags' is [[1]]; it must be a list of different lab",
        ),
        ({"tags": [[1], [3]]}, "multilabel", NAMES, "it must be an integer from 0 to 2."),
        ({"age": [1.0, None]}, "regression", None, "pets, row 1: 'age' is None; it must be a number or text."),
        ({"age": [1.0, "x"]}, "regression", None, "'age' is 'x'; it must be a finite number."),
        ({"a": [0], "b": [1]}, "multiclass", None, "target names 2 columns"),
        ({}, "multiclass", None, "target is empty"),
    ],
)
def test_what_is_no_target(columns, task, names, text):
    with pytest.raises(InvalidValueError, match=re.escape(text)):
        read_typed_targets(columns, task, "pets", names)
