from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from lightning_tuning.data import choose_labeled, stratified_split
from lightning_tuning.data.hashing import permutation
from lightning_tuning.data.splits import rank_in_class
from lightning_tuning.errors import InvalidValueError


def imbalanced(seed):
    """Class ids whose counts differ by up to a factor of ten, shuffled; not 0 .. C - 1."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat([3, 7, 8, 20], rng.integers(20, 200, 4)))


def counts(labels, indices):
    return np.array([(labels[indices] == label).sum() for label in np.unique(labels)])


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_disjoint_complete_and_of_the_given_sizes(seed):
    labels = imbalanced(seed)
    parts = stratified_split(labels, [15, 0, 30], seed)
    assert [len(part) for part in parts] == [15, 0, 30, len(labels) - 45]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("seed", range(5))
def test_each_class_has_its_share_up_to_rounding(seed):
    labels = imbalanced(seed)
    for part in stratified_split(labels, [16, 40], seed):
        share = counts(labels, np.arange(len(labels))) * len(part) / len(labels)
        assert np.abs(counts(labels, part) - share).max() <= 1


def test_the_seed_chooses_the_samples():
    labels = imbalanced(0)
    first, again, other = (stratified_split(labels, [30], seed)[0] for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(InvalidValueError, match=r"\[3, 4\] samples do not fit into 6 samples"):
        stratified_split(np.zeros(6, int), [3, 4], 0)


def test_the_split_of_class_ids_stays_what_it_was():
    labels = np.array([8, 8, 8, 3, 8, 7, 8, 8, 8, 7, 3, 8, 7, 7, 7, 8, 7, 7, 3, 3, 8, 8, 8, 3, 7, 8, 7, 8, 8, 8])
    for same in (labels, labels.astype(str), labels[:, None].tolist()):
        parts = stratified_split(np.array(same).reshape(-1), [4, 6], 11)
        assert [part.tolist() for part in parts[:2]] == [[2, 10, 14, 22], [1, 9, 11, 18, 26, 27]]


@pytest.mark.parametrize("seed", range(3))
def test_class_ids_are_lined_up_by_their_place_in_the_class(seed):
    labels = imbalanced(seed)
    order, places, sizes = permutation(len(labels), seed, "split"), {}, Counter(labels.tolist())
    for label in sizes:
        members = [i for i in order if labels[i] == label]
        places.update((i, Fraction(2 * rank + 1, 2 * sizes[label])) for rank, i in enumerate(members))
    line = sorted(order.tolist(), key=places.__getitem__)
    parts = stratified_split(labels, [1] * 60, seed)
    assert [part.tolist() for part in parts] == [*([i] for i in line[:60]), sorted(line[60:])]


def grouped(seed):
    """Class ids and groups of 1 to 12 samples that have their own class shares."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(50), rng.integers(1, 13, 50)))
    return (rng.random(len(groups)) < rng.random(50)[groups]).astype(int), groups


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_parts_and_sizes_and_shares_are_near(seed):
    labels, groups = grouped(seed)
    sizes = [len(labels) // 10, len(labels) // 5]
    parts = stratified_split(labels, sizes, seed, groups=groups)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    members = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, members)) == 50
    assert np.abs(np.array([len(part) for part in parts[:2]]) - sizes).max() <= 6
    for part in parts:
        share = counts(labels, np.arange(len(labels))) * len(part) / len(labels)
        assert np.abs(counts(labels, part) - share).max() <= 6


def test_small_parts_are_not_made_of_small_groups():
    means = []
    for seed in range(20):
        labels, groups = grouped(seed)
        test, train = stratified_split(labels, [len(labels) // 8], seed, groups=groups)
        means.append([len(part) / len(np.unique(groups[part])) for part in (test, train)])
    test_mean, train_mean = np.mean(means, axis=0)
    assert 0.8 < test_mean / train_mean < 1.25


def test_a_part_of_no_samples_stays_empty_and_one_that_would_is_refused():
    groups = np.repeat([0, 1, 2], 10)
    none, _, train = stratified_split(np.zeros(30, int), [0, 10], 0, groups=groups)
    assert (len(none), len(train)) == (0, 20)
    with pytest.raises(InvalidValueError, match="part of 2 samples stays empty: there are 3 groups with up to 10"):
        stratified_split(np.zeros(30, int), [2], 0, groups=groups)


def test_multi_label_parts_have_the_sizes_and_every_label_its_share():
    rng = np.random.default_rng(0)
    labels = rng.random((301, 8)) < [0.5, 0.3, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02]
    parts = stratified_split(labels, [30, 0, 61], 0)
    assert [len(part) for part in parts] == [30, 0, 61, 210]
    for part in parts:
        assert np.abs(labels[part].sum(0) - labels.sum(0) * len(part) / 301).max() <= 1.5


def test_values_are_split_by_their_tenths():
    values = np.random.default_rng(0).lognormal(size=200)
    val, _ = stratified_split(values, [40], 0)
    tenth = np.argsort(np.argsort(values)) // 20
    assert np.bincount(tenth[val]).tolist() == [4] * 10


def test_rank_in_class_counts_the_samples_of_the_class_before():
    labels, order = imbalanced(1), np.random.default_rng(1).permutation(len(imbalanced(1)))
    for position in (0, 10, len(order) - 1):
        sample = order[position]
        assert rank_in_class(labels, order)[sample] == (labels[order[:position]] == labels[sample]).sum()


@pytest.mark.parametrize("num_labels", [4, 5, 7, 40, 80])
def test_labels_are_balanced_over_the_classes(num_labels):
    labels = imbalanced(2)
    chosen = counts(labels, choose_labeled(labels, num_labels, 0))
    assert chosen.sum() == num_labels
    assert chosen.max() - chosen.min() == (1 if num_labels % 4 else 0)


def test_when_a_class_runs_out_the_others_fill_up():
    labels = np.repeat([0, 1, 2], [2, 10, 10])
    assert counts(labels, choose_labeled(labels, 12, 0)).tolist() == [2, 5, 5]


def test_a_smaller_choice_is_part_of_a_larger_one():
    labels = imbalanced(3)
    choices = [set(choose_labeled(labels, n, 5).tolist()) for n in (4, 10, 33)]
    assert choices[0] < choices[1] < choices[2]
    assert choices[1] != set(choose_labeled(labels, 10, 6).tolist())


def test_no_number_keeps_every_label():
    assert choose_labeled(imbalanced(4), None, 0).tolist() == list(range(len(imbalanced(4))))


@pytest.mark.parametrize("num_labels", [3, 23])
def test_numbers_of_labels_that_cannot_be_had_are_refused(num_labels):
    with pytest.raises(InvalidValueError, match=f"num_labels is {num_labels}; it must be an integer from 4 .* to 22"):
        choose_labeled(np.repeat([0, 1, 2, 3], [2, 10, 5, 5]), num_labels, 0)
