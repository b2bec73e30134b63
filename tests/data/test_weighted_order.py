import numpy as np
import pytest

from lightning_tuning.data.weighted_order import balanced_weights, weighted_order
from lightning_tuning.errors import InvalidValueError


def drawn(weights, count, epoch=0, **kwargs):
    """How often each sample is drawn."""
    return np.bincount(weighted_order(weights, count, 3, "order", epoch, **kwargs), minlength=len(weights))


@pytest.mark.parametrize("count", [1, 7, 100, 1001])
def test_each_sample_is_drawn_as_often_as_its_share_up_to_rounding(count):
    weights = np.random.default_rng(0).lognormal(0, 2, 60)
    wanted = count * weights / weights.sum()
    for epoch in range(5):
        times = drawn(weights, count, epoch)
        assert times.sum() == count
        assert (np.floor(wanted) <= times).all()
        assert (times <= np.ceil(wanted)).all()


def test_on_average_each_sample_has_exactly_its_share():
    weights = np.array([1.0, 2.0, 0.3, 0.7, 5.0, 2.0])
    mean = np.mean([drawn(weights, 8, epoch) for epoch in range(800)], axis=0)
    # Each epoch's number is one of two neighbours, so its variance is at most 1/4.
    assert np.abs(mean - 8 * weights / 11).max() < 4 * np.sqrt(0.25 / 800)


def test_each_place_of_the_order_has_the_shares():
    weights = np.array([1.0, 3.0])
    orders = np.array([weighted_order(weights, 4, 0, "order", epoch) for epoch in range(800)])
    assert np.abs(orders.mean(axis=0) - 0.75).max() < 4 * np.sqrt(0.25 * 0.75 / 800)


def test_equal_weights_draw_every_sample_once_in_random_order():
    order = weighted_order(np.full(50, 0.1), 50, 0, "order")
    assert sorted(order.tolist()) == list(range(50))
    assert np.abs(np.corrcoef(order, np.arange(50))[0, 1]) < 0.5
    assert order.dtype == np.int64


@pytest.mark.parametrize("count", [30, 31, 64, 500])
def test_classes_of_different_sizes_are_balanced_up_to_rounding(count):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 30, 5]))
    for epoch in range(5):
        counts = np.bincount(labels[weighted_order(balanced_weights(labels), count, 0, "order", epoch)])
        assert np.ptp(counts) <= 1


def test_classes_of_equal_size_are_balanced_where_they_are_named():
    labels = np.arange(400) % 4  # in the order of the data, every fourth sample would be of one class
    spread = [[], []]
    for epoch in range(20):
        for given, found in zip((None, labels), spread, strict=True):
            order = weighted_order(balanced_weights(labels), 100, 0, "order", epoch, labels=given)
            found.append(np.ptp(np.bincount(labels[order], minlength=4)))
    assert max(spread[1]) <= 1
    assert 1 < np.mean(spread[0]) < 20  # of independent draws about 9


def test_named_classes_keep_the_share_of_their_weights():
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 3, 90), rng.random(90)
    wanted = np.bincount(labels, weights) / weights.sum() * 41
    counts = np.bincount(labels[weighted_order(weights, 41, 0, "order", labels=labels)])
    assert (np.abs(counts - wanted) < 1).all()


def test_which_samples_of_a_class_are_drawn_changes_with_the_epoch():
    labels = np.repeat([0, 1], [100, 10])
    chosen = [
        set(weighted_order(balanced_weights(labels), 20, 0, "order", epoch)) & set(range(100)) for epoch in range(60)
    ]
    assert len(set.union(*chosen)) > 95
    # Of a line in fixed order, only a dozen different selections could be drawn.
    assert len({frozenset(found) for found in chosen}) > 50


def test_the_order_is_a_function_of_its_arguments():
    weights = np.random.default_rng(0).random(30)
    first = weighted_order(weights, 40, 1, "order", 2, 3).tolist()
    assert first == weighted_order(weights.copy(), 40, 1, "order", 2, 3).tolist()
    assert first == weighted_order(8 * weights, 40, 1, "order", 2, 3).tolist()
    others = [(2, "order", 2, 3), (1, "other", 2, 3), (1, "order", 3, 3), (1, "order", 2, 4)]
    assert all(weighted_order(weights, 40, *other).tolist() != first for other in others)


def test_weight_zero_is_never_drawn():
    weights = np.array([0.0, 1.0, 0.0, 2.0, 0.0])
    assert all(drawn(weights, 9, epoch)[[0, 2, 4]].sum() == 0 for epoch in range(20))


def test_the_last_point_may_be_rounded_up(monkeypatch):
    home = "lightning_tuning.data.weighted_order"
    monkeypatch.setattr(f"{home}.hashes", lambda *key: np.array([2**64 - 1], np.uint64))
    monkeypatch.setattr(f"{home}.permutation", lambda count, *key: np.arange(count))
    times = np.bincount(weighted_order(np.array([1.0, 1.0, 0.0]), 2**21, 0, "order", labels=np.arange(3)))
    assert times.sum() == 2**21
    assert np.abs(times - 2**20).max() <= 1
    assert weighted_order(np.ones(3), 3, 0, "order").tolist() == [0, 1, 2]


def test_no_draws_and_large_weights():
    assert weighted_order(np.ones(3), 0, 0, "order").tolist() == []
    assert drawn(np.full(4, 1e308), 4).tolist() == [1, 1, 1, 1]


def test_balanced_weights_are_the_inverse_sizes_to_a_power():
    labels = np.array([4, 9, 4, 4, -1, 9])
    sizes = np.array([3, 2, 3, 3, 1, 2])
    for power in (0, 0.5, 1.0):
        np.testing.assert_allclose(balanced_weights(labels, power), sizes ** -float(power), rtol=1e-15)
    assert balanced_weights(np.array(["a", "b", "a"])).tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.array([1.0, -1.0, np.nan]), r"weights\[1\] is -1.0; .* 2 of 3 are not"),
        (np.array([1.0, np.inf]), r"weights\[1\] is inf"),
        (np.zeros(3), "All weights are 0"),
        (np.ones((2, 2)), r"weights is \[2, 2\]"),
        (np.ones(0), r"weights is \[0\]"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_refused(weights, message):
    with pytest.raises(InvalidValueError, match=message):
        weighted_order(weights, 3, 0, "order")


def test_other_bad_arguments_are_refused():
    with pytest.raises(InvalidValueError, match=r"labels is \[2\] and weights \[3\]"):
        weighted_order(np.ones(3), 3, 0, "order", labels=np.ones(2))
    with pytest.raises(InvalidValueError, match="count is -1"):
        weighted_order(np.ones(3), -1, 0, "order")
    with pytest.raises(InvalidValueError, match="power is 2"):
        balanced_weights(np.zeros(3, int), 2)
    with pytest.raises(InvalidValueError, match=r"labels is \[3, 2\]; balancing needs one class"):
        balanced_weights(np.zeros((3, 2), int))
