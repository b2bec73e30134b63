"""What counts as a difference, and which is the first."""

from __future__ import annotations

import math

import numpy as np
import torch

from lightning_tuning.resume.compare import first_difference, largest, same
from lightning_tuning.resume.state import digest, flatten

FACTS = {"exact_resume": True, "stateless": [], "batches": 4.0, "middle": 2}


def record(*states, events=()):
    return {"states": list(states), "events": list(events), "facts": FACTS}


def test_same_is_bitwise_but_for_nan():
    nan = float("nan")
    assert same(torch.tensor([1.0, nan]), torch.tensor([1.0, nan]))
    assert not same(torch.tensor([1.0, nan]), torch.tensor([nan, 1.0]))
    assert not same(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    assert not same(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))
    assert not same(torch.zeros(2), torch.zeros(1))
    assert same(nan, nan)
    assert not same(1, 1.0)
    assert not same(True, 1)


def test_largest():
    assert largest(torch.tensor([1.0, -5.0]), torch.tensor([1.5, -3.0])) == 2.0
    assert largest(torch.tensor([1.0]), torch.tensor([float("nan")])) == math.inf
    assert largest(torch.tensor([250], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)) == 5.0
    assert largest(3, 1.5) == 1.5
    assert largest("a", "b") is None
    assert largest(torch.zeros(2), torch.zeros(3)) is None


def test_the_earliest_difference_wins_and_then_the_order_of_causes():
    a = {"random numbers: torch": "r", "weights: w": torch.zeros(1), "buffers: b": torch.zeros(1)}
    whole = record((1, 0, 4, a), (1, 1, 5, a), (1, -1, 6, a))
    later = {**a, "weights: w": torch.ones(1)}
    first = {**a, "buffers: b": torch.ones(1)}
    found = first_difference(whole, record((1, 0, 4, first), (1, 1, 5, later)), 0, "mid-epoch")
    assert (found.key, found.place, found.largest) == ("buffers: b", "before batch 0 of epoch 1 (step 4)", 1.0)
    both = {**a, "weights: w": torch.ones(1), "random numbers: torch": "s"}
    assert first_difference(whole, record((1, 1, 5, both)), 0, "mid-epoch").key == "random numbers: torch"
    assert first_difference(whole, record((1, -1, 6, later)), 0, "mid-epoch").place == "at the end of the run"
    assert first_difference(whole, record((1, 1, 5, a), (1, -1, 6, a)), 0, "mid-epoch") is None


def test_what_one_run_alone_has_is_a_difference():
    whole = record((1, 0, 4, {"callback C: a": 1}))
    assert first_difference(whole, record((1, 0, 4, {})), 0, "mid-epoch").resumed == "nothing"
    assert first_difference(record((1, 0, 4, {})), record((1, 0, 4, {"callback C: a": 1})), 0, "x").whole == "nothing"
    assert first_difference(whole, record((1, 7, 4, {})), 0, "mid-epoch").key == "progress"


def test_buffers_that_other_ranks_resume_with_do_not_matter():
    a, b = {"buffers: b": torch.zeros(1)}, {"buffers: b": torch.ones(1)}
    whole = record((1, 0, 4, a), (1, 1, 5, a))
    assert first_difference(whole, record((1, 0, 4, b), (1, 1, 5, a)), 1, "mid-epoch") is None
    assert first_difference(whole, record((1, 0, 4, a), (1, 1, 5, b)), 1, "mid-epoch").rank == 1
    assert first_difference(whole, record((1, 0, 4, b), (1, 1, 5, a)), 0, "mid-epoch") is not None


def test_logged_values():
    a = (1, 0, 4, {})
    whole = record(a, events=[(4, {"x": 1.0, "epoch": 1}), (5, {"x": 2.0}), (5, {"x": 3.0})])
    assert first_difference(whole, record(a, events=[(5, {"x": 3.0})]), 0, "mid-epoch") is None
    assert first_difference(whole, record(a, events=[(5, {"x": 2.5})]), 0, "mid-epoch").largest == 0.5
    missing = first_difference(whole, record(a, events=[(4, {"x": 1.0})]), 0, "mid-epoch")
    assert (missing.key, missing.place, missing.resumed) == ("logged: x", "logged at step 5", "nothing")
    new = record(a, events=[(5, {"y": 1.0})])
    assert first_difference(whole, new, 0, "mid-epoch").whole == "nothing"
    # The run that max_steps ended has logged means of a part of that epoch.
    part = record(a, events=[(4, {"x": 9.0, "epoch": 1}), (5, {"x": 2.0})])
    assert first_difference(whole, part, 0, "max_steps") is None
    assert first_difference(whole, part, 0, "mid-epoch").key == "logged: x"


def test_digests_tell_bits_apart():
    values = [
        torch.zeros(2),
        torch.zeros(1, 2),
        torch.zeros(2, dtype=torch.int32),
        torch.tensor([0.0, -0.0]),
        torch.zeros(2, dtype=torch.bfloat16),
        np.zeros(2),
        0,
        0.0,
        "0",
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": [torch.arange(3)]}) == digest({"a": [torch.arange(3)]})
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.arange(6).view(2, 3).T.contiguous())


def test_flatten_copies():
    tensor = torch.zeros(1)
    flat = dict(flatten({"s": {tensor.item()}, "t": [tensor], "o": object(), "n": np.ones(2)}))
    tensor += 1
    assert flat["t[0]"].item() == 0
    assert flat["s"] == "['0.0']"
    assert flat["o"] == "object"
    assert flat["n"].startswith("array float64[2] ")
