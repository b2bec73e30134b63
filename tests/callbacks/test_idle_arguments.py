"""Arguments that do nothing beside the others are refused; not at their defaults, as in a saved configuration."""

import inspect

import pytest

from lightning_tuning import (
    CheckpointSoup,
    EarlyStop,
    FiniteGuard,
    GradientNorm,
    PostHocEMA,
    Schedule,
    SnapshotEnsemble,
    SpikeGuard,
    WeightEMA,
    WeightSWA,
)
from lightning_tuning.errors import InvalidValueError

IDLE = [
    (GradientNorm, {"depth": 2}, "group_by: module", {"group_by": "module"}),
    (FiniteGuard, {"lr_factor": 0.1}, "action: reduce_lr", {"action": "reduce_lr"}),
    (FiniteGuard, {"rewind_every": 7}, "action: rewind", {"action": "rewind"}),
    (SpikeGuard, {"lr_factor": 0.1}, "action: reduce_lr", {"action": "reduce_lr"}),
    (SpikeGuard, {"rewind_every": 7}, "action: rewind", {"action": "rewind"}),
    (Schedule, {"warmup_from": 0.1}, "a warmup", {"warmup": "5st"}),
    (Schedule, {"batch_rule": "sqrt"}, "a reference_batch", {"reference_batch": 64}),
    (EarlyStop, {"combine": "any"}, "a list of metrics as monitor", {"monitor": ["a", "b"]}),
    (EarlyStop, {"relative": True}, "a min_delta or max_gap", {"min_delta": 0.1}),
    (EarlyStop, {"relative": True}, "a min_delta or max_gap", {"train_monitor": "t", "max_gap": 0.1}),
    (WeightSWA, {"anneal": "4st"}, "an lr", {"lr": 0.1}),
    (WeightEMA, {"warmup_power": 0.5}, "a decay or half_life", {"sigma_rel": None}),
    (PostHocEMA, {"monitor": "acc"}, "candidates", {"candidates": [0.1]}),
    (PostHocEMA, {"mode": "max"}, "candidates", {"candidates": [0.1]}),
    (PostHocEMA, {"final": "raw"}, "candidates: null", {"candidates": None}),
    (CheckpointSoup, {"mode": "max"}, "method: greedy", {"method": "greedy"}),
    (SnapshotEnsemble, {"cycles": 3}, "checkpoints: null", {"checkpoints": None}),
    (SnapshotEnsemble, {"members": 3}, "checkpoints: null", {"checkpoints": None}),
    (SnapshotEnsemble, {"sets_lr": False}, "checkpoints: null", {"checkpoints": None}),
]
BESIDE = {
    EarlyStop: {"monitor": "loss"},
    WeightEMA: {"sigma_rel": 0.1},
    CheckpointSoup: {"method": "uniform"},
    SnapshotEnsemble: {"checkpoints": ["a.ckpt"]},
}


@pytest.mark.parametrize(("callback", "given", "condition", "mend"), IDLE)
def test_what_does_nothing_is_refused(callback, given, condition, mend):
    beside = {"candidates": [0.1]} if condition == "candidates: null" else BESIDE.get(callback, {})
    (name,) = given
    with pytest.raises(InvalidValueError) as caught:
        callback(**{**beside, **given})
    assert str(caught.value) == (
        f"{name} is {given[name]!r}, which has no effect without {condition}. Write that too, or leave {name} out."
    )
    default = inspect.signature(callback).parameters[name].default
    callback(**{**beside, name: default})
    made = callback(**{**beside, **mend, **given})
    assert getattr(made, name, given[name]) == given[name]
