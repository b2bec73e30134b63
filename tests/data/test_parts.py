"""Parts by number, share and fold, as the data give them, with groups and without labels."""

import numpy as np
import pytest

from lightning_tuning.data import DigitsDataModule, TableDataModule, stratified_split
from lightning_tuning.data.parts import as_size, make_parts
from lightning_tuning.errors import InvalidValueError

LABELS = np.arange(200) % 4
GIVEN = np.repeat(["train", "val", "test"], [120, 50, 30])


def sizes(parts):
    return {name: len(indices) for name, indices in parts._asdict().items()}


def whole(parts, count=200):
    """Whether the parts are sorted and hold every sample once."""
    together = np.concatenate(parts)
    return sorted(together.tolist()) == list(range(count)) and all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize(
    ("val_size", "test_size", "expected"),
    [
        (20, 40, (40, 20, 140)),
        (0.25, 0.5, (100, 50, 50)),  # shares are of all, not of what another part leaves
        (None, None, (20, 20, 160)),
        (0, None, (20, 0, 180)),
        (0, 0, (0, 0, 200)),
        (0.1, 7, (7, 20, 173)),
        (np.int64(8), 0.123, (25, 8, 167)),  # 24.6
    ],
)
def test_numbers_and_shares(val_size, test_size, expected):
    parts = make_parts(LABELS, val_size, test_size, seed=3)
    assert tuple(map(len, parts)) == expected
    assert whole(parts)
    for part in parts:
        counts = np.bincount(LABELS[part], minlength=4)
        assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("given", [np.full(200, "train"), GIVEN])
def test_a_share_of_less_than_one_sample_is_refused(given):
    """The validation part would be empty, and nobody would be told."""
    what = "which is none of (120|200|50) samples. Write a larger share, a number of samples, or 0 for no such part"
    with pytest.raises(InvalidValueError, match=f"^val_size is 0.002, {what}"):
        make_parts(LABELS, 0.002, 0, seed=3, given=given)
    with pytest.raises(InvalidValueError, match=r"^test_size is 0.001, which is none of 200 samples"):
        make_parts(LABELS, 0.1, 0.001, seed=3)
    assert len(make_parts(LABELS, 0.003, 0, seed=3).val) == 1


def test_too_few_samples_for_the_classes():
    """Nothing is held out, so no size can be made smaller."""
    with pytest.raises(InvalidValueError, match=r"^There are 3 samples with a label to train on, but 4 classes; there"):
        make_parts(LABELS[:3], 0, 0, seed=3, least=4)


def test_they_are_those_of_one_split_as_ever():
    test, val, train = stratified_split(LABELS, [30, 20], 5)
    parts = make_parts(LABELS, 20, 30, seed=5)
    for ours, theirs in zip(parts, (test, val, train), strict=True):
        assert ours.tolist() == theirs.tolist()
    assert make_parts(LABELS, 20, 30, seed=6).val.tolist() != val.tolist()


def test_the_digits_parts_are_what_they_were():
    """So that runs with the same numbers compare with those of earlier versions."""
    data = DigitsDataModule(image_size=8)
    data.setup()
    test, val, train = stratified_split(data.labels, [360, 180], 0)
    assert data.test_indices.tolist() == test.tolist()
    assert data.val_indices.tolist() == val.tolist()
    assert data.train_indices.tolist() == train.tolist()
    assert data.val_indices[:5].tolist() == [10, 14, 26, 34, 50]


@pytest.mark.parametrize(
    ("given", "val_size", "test_size", "expected"),
    [
        (["train"], None, None, {"train": 160, "val": 20, "test": 20}),
        (["train", "test"], None, None, {"train": 153, "val": 17, "test": 30}),  # a tenth of 170
        (["train", "test"], 0, 0.5, {"train": 170, "val": 0, "test": 15}),
        (["train", "test"], 0.2, 3, {"train": 136, "val": 34, "test": 3}),
        (["train", "val"], None, 0.1, {"train": 135, "val": 50, "test": 15}),  # of the 150 of train
        (["train", "val", "test"], None, None, {"train": 120, "val": 50, "test": 30}),
        (["train", "val", "test"], 0.5, 0, {"train": 120, "val": 25, "test": 0}),
    ],
)
def test_given_parts_stay_and_others_come_from_train(given, val_size, test_size, expected):
    parts_of = np.where(np.isin(GIVEN, given), GIVEN, "train")
    parts = make_parts(LABELS, val_size, test_size, seed=0, given=parts_of)
    assert sizes(parts) == expected
    for name in given:  # a part that is given gets no sample from elsewhere
        assert (parts_of[getattr(parts, name)] == name).all()
    assert len(np.unique(np.concatenate(parts))) == sum(expected.values())
    for name in {"val", "test"} - {*given}:
        assert (parts_of[getattr(parts, name)] == "train").all()


def test_a_smaller_given_part_is_stratified():
    parts = make_parts(LABELS, 12, 8, seed=0, given=GIVEN)
    assert np.bincount(LABELS[parts.val]).tolist() == [3] * 4
    assert np.bincount(LABELS[parts.test]).tolist() == [2] * 4


@pytest.mark.parametrize("given", [None, ["train", "test"], ["train", "val", "test"]])
def test_folds_hold_out_everything_but_the_test_part_once(given):
    parts_of = None if given is None else np.where(np.isin(GIVEN, given), GIVEN, "train")
    folds = [make_parts(LABELS, None, 30, seed=2, fold=f"{n}/5", given=parts_of) for n in range(1, 6)]
    for parts in folds:
        assert whole(parts)
        assert parts.test.tolist() == folds[0].test.tolist()
        assert len(parts.val) == 34
        assert np.bincount(LABELS[parts.val]).min() >= 8
    if given is not None:
        assert folds[0].test.tolist() == list(range(170, 200))
    held_out = np.sort(np.concatenate([parts.val for parts in folds]))
    assert held_out.tolist() == np.setdiff1d(np.arange(200), folds[0].test).tolist()


@pytest.mark.parametrize("kwargs", [{}, {"fold": "1/4"}, {"given": np.where(GIVEN == "val", "train", GIVEN)}])
def test_no_group_is_in_two_parts(kwargs):
    groups = np.arange(200) // 5
    parts = make_parts(LABELS, 0.2, None, seed=1, groups=groups, **kwargs)
    of_each = [{*groups[part].tolist()} for part in parts]
    assert sum(map(len, of_each)) == 40
    assert set.union(*of_each) == {*range(40)}
    assert whole(parts)
    assert 30 <= len(parts.val) <= 50


def test_a_group_in_two_given_parts_is_refused():
    groups = np.arange(200) // 100
    with pytest.raises(InvalidValueError) as raised:
        make_parts(LABELS, None, None, seed=0, groups=groups, given=GIVEN)
    assert str(raised.value) == (
        "The group 1 is in train and in val, as the data give the parts, and no group may be in two. Correct the "
        "parts, or leave group out."
    )


def test_samples_without_a_label_are_for_training():
    known = np.arange(200) % 3 != 0
    labels = np.where(known, LABELS, -1)
    for kwargs in ({}, {"fold": "2/3"}):
        parts = make_parts(labels, 0.25, 0.25, seed=0, known=known, **kwargs)
        assert whole(parts)
        assert known[parts.val].all()
        assert known[parts.test].all()
        assert len(parts.test) == 33  # of the 133 with a label
    assert {*np.flatnonzero(~known).tolist()} <= {*parts.train.tolist()}


def test_samples_without_a_label_do_not_lead_around_a_split():
    """What is held out, by the data or by its group, is not trained on without its label either."""
    known = np.arange(200) % 5 != 0
    labels = np.where(known, LABELS, -1)
    parts = make_parts(labels, None, None, seed=0, known=known, given=GIVEN)
    assert sizes(parts) == {"train": 120, "val": 40, "test": 24}
    groups = np.arange(200) // 10
    for kwargs in ({}, {"fold": "1/4"}):
        parts = make_parts(labels, 0.2, 0.2, seed=0, known=known, groups=groups, **kwargs)
        held_out = {*groups[parts.val].tolist(), *groups[parts.test].tolist()}
        expected = [n for n in range(200) if groups[n] not in held_out]
        assert parts.train.tolist() == expected


@pytest.mark.parametrize(
    ("val_size", "test_size", "kwargs", "message"),
    [
        (
            150,
            60,
            {},
            "val_size is 150 and test_size is 60; together they must be at most 199: there are 200 samples to take "
            "from, and training needs at least one.",
        ),
        (
            0.6,
            0.4,
            {"least": 4},
            "val_size is 120 and test_size is 80; together they must be at most 196: there are 200 samples to take "
            "from, and training needs one for each of the 4 classes.",
        ),
        (
            120,
            0,
            {"given": np.where(GIVEN == "val", "train", GIVEN), "least": 60},
            "val_size is 120; it must be at most 110: there are 170 samples to take from, and training needs one for "
            "each of the 60 classes.",
        ),
        (51, 0, {"given": GIVEN}, "val_size is 51, but the part that the data give has 50 samples."),
        (0, 31, {"given": GIVEN}, "test_size is 31, but the part that the data give has 30 samples."),
    ],
)
def test_sizes_that_do_not_fit(val_size, test_size, kwargs, message):
    with pytest.raises(InvalidValueError) as raised:
        make_parts(LABELS, val_size, test_size, 0, **kwargs)
    assert str(raised.value) == message


def test_a_number_may_come_as_a_float():
    """jsonargparse's doing, in a run in which another class has ``float | int | None``."""
    for value in (0.0, 2.0, 300.0):
        size = as_size("val_size", value)
        assert (size, type(size)) == (int(value), int)
    assert as_size("val_size", 0.5) == 0.5
    data = DigitsDataModule(val_size=20.0, test_size=40.0)
    assert (data.val_size, data.hparams.test_size) == (20, 40)


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, -0.1, "10%", True, float("nan")])
def test_what_is_no_size(value):
    for name in ("val_size", "test_size"):
        with pytest.raises(InvalidValueError, match=rf"{name} is .*; it must be a number of samples, an integer of"):
            DigitsDataModule(**{name: value})
    with pytest.raises(InvalidValueError, match=r"as 0\.1\.$"):
        as_size("share", None, optional=False)


def test_shares_and_groups_of_a_table(tmp_path):
    """Through a datamodule: the share is of the rows, the groups of the file stay together."""
    rows = [f"{n % 7},{n % 2},p{n // 4}" for n in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,who", *rows]))
    data = TableDataModule(str(tmp_path / "a.csv"), "y", group="who", val_size=0.25, test_size=0.25)
    data.setup()
    assert [len(part) for part in (data.test_indices, data.val_indices, data.train_indices)] == [20, 20, 40]
    assert not {*data.groups[data.train_indices]} & {*data.groups[data.test_indices]}
    assert data.keys == [str(n) for n in range(80)]
