"""AutoClip against numpy's percentiles."""

import copy
import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning.callbacks import AutoClip
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import NormHistory
from tests.mixins.tiny import Tiny, batches, fit, loader, smooth
from tests.numerics import array

from .reference import Recorder, train


@pytest.mark.parametrize("percentile", [0, 10, 33.3, 50, 95, 100])
@pytest.mark.parametrize("window", [None, 1, 7])
def test_percentile_of_the_history_and_one_more(percentile, window):
    values = np.random.default_rng(0).lognormal(size=40).round(1)  # rounded: with ties
    history = NormHistory(window)
    for i, value in enumerate(values):
        seen = values[: i + 1] if window is None else values[max(0, i - window) : i + 1]
        threshold = history.percentile_with(torch.tensor(value, dtype=torch.float64), percentile)
        assert threshold.item() == pytest.approx(np.percentile(seen, percentile), rel=1e-12)
        history.add(value)
    assert len(history) == (40 if window is None else window)


def test_the_state_is_in_order_of_time_and_not_finite_norms_stay_out():
    history = NormHistory(3)
    for norm in (5.0, math.inf, 1.0, 4.0, math.nan, 2.0):
        history.add(norm)
    assert history.state().tolist() == [1.0, 4.0, 2.0]
    other = NormHistory(2)
    other.load(history.state())
    assert other.state().tolist() == [4.0, 2.0]
    assert other.percentile_with(torch.tensor(9.0), 50).item() == 4.0


class Editing:
    """AutoClip's rule in numpy."""

    def __init__(self, percentile, history=None, min_history=0):
        self.percentile, self.history, self.min_history = percentile, history, min_history
        self.norms, self.thresholds = [], []

    def __call__(self, gradients, weights):
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        self.norms.append(norm)
        seen = self.norms if self.history is None else self.norms[-self.history :]
        if len(seen) <= self.min_history:
            return gradients
        self.thresholds.append(np.percentile(seen, self.percentile))
        return {n: g * min(1.0, self.thresholds[-1] / norm) for n, g in gradients.items()}


@pytest.mark.parametrize(
    "arguments", [{"percentile": 10}, {"percentile": 60, "history": 4}, {"percentile": 0, "min_history": 3}]
)
def test_a_run_is_the_reference_loop(arguments):
    network, data = smooth().double(), batches(9, dtype=torch.float64)
    net, logger, editing = Tiny(copy.deepcopy(network)), Recorder(), Editing(**arguments)
    settings = {"precision": "64-true", "logger": logger, "log_every_n_steps": 1}
    fit(net, data, callbacks=[AutoClip(**arguments)], **settings)
    train(network, data, editing)
    for a, b in zip(net.network.parameters(), network.parameters(), strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-9, atol=1e-12)
    assert logger.values("train/auto_clip_norm") == pytest.approx(editing.norms, rel=1e-9)
    assert logger.values("train/auto_clip") == pytest.approx(editing.thresholds, rel=1e-9)
    norms = editing.norms[-len(editing.thresholds) :]
    assert any(threshold < 0.9 * norm for threshold, norm in zip(editing.thresholds, norms, strict=True))


def test_at_100_it_never_clips():
    nets = [Tiny(smooth()), Tiny()]
    nets[1].network = copy.deepcopy(nets[0].network)
    fit(nets[0], batches(6), callbacks=[AutoClip(percentile=100)])
    fit(nets[1], batches(6))
    assert all(torch.equal(a, b) for a, b in zip(*[net.parameters() for net in nets], strict=True))


class Breaking(pl.Callback):
    """Makes the gradient of batch 2 infinite, and, placed behind AutoClip, sees it and clears it."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.fit_loop.epoch_loop.batch_idx == 2:
            pl_module.network[0].weight.grad[0, 0] = math.inf


class Mending(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.fit_loop.epoch_loop.batch_idx == 2:
            gradient = pl_module.network[0].weight.grad
            self.infinite = gradient.isinf().sum().item()
            self.nans = gradient.isnan().sum().item()
            optimizer.zero_grad()


def test_a_gradient_that_is_not_finite_is_left_alone_and_stays_out_of_the_history():
    clip, mending = AutoClip(), Mending()
    fit(Tiny(smooth()), batches(5), callbacks=[clip, Breaking(), mending])
    assert (mending.infinite, mending.nans) == (1, 0)
    (norms,) = clip.state_dict()["norms"]
    assert len(norms) == 4
    assert norms.isfinite().all()


class SkippingNet(Tiny):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_batch_that_training_step_skips_has_no_norm(precision):
    clip = AutoClip()
    fit(SkippingNet(smooth()), batches(6), callbacks=[clip], precision=precision)
    norms = clip.state_dict()["norms"][0]
    assert 0 < len(norms) <= 5
    assert (norms > 0).all()


def test_a_later_fit_of_another_trainer_begins_anew():
    clip = AutoClip()
    for expected in (4, 4):
        fit(Tiny(smooth()), batches(4), callbacks=[clip])
        assert len(clip.state_dict()["norms"][0]) == expected


def test_a_later_fit_of_the_same_trainer_goes_on():
    clip, net = AutoClip(), Tiny(smooth())
    trainer = fit(net, batches(4), callbacks=[clip])
    trainer.fit_loop.max_epochs = 2
    trainer.fit(net, loader(batches(4)))
    assert len(clip.state_dict()["norms"][0]) == 8


def test_together_with_the_trainers_clipping_it_is_refused():
    with pytest.raises(MisconfigurationException, match=r"gradient_clip_val=0.5 as well. Remove gradient_clip_val"):
        fit(Tiny(smooth()), batches(1), callbacks=[AutoClip()], gradient_clip_val=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"percentile": 101}, r"percentile is 101; it must be a number in \[0, 100\]"),
        ({"history": 1}, "history is 1; it must be an integer of at least 2, or None for all steps"),
        ({"history": 2.5}, "history is 2.5"),
        ({"min_history": -1}, "min_history is -1; it must be an integer of at least 0."),
        (
            {"history": 5, "min_history": 5},
            "min_history is 5; it must be an integer of at least 0 and below history, 5",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        AutoClip(**arguments)
