import random

import numpy as np
import torch

from lightning_tuning.functional import get_rng_state, set_rng_state


def draws():
    return (
        torch.rand(3).tolist(),
        torch.randperm(9).tolist(),
        torch.nn.functional.dropout(torch.ones(20)).tolist(),
        random.random(),
        np.random.rand(3).tolist(),  # noqa: NPY002
    )


def test_all_generators_are_replayed():
    draws()
    state = get_rng_state(torch.device("cpu"))
    first, second = draws(), draws()
    assert all(a != b for a, b in zip(first, second, strict=True))
    set_rng_state(state)
    assert draws() == first
    assert draws() == second


def test_a_state_can_be_put_back_twice():
    state = get_rng_state(torch.device("cpu"))
    first = draws()
    for _ in range(2):
        set_rng_state(state)
        assert draws() == first


def test_capturing_draws_nothing():
    set_rng_state(state := get_rng_state(torch.device("cpu")))
    first = draws()
    set_rng_state(state)
    get_rng_state(torch.device("cpu"))
    assert draws() == first
