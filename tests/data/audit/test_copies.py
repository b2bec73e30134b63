from collections import Counter

import numpy as np

from lightning_tuning.data.audit.copies import copy_faults, copy_groups, members_of


def test_groups_are_those_of_a_dictionary():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 6, (60, 2)).astype(np.uint64)
    left_out = [3, 17, 40]
    groups = copy_groups(hashes, left_out)
    places = {}
    for index, row in enumerate(map(tuple, hashes.tolist())):
        if index not in left_out:
            places.setdefault(row, []).append(index)
    several = [members for members in places.values() if len(members) > 1]
    assert len(several) > 5
    expected = np.zeros(60, int)
    for number, members in enumerate(several, start=1):  # a dictionary keeps the order of first places
        expected[members] = number
    assert groups.tolist() == expected.tolist()
    assert [members.tolist() for members in members_of(groups)] == several


def test_both_halves_of_a_hash_count():
    assert copy_groups(np.array([[1, 2], [1, 3], [4, 2]], np.uint64)).tolist() == [0, 0, 0]


def test_no_samples_and_no_copies():
    assert copy_groups(np.zeros((0, 2), np.uint64)).tolist() == []
    assert list(members_of(np.zeros(3, int))) == []


def faults(groups, parts, labels=None, masks=None):
    count = len(groups)
    masks = np.zeros((count, 2), np.uint64) if masks is None else masks
    labels = None if labels is None else np.array(labels)
    found = list(copy_faults(np.array(groups), np.array(parts), labels, masks, [f"k{i}" for i in range(count)]))
    return Counter((index, fault.kind) for index, fault in found), {index: fault.reason for index, fault in found}


def test_within_a_part_and_across_parts():
    kinds, reasons = faults([1, 1, 2, 2, 2, 0], [0, 0, 0, 0, 1, 2])
    assert kinds == Counter([(0, "copy"), (1, "copy"), (2, "leak"), (3, "leak"), (4, "leak")])
    assert reasons[0] == "it is equal to k1"
    assert reasons[2] == reasons[3] == "it is also in another part: k4"
    assert reasons[4] == "it is also in another part: k2, k3"


def test_samples_in_no_part_are_no_matter():
    assert faults([1, 1, 2, 2], [0, -1, -1, -1])[0] == Counter()


def test_labels_that_differ():
    assert faults([1, 1], [0, 0], [3, 3])[0] == Counter([(0, "copy"), (1, "copy")])
    one = Counter([(0, "copy"), (1, "copy"), (0, "contradiction"), (1, "contradiction")])
    assert faults([1, 1], [0, 0], [3, 4])[0] == one
    assert faults([1, 1], [0, 0], [[0, 1], [1, 1]])[0] == one
    assert faults([1, 1], [0, 0], masks=np.array([[0, 0], [0, 5]], np.uint64))[0] == one


def test_a_sample_without_a_label_contradicts_none():
    kinds = {index: kind for (index, kind), _ in faults([1, 1], [0, 0], [-1, 4])[0].items()}
    assert kinds == {0: "copy", 1: "copy"}
    assert (2, "contradiction") in faults([1, 1, 1], [0, 0, 0], [3, -1, 4])[0]


def test_many_equal_samples_are_named_briefly():
    _, reasons = faults([1] * 5, [0] * 5)
    assert reasons[0] == "it is equal to k1, k2 and 2 more"
    assert reasons[1] == "it is equal to k0, k2 and 2 more"
    assert reasons[4] == "it is equal to k0, k1 and 2 more"
