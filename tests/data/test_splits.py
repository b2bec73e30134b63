import numpy as np
import pytest

from lightning_tuning.data import choose_labeled, stratified_split
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
