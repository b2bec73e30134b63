"""The mean, its statistics and the learning rates, against what a run's own weights give by hand."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import FiniteGuard, WeightSWA
from lightning_tuning.errors import InvalidValueError, NoEffectError

from ..contract.nets import InTurns, trainer
from ..contract.test_all_callbacks import KeptPlace

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X.sum(1) > 0).long()
STEPS = 4


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.rates, self.validated = [], []

    def forward(self, x):
        return self.last(self.norm(self.first(x)))

    def training_step(self, batch, batch_idx):
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.validated.append(state(self))
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        groups = [{"params": self.first.parameters(), "lr": 0.1}, {"params": [*self.norm.parameters()]}]
        optimizer = torch.optim.SGD([*groups, {"params": self.last.parameters()}], lr=0.4, momentum=0.9)
        schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


class Keep(pl.Callback):
    """The weights that are trained, after each step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.states.append(state(pl_module))


def fit(callback, tmp_path, *others, epochs=4, net=None, ckpt_path=None, **kwargs):
    net, keep = (net or Net()).double(), Keep()
    callbacks = [c for c in (callback, keep, *others) if c]
    made = trainer(tmp_path, callbacks=callbacks, precision="64-true", max_epochs=epochs, **kwargs)
    dataset = TensorDataset(X, Y)
    train = KeptPlace(dataset, 5, sampler=InTurns(20), generator=torch.Generator())
    made.fit(net, train, DataLoader(dataset, 20), ckpt_path=ckpt_path)
    return net, keep.states, made


def mean_of(states, name):
    return np.mean([s[name].numpy() for s in states], axis=0)


def assert_is_mean(found, states):
    """The weights are the mean of ``states``, batch norm's statistics those of the data under it."""
    for name in ("first.weight", "first.bias", "norm.weight", "last.weight"):
        np.testing.assert_allclose(found[name], mean_of(states, name), rtol=1e-12, err_msg=name)
    hidden = X.numpy() @ mean_of(states, "first.weight").T + mean_of(states, "first.bias")
    np.testing.assert_allclose(found["norm.running_mean"], hidden.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found["norm.running_var"], hidden.var(0, ddof=1), rtol=1e-9)


def test_each_validation_and_the_end_have_the_mean_of_the_epochs_ends(tmp_path):
    net, raw, _ = fit(WeightSWA(start="0.5dur"), tmp_path)
    ends = raw[STEPS - 1 :: STEPS]
    assert_is_mean(net.validated[2], ends[1:3])
    assert_is_mean(net.validated[3], ends[1:])
    assert_is_mean(state(net), ends[1:])
    for name in net.validated[0]:  # before it begins: the weights
        assert torch.equal(net.validated[0][name], ends[0][name])


@pytest.mark.parametrize(
    ("start", "every", "taken"),
    [
        ("0.75dur", "1st", [12, 13, 14, 15, 16]),
        ("5st", "3st", [6, 9, 12, 15]),
        ("10%", "0.5ep", [2, 4, 6, 8, 10, 12, 14, 16]),
        ("0st", "5st", [5, 10, 15]),
        ("2.5ep", "1ep", [12, 16]),
        ("8st", "2.5st", [8, 10, 13, 15]),
    ],
)
def test_when_weights_are_taken(start, every, taken, tmp_path):
    net, raw, _ = fit(WeightSWA(start=start, every=every), tmp_path)
    assert_is_mean(state(net), [raw[step - 1] for step in taken])


@pytest.mark.parametrize("bad", [(1,), (1, 11)], ids=["early", "at an epoch's end"])
def test_skipped_steps_do_not_move_the_ends_of_epochs(bad, tmp_path):
    """An end whose step was skipped is taken after the next one."""

    class Bad(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (torch.nan if self.trainer.global_step in bad else 1)

    net, raw, _ = fit(WeightSWA(start="0.5dur"), tmp_path, FiniteGuard(), net=Bad())
    assert_is_mean(state(net), [raw[7], raw[12] if 11 in bad else raw[11], raw[15]])


def test_training_and_its_schedule_are_as_without_it(tmp_path):
    bare, raw, plain = fit(None, tmp_path)
    net, raw_with, averaged = fit(WeightSWA(start="0.25dur"), tmp_path)
    assert net.rates == bare.rates
    assert averaged.global_step == plain.global_step == 16
    assert averaged.current_epoch == plain.current_epoch == 4
    for a, b in zip(raw, raw_with, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a if "running" not in name)


def test_its_own_rate_is_annealed_from_the_schedules(tmp_path):
    net, _, _ = fit(WeightSWA(start="8st", lr=0.2, anneal="4st"), tmp_path)
    np.testing.assert_allclose(net.rates[:8], [[0.1 / (1 + s), 0.4 / (1 + s), 0.4 / (1 + s)] for s in range(8)])
    begin = np.array([0.1, 0.4, 0.4]) / 9
    for passed, rates in enumerate(net.rates[8:]):
        share = (1 - np.cos(np.pi * min(passed, 4) / 4)) / 2
        np.testing.assert_allclose(rates, begin + share * (np.array([0.05, 0.2, 0.2]) - begin), rtol=1e-12)
    at_once, _, _ = fit(WeightSWA(start="8st", lr=0.2, anneal="0st"), tmp_path)
    np.testing.assert_allclose(at_once.rates[8:], [[0.05, 0.2, 0.2]] * 8)


@pytest.mark.parametrize("saved_at", [6, 10, 12])
def test_a_resumed_run_is_the_straight_one(saved_at, tmp_path):
    def swa():
        return WeightSWA(start="8st", every="2st", lr=0.2, anneal="5st")

    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=saved_at, save_top_k=-1)
    straight, _, _ = fit(swa(), tmp_path, keep, enable_checkpointing=True)
    resumed = Net()
    fit(swa(), tmp_path, net=resumed, ckpt_path=tmp_path / f"step={saved_at}.ckpt")
    assert resumed.rates == straight.rates[saved_at:]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_checkpoints_hold_what_was_validated_and_the_epochs_end_too(tmp_path):
    best = ModelCheckpoint(tmp_path, "best-{epoch}", save_top_k=-1, monitor="val/loss", save_on_train_epoch_end=False)
    last = ModelCheckpoint(tmp_path, "last-{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    net, raw, _ = fit(
        WeightSWA(start="1ep"), tmp_path, best, last, enable_checkpointing=True, check_val_every_n_epoch=2
    )
    ends = raw[STEPS - 1 :: STEPS]
    for epoch in (1, 3):
        saved = torch.load(tmp_path / f"best-epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(saved[name], value) for name, value in net.validated[epoch // 2].items())
    for epoch in (1, 2, 3):
        saved = torch.load(tmp_path / f"last-epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert_is_mean(saved, ends[: epoch + 1])


def test_the_raw_weights_if_wanted(tmp_path):
    net, raw, _ = fit(WeightSWA(start="0.5dur", final="raw"), tmp_path)
    assert torch.equal(net.last.weight, raw[-1]["last.weight"])


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match="lr is 0"):
        WeightSWA(lr=0)
    with pytest.raises(InvalidValueError, match="every is '5'; write a number and its unit"):
        WeightSWA(every="5")
    with pytest.raises(InvalidValueError, match="buffers is 'recalculate'"):
        WeightSWA(buffers="recalculate")
    with pytest.raises(NoEffectError, match=r"takes the weights 1 times in this run of 16 optimizer steps"):
        fit(WeightSWA(start="0.9dur"), tmp_path)
    with pytest.raises(NoEffectError, match="0 times in this run of 4"):
        fit(WeightSWA(start="0.9dur", every="2ep"), tmp_path, epochs=1)
