"""What a schedule may change is read at each step, and nothing breaks where it passes the off-value."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from lightning_tuning import ExactResume
from lightning_tuning.mixins.composition import own_arguments

from .nets import NETS, assert_equal_state, loaders, trainer
from .settings import SETTINGS

SAID = {technique.stem: technique for technique in SETTINGS}
"""The techniques by their rows in the table."""
WITH = {
    "adversarial_weight": {"adversarial_target": "consistency", "adversarial_random_start": True},
    "cutout_probability": {"cutout_probability": 0.9},
    "dropout_gamma": {"dropout_schedule": "curriculum"},
    "dropout_early_share": {"dropout_schedule": "early", "dropout_early_share": 0.9},
    "mart_step_size": {"mart_step_size": 0.2},
    "mean_teacher_threshold": {"mean_teacher_threshold": 0.4},
    "pseudo_label_threshold": {"pseudo_label_threshold": 0.9},
    "ema_teacher_half_life": {"ema_teacher_decay": None, "ema_teacher_half_life": 3.0},
    "ema_teacher_decay": {"ema_teacher_warmup": False},
}
"""What an argument needs beside the row's setting to be felt within a few steps."""
TO = {"fixmatch_threshold": 0.34, "flexmatch_threshold": 0.6, "vat_epsilon": 20.0, "max_norm_bound": 0.2}


def floating(technique):
    return [n for n, p in own_arguments(technique).items() if p.annotation in ("float", "float | None")]


ARGUMENTS = [
    (row, name) for row, technique in SAID.items() for name in floating(technique) if name not in technique.fixed
]


def net_of(row, **changes):
    torch.manual_seed(0)
    return NETS[row](**{**SETTINGS[SAID[row]].on, **changes})


def fit(net, row, tmp_path, *callbacks, **kwargs):
    made = trainer(tmp_path, callbacks=[ExactResume(seed=3), *callbacks], **kwargs)
    made.fit(net, loaders(SETTINGS[SAID[row]], 8))
    return dict(net.state_dict())


class Assign(pl.Callback):
    def __init__(self, name, value):
        self.name, self.value = name, value

    def on_train_start(self, trainer, pl_module):
        setattr(pl_module, self.name, self.value)


@pytest.mark.parametrize(("row", "name"), ARGUMENTS, ids=lambda value: value)
def test_a_value_assigned_before_the_first_step_is_that_of_the_constructor(row, name, tmp_path):
    extra = WITH.get(name, {})
    first = net_of(row, **extra)
    value = first.adjustable().get(name)
    if value is None:  # off, or taken from something else: a schedule refuses it
        assert getattr(first, name) is None
        return
    other = TO.get(name, value / 2 if value else 0.3)
    first.check_adjusted(name, other)
    plain, changed = fit(first, row, tmp_path), fit(net_of(row, **extra), row, tmp_path, Assign(name, other))
    given = fit(net_of(row, **{**extra, name: other}), row, tmp_path)
    assert_equal_state(changed, given)
    assert any(not torch.equal(value, changed[key]) for key, value in plain.items()), "it has no effect here"


class Rest(pl.Callback):
    """Switches a technique off for the second and third step."""

    def __init__(self, name):
        self.name = name

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        setattr(pl_module, self.name, pl_module.adjustable_before if batch_idx not in (1, 2) else 0.0)

    def on_train_start(self, trainer, pl_module):
        pl_module.adjustable_before = getattr(pl_module, self.name)


STRENGTHS = [
    (row, name)
    for row, technique in SAID.items()
    for name, off in technique.off.items()
    if isinstance(off, float) and name not in technique.fixed
]


@pytest.mark.parametrize(("row", "name"), STRENGTHS, ids=lambda value: value)
def test_a_technique_may_rest(row, name, tmp_path):
    plain, rested = (fit(net_of(row), row, tmp_path, *callbacks) for callbacks in ([], [Rest(name)]))
    assert all(torch.isfinite(value).all() for value in rested.values())
    assert any(not torch.equal(value, rested[key]) for key, value in plain.items())


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("remixmatch", "remixmatch_weight"),
        ("remixmatch", "remixmatch_rotation_weight"),
        ("feature_distillation", "feature_distillation_weight"),
    ],
)
def test_techniques_with_parameters_of_their_own_may_rest_on_two_ranks(row, name, tmp_path):
    """DDP waits for the gradient of each parameter."""
    net = net_of(row)
    fit(net, row, tmp_path, Rest(name), strategy="ddp_fork", devices=2, max_epochs=2)
    before = dict(net_of(row).state_dict())
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items() if key in before)
