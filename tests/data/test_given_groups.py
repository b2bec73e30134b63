"""Parts that the data give may not break a group."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_tuning.data.parts import make_parts
from lightning_tuning.errors import InvalidValueError

LABELS = np.arange(12) % 2
GROUPS = np.repeat(["a", "b", "c", "d", "e", "f"], 2)


def given(**places):
    parts = np.full(12, "train", dtype="<U5")
    for part, indices in places.items():
        parts[indices] = part
    return parts


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"test": [8, 9, 10], "val": [6, 7]}, "'f' is in train and in test, as the data give"),
        ({"test": [10, 11], "val": [6, 7, 9]}, "'e' is in train and in val, as"),
        ({"test": [10], "val": [11]}, "'f' is in val and in test, as"),
    ],
)
def test_a_group_in_two_given_parts_is_refused(places, message):
    with pytest.raises(InvalidValueError, match=message):
        make_parts(LABELS, None, None, 0, groups=GROUPS, given=given(**places))


def test_whole_groups_stay_where_they_are_given():
    parts = make_parts(LABELS, None, None, 0, groups=GROUPS, given=given(test=[10, 11], val=[6, 7]))

    assert [part.tolist() for part in parts] == [[10, 11], [6, 7], [0, 1, 2, 3, 4, 5, 8, 9]]


def test_without_groups_nothing_is_refused():
    parts = make_parts(LABELS, None, None, 0, given=given(test=[10], val=[11]))

    assert [len(part) for part in parts] == [1, 1, 10]


def test_a_fold_joins_training_and_validation_so_that_they_may_share_a_group():
    parts = make_parts(LABELS, None, None, 0, fold="1/5", groups=GROUPS, given=given(test=[10, 11], val=[7]))

    assert not set(GROUPS[parts.val]) & set(GROUPS[parts.train])
    assert len(parts.val) == 2
