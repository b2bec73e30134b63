from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_tuning.functional import StateMean, greedy_soup, uniform_soup


def states(number=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"w": torch.randn(3, 2, generator=generator), "n": torch.tensor(10 * i), "mask": torch.tensor([i == 0])}
        for i in range(number)
    ]


def test_the_uniform_soup_is_the_mean_and_takes_counters_from_the_first():
    given = states()
    soup = uniform_soup(given)
    np.testing.assert_allclose(soup["w"], np.mean([s["w"].numpy() for s in given], 0), rtol=1e-6)
    assert soup["w"].dtype == torch.float32
    assert soup["n"] == 0
    assert soup["n"].dtype == torch.int64
    assert soup["mask"].tolist() == [True]
    assert torch.equal(given[0]["w"], states()[0]["w"])


def test_half_precision_is_summed_in_float64():
    given = [{"w": torch.tensor([value], dtype=torch.bfloat16)} for value in [256.0] + [1.0] * 255]
    assert uniform_soup(given)["w"].item() == 2.0  # 511 / 256 in bfloat16


def test_a_mean_with_one_more_changes_nothing():
    given, mean = states(), StateMean()
    mean.add(given[0])
    both = mean.mean(also=given[1])
    np.testing.assert_allclose(both["w"], (given[0]["w"] + given[1]["w"]) / 2, rtol=1e-6)
    assert torch.equal(mean.mean()["w"], given[0]["w"])


def by_hand(values, score):
    """Recipe 1 of the paper on scalars."""
    order = sorted(range(len(values)), key=lambda i: -score(values[i]))
    chosen = []
    for i in order:
        if not chosen or score(np.mean([values[j] for j in [*chosen, i]])) >= score(
            np.mean([values[j] for j in chosen])
        ):
            chosen.append(i)
    return chosen


@pytest.mark.parametrize("seed", range(20))
def test_the_greedy_soup_is_the_papers(seed):
    values = np.random.default_rng(seed).normal(0.5, 2, size=6)

    def score(value):
        return -round(abs(value), 1)  # rounded: an equal score is taken in

    given = [{"w": torch.tensor([v], dtype=torch.float64)} for v in values]
    soup, chosen = greedy_soup(given, lambda state, count: score(state["w"].item()))
    assert chosen == by_hand(values, score)
    assert soup["w"].item() == pytest.approx(np.mean(values[chosen]))


def test_an_equal_score_is_taken_in():
    given = [{"w": torch.tensor([float(i)])} for i in range(3)]
    assert greedy_soup(given, lambda state, count: 1.0)[1] == [0, 1, 2]


def test_the_score_is_told_how_many_states_are_in_the_mean():
    counts = []
    greedy_soup([{"w": torch.ones(1)}] * 3, lambda state, count: counts.append(count) or 0.0)
    assert counts == [1, 1, 1, 2, 3]
