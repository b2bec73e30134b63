"""WeightEMA against averages written out in numpy, and what is special to it."""

from __future__ import annotations

import math
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning import SAMMixin, compose
from lightning_tuning.callbacks import WeightEMA
from lightning_tuning.errors import InvalidValueError
from tests.contract.nets import Host, loaders, trainer
from tests.contract.test_contract import Overflow
from tests.numerics import array

from .averages import DATA, Record, fit, make

SharpHost = compose(Host, SAMMixin, name="SharpHost")
TRAINED = [name for name, _ in Host().named_parameters()]
STATISTICS = [name for name, _ in Host().named_buffers() if "running" in name]


def gamma(sigma_rel):
    """By bisection."""
    low, high = 0.0, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if wide else (low, middle)
    return low


DECAYS = {
    "warm-up": ({"decay": 0.8}, lambda t: min(1 - 1 / (t + 1), 0.8)),
    "constant": ({"decay": 0.7, "warmup_power": None}, lambda t: 0.7),
    "slow warm-up": ({"decay": 0.7, "warmup_power": 0.5}, lambda t: min(1 - 1 / math.sqrt(1 + t), 0.7)),
    "half-life": ({"half_life": "3st", "warmup_power": None}, lambda t: 0.5 ** (1 / 3)),
    "half-life in epochs": ({"half_life": "0.5ep", "warmup_power": None}, lambda t: 0.5 ** (1 / 2)),
    "power function": ({"sigma_rel": 0.15}, lambda t: (1 - 1 / t) ** (gamma(0.15) + 1)),
    "copy": ({"decay": 0.0}, lambda t: 0.0),
}


def expected(states, decay, start=0, every=1, names=(*TRAINED, *STATISTICS)):
    average = {name: states[start][name] for name in names}
    for update, seen in enumerate(states[start + every :: every], 1):
        share = decay(update)
        average = {name: share * average[name] + (1 - share) * seen[name] for name in names}
    return average


def assert_state(net, wanted, atol=1e-6):
    for name, value in wanted.items():
        np.testing.assert_allclose(array(net.state_dict()[name]), value, atol=atol, err_msg=name)


@pytest.mark.parametrize("which", DECAYS)
def test_the_average(which, tmp_path):
    arguments, decay = DECAYS[which]
    net, record = make(), Record()
    fit(net, [WeightEMA(**arguments), record], tmp_path)
    assert len(record.states) == 13
    assert_state(net, expected(record.states, decay))


@pytest.mark.parametrize("start", ["5st", "1.25ep", f"{5 / 12}dur", "40smp"])
def test_it_begins_with_the_weights_at_its_start(start, tmp_path):
    net, record = make(), Record()
    fit(net, [WeightEMA(decay=0.6, start=start), record], tmp_path)
    assert_state(net, expected(record.states, lambda t: min(1 - 1 / (t + 1), 0.6), start=5))


def test_every_n_steps_the_decay_is_that_of_n_steps(tmp_path):
    net, record = make(), Record()
    fit(net, [WeightEMA(decay=0.9, warmup_power=None, every_n_steps=3, start="1st"), record], tmp_path)
    assert_state(net, expected(record.states, lambda t: 0.9**3, start=1, every=3))


def test_an_accumulation_window_is_one_step(tmp_path):
    net, record = make(), Record()
    window = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
    fit(net, [WeightEMA(decay=0.9, start="1ep"), record, window], tmp_path)
    assert len(record.states) == 1 + 4 + 2 + 1
    assert_state(net, expected(record.states, lambda t: min(1 - 1 / (t + 1), 0.9), start=4))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none(fused, tmp_path):
    net, record, ema = make(), Record(), WeightEMA(decay=0.5, warmup_power=None)
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.05, fused=fused)
    fit(net, [ema, Overflow(step=2), record], tmp_path, precision="16-mixed", max_epochs=1)
    assert ema._updates == 3
    seen = [s for s, previous in zip(record.states[1:], record.states, strict=False) if not same(s, previous)]
    assert len(seen) == 3  # global_step counts the skipped one
    assert_state(net, expected([record.states[0], *seen], lambda t: 0.5, names=TRAINED))


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in TRAINED)


def test_under_sam_it_averages_the_stepped_weights(tmp_path):
    net, record = make(SharpHost, sam_rho=0.5), Record()
    fit(net, [WeightEMA(decay=0.8), record], tmp_path)
    assert_state(net, expected(record.states, lambda t: min(1 - 1 / (t + 1), 0.8)))


class Alternating(Host):
    """Two optimizers that step by hand in each batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.net[:3], self.net[3:])]


def test_a_batch_in_which_two_optimizers_step_is_one_step(tmp_path):
    net, record, ema = make(Alternating), Record(), WeightEMA(decay=0.8, start="1ep")
    fit(net, [ema, record], tmp_path)
    assert ema._updates == 8
    assert_state(net, expected(record.states, lambda t: min(1 - 1 / (t + 1), 0.8), start=4))


def test_with_a_decay_of_zero_it_is_the_bare_run(tmp_path):
    nets = [make(), make()]
    for net, callbacks in zip(nets, [[], [WeightEMA(decay=0.0)]], strict=True):
        fit(net, callbacks, tmp_path)
    for name, value in nets[0].state_dict().items():
        assert torch.equal(nets[1].state_dict()[name], value), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.5}, "decay is 1.5; it must be a number in"),
        ({"half_life": "3"}, "half_life is '3'; write a number and its unit"),
        ({"half_life": "0st"}, "half_life is '0st'; write a number above 0"),
        ({"start": "soon"}, "start is 'soon'"),
        ({"sigma_rel": 0.3}, "sigma_rel is 0.3; it must be a number in"),
        ({"warmup_power": 0}, "warmup_power is 0"),
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"buffers": "mean"}, "buffers is 'mean'"),
        ({"final": "best"}, "final is 'best'"),
        ({"decay": None}, "takes one of decay, half_life and sigma_rel, but came with none"),
        ({"decay": 0.9, "half_life": "3st"}, "came with decay=0.9 and half_life='3st'"),
        ({"half_life": "3st", "sigma_rel": 0.1}, "came with half_life='3st' and sigma_rel=0.1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        WeightEMA(**arguments)


def test_a_duration_that_nobody_knows_is_refused_before_the_first_step(tmp_path):
    net = make()
    made = trainer(tmp_path, callbacks=[WeightEMA(half_life="0.1dur")], max_epochs=-1)
    with pytest.raises(MisconfigurationException, match="needs the run's length"):
        made.fit(net, loaders(DATA, 8))
    assert made.global_step == 0


def test_it_is_in_the_plan_and_changes_what_is_evaluated():
    assert WeightEMA.changes == ("evaluation",)
    assert isinstance(WeightEMA(), pl.Callback)


@pytest.mark.parametrize(
    ("arguments", "delivered"),
    [({"start": "4ep"}, "the weights, and no average"), ({"every_n_steps": 13}, "the weights of step 0")],
)
def test_an_average_that_never_moves_is_told(arguments, delivered, tmp_path):
    with pytest.warns(UserWarning, match=f"never moves in this run of 12 optimizer steps.* delivered are {delivered}"):
        fit(make(), [WeightEMA(**arguments)], tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "WeightEMA never moves")
        fit(make(), [WeightEMA(start="2ep", every_n_steps=4)], tmp_path)
