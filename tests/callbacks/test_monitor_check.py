"""MonitorCheck stops a run with a misspelt monitor before its first training step, and no other run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning.callbacks import MonitorCheck
from lightning_tuning.errors import InvalidValueError


class Net(LightningModule):
    def __init__(self, scheduled: str | None = None, **scheduling: Any) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.scheduled = scheduled
        self.scheduling = scheduling
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        loss = self.net(batch[0]).square().mean()
        self.log("train/loss", loss)
        self.log("objective", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.net(batch[0]).square().mean())

    def on_validation_epoch_end(self) -> None:
        self.log("val/accuracy", 0.5)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        if self.scheduled is None:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": self.scheduled} | self.scheduling,
        }


class Silent(Net):
    validation_step = lambda self, batch, batch_idx: None  # noqa: E731
    on_validation_epoch_end = LightningModule.on_validation_epoch_end


class Watcher(Callback):
    def __init__(self, monitor: str) -> None:
        self.monitor = monitor


def fit(tmp_path: Any, *callbacks: Callback, net: Net | None = None, validate: bool = True, **settings: Any) -> Net:
    net = net or Net()
    loader = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2)
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        accelerator="cpu",
        enable_checkpointing=saving,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(net, loader, loader if validate else None)
    return net


@pytest.mark.parametrize(
    ("owner", "make"),
    [
        ("EarlyStopping", EarlyStopping),
        ("ModelCheckpoint", lambda monitor: ModelCheckpoint(monitor=monitor)),
        ("Watcher", Watcher),
    ],
)
def test_misspelt_monitor_of_a_callback(owner: str, make: Any, tmp_path: Any) -> None:
    net = Net()
    message = f"{owner} monitors 'val/los', which validation never logs. It logs: val/accuracy, val/loss."
    with pytest.raises(MisconfigurationException) as caught:
        fit(tmp_path, MonitorCheck(), make("val/los"), net=net)
    assert str(caught.value) == f"{message} Did you mean 'val/loss'?"
    assert net.steps == 0


def test_misspelt_monitor_of_a_scheduler_and_several_at_once(tmp_path: Any) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        fit(tmp_path, MonitorCheck(), EarlyStopping("val_loss"), net=Net("val/acuracy"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("EarlyStopping monitors 'val_loss'")
    assert first.endswith("Did you mean 'val/loss'?")
    assert second.startswith("ReduceLROnPlateau monitors 'val/acuracy'")
    assert second.endswith("Did you mean 'val/accuracy'?")


@pytest.mark.parametrize("make", [EarlyStopping, lambda monitor: ModelCheckpoint(monitor=monitor), Watcher])
@pytest.mark.parametrize("monitor", ["val/loss", "val/accuracy", "train/loss"])
def test_correct_monitors_pass(make: Any, monitor: str, tmp_path: Any) -> None:
    assert fit(tmp_path, MonitorCheck(), make(monitor), net=Net("val/loss")).steps == 2


@pytest.mark.parametrize("monitor", ["step", "epoch"])
def test_counters_of_the_checkpoint_pass(monitor: str, tmp_path: Any) -> None:
    assert fit(tmp_path, MonitorCheck(), ModelCheckpoint(monitor=monitor, mode="max"), ModelCheckpoint()).steps == 2
    with pytest.raises(MisconfigurationException, match="Watcher monitors"):
        fit(tmp_path, MonitorCheck(), Watcher(monitor))


def test_not_strict_is_left_alone(tmp_path: Any) -> None:
    net = Net("nowhere", strict=False)
    assert fit(tmp_path, MonitorCheck(), EarlyStopping("nowhere", strict=False), net=net).steps == 2


def test_a_metric_of_training_is_named_in_ignore(tmp_path: Any) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        fit(tmp_path, MonitorCheck(), EarlyStopping("objective"))
    advice = "MonitorCheck(ignore=['train', 'objective'])"
    assert str(caught.value).endswith(f"If it is logged elsewhere, write {advice}.")
    assert fit(tmp_path, eval(advice), EarlyStopping("objective")).steps == 2


def test_validation_that_logs_nothing(tmp_path: Any) -> None:
    with pytest.raises(MisconfigurationException, match="It logs nothing"):
        fit(tmp_path, MonitorCheck(), Watcher("val/loss"), net=Silent())


def test_no_check_without_a_sanity_validation(tmp_path: Any) -> None:
    assert fit(tmp_path, MonitorCheck(), Watcher("val/los"), num_sanity_val_steps=0).steps == 2
    assert fit(tmp_path, MonitorCheck(), Watcher("val/los"), validate=False).steps == 2


def test_rank_zero_decides_for_all(tmp_path: Any) -> None:
    class RankZero(Net):
        def on_validation_epoch_end(self) -> None:
            if self.trainer.is_global_zero:
                self.log("val/accuracy", 0.5, rank_zero_only=True)

    settings = {"strategy": "ddp_fork", "devices": 2}
    fit(tmp_path, MonitorCheck(), Watcher("val/accuracy"), net=RankZero(), **settings)
    with pytest.raises(Exception, match="Did you mean 'val/accuracy'"):
        fit(tmp_path, MonitorCheck(), Watcher("val/acuracy"), net=RankZero(), **settings)


@pytest.mark.parametrize("ignore", ["train", [""], [3]])
def test_bad_ignore(ignore: Any) -> None:
    with pytest.raises(InvalidValueError, match="it must be a list of name beginnings"):
        MonitorCheck(ignore)
