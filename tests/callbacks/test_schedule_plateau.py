"""Schedule's plateau shape: drops where torch's scheduler drops, whenever the metric is logged, and after a resume."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_tuning import ExactResume, MonitorCheck, Schedule
from tests.contract.nets import InTurns, loaders, trainer
from tests.contract.settings import Setting
from tests.contract.test_all_callbacks import KeptPlace

from .test_schedule import LR, Seen

LOSSES = [3.0, 2.0, 2.5, 2.1, 2.2, 1.0, 1.5, 1.6, 1.7, 1.8]


class Noted(pl.LightningModule):
    """Logs a given metric, in validation or in training."""

    def __init__(self, losses=LOSSES, where="val"):
        super().__init__()
        self.layer = torch.nn.Linear(50, 3)
        self.losses, self.where = losses, where

    def training_step(self, batch, batch_idx):
        if self.where == "train":
            self.log("loss", self._loss(), on_step=False, on_epoch=True)
        return self.layer(batch[0].flatten(1)).mean()

    def _loss(self):
        loss = self.losses[self.current_epoch]
        return torch.tensor(10.0 if self.global_rank else loss)

    def validation_step(self, batch, batch_idx):
        if self.where == "val":
            self.log("loss", self._loss())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


def data():
    dataset = loaders(Setting({}), 16).dataset
    return [kind(dataset, 16, sampler=InTurns(32)) for kind in (KeptPlace, torch.utils.data.DataLoader)]


def fit(tmp_path, schedule, *callbacks, net=None, ckpt_path=None, **kwargs):
    seen = Seen()
    settings = {"max_epochs": len(LOSSES), "num_sanity_val_steps": 0, **kwargs}
    made = trainer(tmp_path, callbacks=[ExactResume(seed=1), schedule, *callbacks, seen], **settings)
    made.fit(net or Noted(), *data(), ckpt_path=ckpt_path)
    return seen.values, made


def plateau(**settings):
    text = "".join(f", {name}={value}" for name, value in settings.items())
    return Schedule(shape=f"plateau(loss, patience=1, gamma=0.5{text})")


def torchs(losses, **settings):
    """The learning rate of each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    scheduler, rates = ReduceLROnPlateau(optimizer, patience=1, factor=0.5, **settings), []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    return rates


@pytest.mark.parametrize("where", ["val", "train"])
@pytest.mark.parametrize("settings", [{}, {"cooldown": 1}, {"mode": "max"}])
def test_each_epoch_has_the_rate_of_torchs_scheduler(where, settings, tmp_path):
    seen, _ = fit(tmp_path, plateau(**settings), net=Noted(where=where))
    expected = torchs(LOSSES, **settings)
    assert seen == [rate for rate in expected for _ in range(2)]
    assert len(set(expected)) > 2


def test_it_looks_after_each_validation(tmp_path):
    seen, _ = fit(tmp_path, plateau(), check_val_every_n_epoch=2)
    assert seen == [rate for rate in torchs(LOSSES[1::2]) for _ in range(4)]
    seen, _ = fit(tmp_path, plateau(), val_check_interval=1)
    expected = torchs([loss for loss in LOSSES for _ in range(2)])
    assert seen == expected


def test_the_sanity_check_and_other_validations_do_not_count(tmp_path):
    schedule = plateau()
    seen, made = fit(tmp_path, schedule, num_sanity_val_steps=2)
    assert seen[::2] == torchs(LOSSES)
    before = str(schedule.state_dict())
    made.validate(Noted([*LOSSES, 9.0]), data()[1])
    assert str(schedule.state_dict()) == before


def test_it_does_not_fall_below_its_end_and_keeps_its_warmup(tmp_path):
    schedule = Schedule(shape="plateau(loss, patience=0, gamma=0.1, end=5%)", warmup="2ep")
    seen, _ = fit(tmp_path, schedule, net=Noted([1.0] * 5), max_epochs=5)
    assert seen == pytest.approx([LR * f for f in (0.25, 0.5, 0.75, 1.0, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05)])


@pytest.mark.parametrize("where", ["val", "train"])
@pytest.mark.parametrize("keep", ["val", "epoch", "step"])
def test_a_resumed_run_has_the_rates_of_the_straight_one(where, keep, tmp_path):
    """Saved right after validation, at the epoch's end, or within the epoch: in epoch 4, where a drop is due."""
    settings = {
        "val": {"every_n_epochs": 4, "save_on_train_epoch_end": False},
        "epoch": {"every_n_epochs": 4, "save_on_train_epoch_end": True},
        "step": {"every_n_train_steps": 9},
    }[keep]
    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **settings)
    straight, _ = fit(tmp_path, plateau(), save, net=Noted(where=where), enable_checkpointing=None)
    done = 9 if keep == "step" else 8
    resumed, made = fit(tmp_path, plateau(), net=Noted(where=where), ckpt_path=tmp_path / f"step={done}.ckpt")
    assert resumed == straight[done:]
    assert made.global_step == 20


def test_ranks_agree(tmp_path):
    """They have other losses, of which the mean counts: the second rank's never improves."""

    class Check(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.rates = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_end(self, trainer, pl_module):
            assert self.rates == torchs([(loss + 10.0) / 2 for loss in LOSSES])

    fit(tmp_path, plateau(), Check(), strategy="ddp_fork", devices=2, use_distributed_sampler=False)


def test_a_metric_that_nobody_logs_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"monitors 'los', which nobody logs; did you mean 'loss'\?"):
        fit(tmp_path, Schedule(shape="plateau(los)"))
    with pytest.raises(MisconfigurationException, match="Schedule monitors 'los', which validation never logs"):
        fit(tmp_path, Schedule(shape="plateau(los)"), MonitorCheck(), num_sanity_val_steps=2)
    with pytest.raises(MisconfigurationException, match="monitors 'los'"):
        fit(tmp_path, Schedule(shape="plateau(los)"), limit_val_batches=0)

    class AtTheEnd(Noted):
        def on_train_epoch_end(self):
            self.log("own", 1.0)

    with pytest.raises(MisconfigurationException, match="what the module logs in on_train_epoch_end"):
        fit(tmp_path, Schedule(shape="plateau(own)"), net=AtTheEnd())
