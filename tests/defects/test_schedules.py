"""What stock schedules get wrong in Lightning, and ours right: a red test tells that Lightning has mended it."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from lightning_tuning import Schedule
from tests.callbacks.test_schedule import Infinite, Seen, Windows
from tests.contract.nets import Host, InTurns, loaders, trainer
from tests.contract.settings import Setting
from tests.contract.test_all_callbacks import KeptPlace

LR = 0.05


def data():
    dataset = loaders(Setting({}), 8).dataset
    return [kind(dataset, 8, sampler=InTurns(32)) for kind in (KeptPlace, DataLoader)]


def fit(tmp_path, *callbacks, net=None, ckpt_path=None, **kwargs):
    seen = Seen()
    torch.manual_seed(0)
    made = trainer(tmp_path, callbacks=[*callbacks, seen], **kwargs)
    made.fit(net or Host(plain=True), *data(), ckpt_path=ckpt_path)
    return seen.values


class Line(Host):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": LinearLR(optimizer, 1.0, 0.0, 8), "interval": "step"}]


class Estimated(Host):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Flat(Host):
    """Its validation loss never improves."""

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(1.0))


class FlatPlateau(Flat):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return [optimizer], [{"scheduler": scheduler, "monitor": "val/loss"}]


def test_a_step_that_the_scaler_skips_advances_a_scheduler(tmp_path):
    settings = {"precision": "16-mixed", "max_epochs": 2}
    line = [LR * (1 - step / 8) for step in range(8)]
    stock = fit(tmp_path, Infinite(2), net=Line(plain=True), **settings)
    assert stock == pytest.approx(line)  # the third value is lost with the step
    ours = fit(tmp_path, Infinite(2), Schedule(shape="linear"), **settings)
    assert ours[3] == pytest.approx(LR * (1 - 2 / 7))  # the third step that counts


def test_estimated_stepping_batches_does_not_know_the_accumulation_to_come(tmp_path):
    settings = {"max_epochs": 4}
    stock = fit(tmp_path, GradientAccumulationScheduler({0: 1, 1: 4}), net=Estimated(plain=True), **settings)
    assert len(stock) == 4 + 3
    assert stock[-1] > 0.4 * LR  # far from its end
    ours = fit(tmp_path, GradientAccumulationScheduler({0: 1, 1: 4}), Schedule(), **settings)
    assert len(ours) == 4 + 3
    assert ours[-1] < 0.06 * LR


def test_a_run_resumed_within_an_epoch_accumulates_as_at_the_start(tmp_path):
    """``GradientAccumulationScheduler`` acts at an epoch's start, which a run resumed later in the epoch has passed."""
    save = ModelCheckpoint(tmp_path, "within", every_n_train_steps=5)
    windows, path = Windows(), tmp_path / "within.ckpt"
    fit(tmp_path, GradientAccumulationScheduler({1: 2}), save, max_epochs=2, enable_checkpointing=None)
    fit(tmp_path, GradientAccumulationScheduler({1: 2}), windows, max_epochs=2, ckpt_path=path)
    assert windows.sizes == [1, 1]
    ours = Windows()
    fit(tmp_path, Schedule("accumulation", "multi_step(1ep, gamma=2)", value=1), ours, max_epochs=2, ckpt_path=path)
    assert ours.sizes == [2]


def test_reduce_on_plateau_loses_its_update_on_resume(tmp_path):
    """The scheduler steps after the epoch's checkpoint has been written, and not again in the resumed run."""
    save = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    made = {"max_epochs": 4, "num_sanity_val_steps": 0}
    straight = fit(tmp_path, save, net=FlatPlateau(plain=True), enable_checkpointing=None, **made)
    resumed = fit(tmp_path, net=FlatPlateau(plain=True), ckpt_path=tmp_path / "epoch=1.ckpt", **made)
    assert resumed != straight[-len(resumed) :]
    shape, ours = "plateau(val/loss, patience=0, gamma=0.5)", tmp_path / "ours"
    save = ModelCheckpoint(ours, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    net = Flat(plain=True)
    straight = fit(tmp_path, Schedule(shape=shape), save, net=net, enable_checkpointing=None, **made)
    assert straight == [LR] * 8 + [LR / 2] * 4 + [LR / 4] * 4
    again = fit(tmp_path, Schedule(shape=shape), net=Flat(plain=True), ckpt_path=ours / "epoch=1.ckpt", **made)
    assert again == straight[8:]
