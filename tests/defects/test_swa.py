"""What Lightning's StochasticWeightAveraging does otherwise than one expects, and WeightSWA does not."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lightning_tuning import WeightSWA

from ..callbacks.test_weight_swa import STEPS, assert_is_mean, fit, state

EPOCHS = 4


def stock():
    return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.5, annealing_epochs=1)


def test_stock_drops_a_schedule_that_steps_within_the_epoch(tmp_path):
    with pytest.warns(UserWarning, match="SWA is currently only supported every epoch"):
        _, _, made = fit(stock(), tmp_path)
    assert made.lr_scheduler_configs[0].interval == "epoch"
    assert type(made.lr_scheduler_configs[0].scheduler).__name__ == "SWALR"
    net, _, made = fit(WeightSWA(start="0.5dur"), tmp_path)
    assert made.lr_scheduler_configs[0].interval == "step"
    assert net.rates[-1] == pytest.approx([0.1 / 16, 0.4 / 16, 0.4 / 16])


@pytest.mark.filterwarnings("ignore:SWA is currently")
def test_stock_adds_an_epoch_where_there_is_batch_norm(tmp_path):
    net, _, made = fit(stock(), tmp_path)
    assert len(net.rates) == (EPOCHS + 1) * STEPS
    assert made.current_epoch == EPOCHS + 1
    net, _, made = fit(WeightSWA(start="0.5dur"), tmp_path)
    assert len(net.rates) == EPOCHS * STEPS
    assert made.current_epoch == EPOCHS


@pytest.mark.filterwarnings("ignore:SWA is currently")
def test_stock_validates_weights_that_it_does_not_deliver(tmp_path):
    net, raw, _ = fit(stock(), tmp_path)
    for epoch in range(EPOCHS):  # each with the weights that are trained
        assert torch.equal(net.validated[epoch]["last.weight"], raw[(epoch + 1) * STEPS - 1]["last.weight"])
    net, raw, _ = fit(WeightSWA(start="0.5dur"), tmp_path)
    assert_is_mean(net.validated[-1], raw[2 * STEPS - 1 :: STEPS])
    assert all(torch.equal(value, net.validated[-1][name]) for name, value in state(net).items())
