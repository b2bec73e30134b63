"""What a split step logs: one value a batch, that of the whole batch, and nothing of a failed try."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from lightning_tuning import ConfidencePenaltyMixin, compose
from lightning_tuning.callbacks import MicroBatch

from .small_memory import Net, data, fit, no_collection  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:Step .*MicroBatch")


WITHOUT = 99
"""Samples that fit where the run is made without the callback."""


class Logs(Net):
    """Logs in all ways, in its step."""

    def __init__(self, **memory):
        super().__init__(**memory)
        self.mean, self.sum = MeanMetric(), SumMetric()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = super().training_step(batch, batch_idx)
        both = {"on_step": True, "on_epoch": True}
        self.log("loss", loss, **both)
        self.log("epoch_alone", loss)
        self.log("number", 3.0, **both)
        some = y[:, 0] > 0
        self.log("some", y[some, 0].mean() if some.any() else torch.tensor(0.0), batch_size=int(some.sum()), **both)
        self.log("sum", x.sum(), reduce_fx="sum", **both)
        self.log("max", x.max(), reduce_fx=max, **both)
        self.log("min", x.min(), reduce_fx=torch.min, **both)
        self.mean(x.mean(1))
        self.log("metric", self.mean, **both)
        self.sum.update(x)
        self.log("summed", self.sum, on_step=False, on_epoch=True)
        self.logged = self.step = x.sum() * 0 + batch_idx
        self.log("kept", self.logged, on_step=True)
        self.logged += 100  # a log has the value of its moment
        return loss


def rows(net, tmp_path, **kwargs):
    logger = CSVLogger(tmp_path, version=net.memory.limit)
    callbacks = [] if net.memory.limit == WITHOUT else [MicroBatch()]
    loader = data(21, 7)  # in four parts of 2, 2, 2 and 1
    made = fit(net, tmp_path, *callbacks, loader=loader, logger=logger, log_every_n_steps=1, max_epochs=2, **kwargs)
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        found = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    found = [row for row in found if "train/micro_batch" not in row]
    return found, {name: float(value) for name, value in made.callback_metrics.items()}


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_every_value_is_that_of_the_whole_batch(where, tmp_path):
    limits = (WITHOUT, 7, 3)
    nets = [Logs(limit=limit, where=where).double() for limit in limits]
    whole, held, parts = (rows(net, tmp_path, precision="64-true") for net in nets)
    assert held == whole  # bitwise, where nothing is split
    assert len(parts[0]) == len(whole[0])
    for a, b in zip((*whole[0], whole[1]), (*parts[0], parts[1]), strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    assert whole[1].keys() >= {"loss_step", "loss_epoch", "some_epoch", "sum_epoch", "metric_step", "summed", "kept"}


class Terms(Net):
    """Records terms with and without a count."""

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits - target).square().mean()

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.log_term("mean", x.mean())
        confident = x[:, 0] > 0.5
        value = x[confident, 1].mean() if confident.any() else torch.tensor(0.0)
        self.log_term("counted", value, count=confident.sum())
        return self.compute_loss(self(x), y)


TermNet = compose(Terms, ConfidencePenaltyMixin, name="TermNet")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_terms_are_recorded_once_a_batch(where, tmp_path):
    nets = [TermNet(confidence_penalty_weight=0.1, limit=limit, where=where).double() for limit in (WITHOUT, 2)]
    whole, parts = (rows(net, tmp_path, precision="64-true") for net in nets)
    assert {"train/mean", "train/counted", "train/confidence_penalty"} <= whole[0][0].keys()
    assert len(parts[0]) == len(whole[0])
    for a, b in zip((*whole[0], whole[1]), (*parts[0], parts[1]), strict=True):
        assert b == pytest.approx(a, rel=1e-5, nan_ok=True)


def test_the_logs_work_again_behind_a_try_that_raised(tmp_path):
    class Breaks(Logs):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise ValueError("mine")

    net = Breaks()
    with pytest.raises(ValueError, match="mine"):
        fit(net, tmp_path, MicroBatch(), loader=data(dtype=torch.float32))
    assert "log" not in vars(net.trainer.fit_loop.epoch_loop._results)
