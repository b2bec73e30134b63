from itertools import pairwise

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lightning_tuning.data import fold_numbers, fold_of, parse_fold
from lightning_tuning.data.hashing import permutation
from lightning_tuning.data.stratification import strata
from lightning_tuning.errors import InvalidValueError


def classes(seed, count=203):
    """Class ids 3, 7, 8, 20 of different sizes, in random order."""
    rng = np.random.default_rng(seed)
    return rng.choice([3, 7, 8, 20], count, p=[0.6, 0.25, 0.1, 0.05])


def multi_hot(seed, count=97):
    """Labels between frequent and rare; some samples have none."""
    return (np.random.default_rng(seed).random((count, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]).astype(int)


def grouped(seed):
    """Groups of 1 to about 40 samples with class shares of their own."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(40), rng.geometric(0.1, 40)))
    shares = rng.dirichlet([0.5, 0.3, 0.2], 40).cumsum(axis=1)
    return (rng.random(len(groups))[:, None] > shares[groups]).sum(axis=1).clip(max=2), groups


def table(labels, numbers):
    """How many samples of each class are in each fold: ``[folds, classes]``."""
    return np.array([[(labels[numbers == n] == c).sum() for c in np.unique(labels)] for n in np.unique(numbers)])


def test_a_fold_is_read():
    assert parse_fold("1/2") == (0, 2)
    assert parse_fold("10/10") == (9, 10)


@pytest.mark.parametrize(
    "text", ["0/5", "6/5", "1/1", "2", "2/5/6", "-1/5", "2.0/5", "2:5", "", "a/b", 2, None, "２/5"]
)
def test_what_is_no_fold_is_refused(text):
    with pytest.raises(InvalidValueError, match=r"fold is .*write '2/5' for the second of five folds"):
        parse_fold(text)


@pytest.mark.parametrize("kind", ["classes", "text", "labels", "values", "two values", "groups", "labels and groups"])
def test_every_sample_is_held_out_once_and_trained_on_otherwise(kind):
    labels, groups = grouped(0)
    rng = np.random.default_rng(1)
    targets = {
        "classes": classes(0),
        "text": np.array(["cat", "dog", "eel"])[labels],
        "labels": multi_hot(0),
        "values": rng.normal(size=50),
        "two values": rng.normal(size=(50, 2)),
        "groups": labels,
        "labels and groups": np.eye(3)[labels],
    }[kind]
    groups = groups if "groups" in kind else None
    held_out = []
    for number in range(4):
        train, test = fold_of(targets, f"{number + 1}/4", 5, groups)
        assert (np.diff(train) > 0).all()
        assert (np.diff(test) > 0).all()
        assert sorted([*train, *test]) == list(range(len(targets)))
        assert (fold_numbers(targets, 4, 5, groups)[test] == number).all()
        held_out += test.tolist()
    assert sorted(held_out) == list(range(len(targets)))


@pytest.mark.parametrize(("seed", "count"), [(0, 2), (1, 3), (2, 5), (3, 6), (4, 7)])
def test_class_counts_are_those_of_scikit_learn(seed, count):
    labels = classes(seed)
    numbers, theirs = fold_numbers(labels, count, seed), np.empty(len(labels), int)
    for number, (_, test) in enumerate(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels)):
        theirs[test] = number
    # Each class's counts are as even as they can be, so they are the same numbers, whichever fold has the larger ones.
    assert np.sort(table(labels, numbers), axis=0).tolist() == np.sort(table(labels, theirs), axis=0).tolist()
    assert np.ptp(np.bincount(numbers)) <= 1


def test_folds_are_a_function_of_data_seed_and_count():
    labels = classes(0)
    first = fold_numbers(labels, 5, 1)
    assert first.tolist() == fold_numbers(labels.copy(), 5, 1).tolist()
    assert (first != fold_numbers(labels, 5, 2)).mean() > 0.5
    assert (first != fold_numbers(np.sort(labels), 5, 1)).mean() > 0.5


def test_samples_of_a_class_fall_to_every_fold_equally_often():
    labels = np.repeat([0, 1], [4, 8])
    falls = np.array([fold_numbers(labels, 4, seed) for seed in range(400)])
    shares = np.stack([(falls == number).mean(axis=0) for number in range(4)])
    assert np.abs(shares - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 400)


def labels_by_hand(labels, count, seed):
    """Sechidis et al., algorithm 1, with sets, for folds of sizes that differ by at most one; ties as documented."""
    order = permutation(len(labels), seed, "folds").tolist()
    ends = [round(len(labels) * part / count) for part in range(count + 1)]
    room = [b - a for a, b in pairwise(ends)]
    wish = [[labels[:, label].sum() / count for label in range(labels.shape[1])] for _ in range(count)]
    samples, numbers = set(range(len(labels))), {}
    while True:
        having = {label: {i for i in samples if labels[i, label]} for label in range(labels.shape[1])}
        having = {label: found for label, found in having.items() if found}
        if not having:
            break
        rarest = min(having, key=lambda label: (len(having[label]), label))
        for i in (i for i in order if i in having[rarest]):
            fold = min((f for f in range(count) if room[f]), key=lambda f: (-wish[f][rarest], -room[f], f))
            numbers[i] = fold
            samples.remove(i)
            room[fold] -= 1
            for label in np.flatnonzero(labels[i]):
                wish[fold][label] -= 1
    for i in (i for i in order if i in samples):
        numbers[i] = next(f for f in range(count) if room[f])
        room[numbers[i]] -= 1
    return [numbers[i] for i in range(len(labels))]


@pytest.mark.parametrize(("seed", "count"), [(0, 2), (1, 3), (2, 5), (3, 8)])
def test_multi_label_folds_are_those_of_the_paper(seed, count):
    labels = multi_hot(seed)
    numbers = fold_numbers(labels, count, seed)
    assert numbers.tolist() == labels_by_hand(labels, count, seed)
    assert np.ptp(np.bincount(numbers)) <= 1
    held = np.array([labels[numbers == number].sum(axis=0) for number in range(count)])
    assert np.abs(held - labels.sum(axis=0) / count).max() < 2


def test_labels_that_only_one_sample_has_are_spread():
    numbers = fold_numbers(np.eye(59, 100, dtype=bool), 3, 0)
    assert sorted(np.bincount(numbers)) == [19, 20, 20]


@pytest.mark.parametrize("seed", range(3))
def test_values_of_a_tenth_are_spread(seed):
    values = np.random.default_rng(seed).exponential(size=157)
    tenth = np.searchsorted(np.sort(values)[[157 * i // 10 for i in range(1, 10)]], values, side="right")
    assert np.ptp(np.bincount(tenth)) <= 1
    numbers = fold_numbers(values, 4, seed)
    assert np.ptp(table(tenth, numbers), axis=0).max() <= 1
    assert np.ptp(np.bincount(numbers)) <= 1
    assert fold_numbers(values[:, None], 4, seed).tolist() == numbers.tolist()


def test_equal_values_are_one_stratum():
    values = np.random.default_rng(0).permutation([0.0] * 60 + [float(i) for i in range(1, 41)])
    assert len(np.unique(strata(values)[values == 0])) == 1
    assert np.bincount(fold_numbers(values, 3, 0)[values == 0]).tolist() == [20, 20, 20]


def test_of_several_values_each_is_stratified():
    values = np.random.default_rng(0).normal(size=(200, 2))
    numbers = fold_numbers(values, 4, 0)
    for column in values.T:
        assert np.ptp(table(np.argsort(np.argsort(column)) // 20, numbers), axis=0).max() <= 3


def test_strata_of_each_kind_of_target():
    assert strata(np.array([True, False])).tolist() == [1, 0]
    assert strata(np.array(["b", "a", "b"], dtype=object)).tolist() == [1, 0, 1]
    assert strata(np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])).tolist() == [[False, True], [True, True]]
    two = strata(np.stack([np.arange(10.0), np.arange(10.0)[::-1]], axis=1))
    assert two.tolist() == np.concatenate([np.eye(10), np.eye(10)[::-1]], axis=1).astype(bool).tolist()


def groups_by_hand(labels, groups, count, seed):
    """The documented rule, each fold's whole chi-square computed anew for each choice."""
    names = sorted(set(groups.tolist()))
    size = {name: int((groups == name).sum()) for name in names}
    drawn = [names[i] for i in permutation(len(names), seed, "folds")]
    columns = [np.ones(len(labels)), *((labels == c).astype(float) for c in sorted(set(labels.tolist())))]
    folds = [set() for _ in range(count)]

    def misfit(folds):
        held = [[c[np.isin(groups, sorted(fold))].sum() for c in columns] for fold in folds]
        return sum(
            (h - c.sum() / count) ** 2 / (c.sum() / count) for row in held for h, c in zip(row, columns, strict=True)
        )

    for name in sorted(drawn, key=lambda name: -int(np.log2(size[name]))):
        tried = [misfit([fold | {name} if f == g else fold for g, fold in enumerate(folds)]) for f in range(count)]
        folds[int(np.argmin(np.round(tried, 9)))].add(name)
    return [next(f for f, fold in enumerate(folds) if name in fold) for name in groups.tolist()]


@pytest.mark.parametrize("seed", range(2))
def test_groups_follow_the_documented_rule(seed):
    labels, groups = grouped(seed)
    names = np.array([f"patient {group}" for group in range(40)])[groups]
    numbers = fold_numbers(labels, 3, seed, names)
    assert numbers.tolist() == groups_by_hand(labels, names, 3, seed)
    assert all(len(set(numbers[groups == group])) == 1 for group in range(40))


def test_grouped_folds_are_as_even_as_those_of_scikit_learn():
    ours, theirs = [], []
    for seed in range(10):
        labels, groups = grouped(seed)
        other = np.empty(len(labels), int)
        split = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        for number, (_, test) in enumerate(split):
            other[test] = number
        for numbers, found in ((fold_numbers(labels, 5, seed, groups), ours), (other, theirs)):
            counts = table(labels, numbers)
            found.append((np.std(counts.sum(1) / len(labels)), np.std(counts / counts.sum(0), axis=0).mean()))
    assert (np.mean(ours, axis=0) <= 1.1 * np.mean(theirs, axis=0)).all()


def test_the_seed_matters_also_where_all_groups_differ_in_size():
    groups = np.repeat(np.arange(30), np.arange(1, 31))
    first, other = (fold_numbers(np.zeros(len(groups), int), 5, seed, groups) for seed in (0, 1))
    together = [
        [numbers[groups == a][0] == numbers[groups == b][0] for a in range(30) for b in range(a)]
        for numbers in (first, other)
    ]
    assert np.mean(np.array(together[0]) != np.array(together[1])) > 0.1
    assert np.ptp(np.bincount(first)) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_no_fold_is_empty_with_as_many_groups_as_folds(seed):
    groups = np.repeat([5, 6, 7, 8], [30, 1, 1, 1])
    assert sorted(np.bincount(fold_numbers(np.arange(33) % 2, 4, seed, groups))) == [1, 1, 1, 30]


def test_grouped_labels_and_values_keep_their_shares():
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 80, 600), rng.random((600, 4)) < [0.5, 0.3, 0.2, 0.1]
    values = rng.normal(size=600) + groups / 20
    for targets, kinds in ((labels, labels), (values, strata(values)[:, None] == np.arange(10))):
        numbers = fold_numbers(targets, 4, 0, groups)
        assert all(len(set(numbers[groups == group])) == 1 for group in range(80))
        held = np.array([kinds[numbers == number].sum(axis=0) for number in range(4)])
        assert np.abs(held / kinds.sum(axis=0) - 0.25).max() < 0.06
        assert np.abs(np.bincount(numbers) / 600 - 0.25).max() < 0.03


@pytest.mark.parametrize(
    ("targets", "groups", "message"),
    [
        (np.zeros(3, int), None, "4 folds for 3 samples; write at most '1/3'"),
        (np.zeros(9, int), np.arange(9) % 3, "4 folds for 3 groups"),
        (np.zeros(9, int), np.arange(8), r"groups has the shape \[8\]; .* 9 samples"),
        (
            np.zeros(9, int),
            np.array(["a", "b", "c", "", "d", "e", "f", "g", ""]),
            "2 of 9 groups are missing.* index 3",
        ),
        (np.zeros(5, int), np.array([1.0, 2.0, 3.0, 4.0, np.nan]), "1 of 5 groups are missing.* index 4: .*nan"),
        (np.array(["a", "b", None, "a"]), None, "1 of 4 targets are missing, the first at index 2: None"),
        (np.array([0.5, np.nan, 1.0, 2.0]), None, r"targets\[1\] is nan"),
        (np.array([[0, 1], [1, -1], [0, 0], [1, 1]]), None, r"int64 \[4, 2\]; .* of 0 and 1"),
        (np.zeros((4, 2, 2)), None, r"\[4, 2, 2\]; .*For masks write which classes"),
    ],
)
def test_what_cannot_be_folded_is_refused(targets, groups, message):
    with pytest.raises(InvalidValueError, match=message):
        fold_numbers(targets, 4, 0, groups)


def test_one_fold_is_none():
    with pytest.raises(InvalidValueError, match="The number of folds is 1"):
        fold_numbers(np.zeros(3, int), 1, 0)
