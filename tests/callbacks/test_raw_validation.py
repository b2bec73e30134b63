"""Validations of the weights beside those of their average."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torchmetrics.classification import MulticlassAccuracy

from lightning_tuning.callbacks import WeightEMA
from tests.contract.nets import NUM_CLASSES, Host, assert_equal_state, loaders, trainer

from .averages import DATA, fit, make, state


class Measured(Host):
    """Metrics of all kinds, and random numbers in validation."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(NUM_CLASSES)
        self.noise = []

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        x, target = batch
        self.accuracy(self(x), target)
        self.log("val/accuracy", self.accuracy)
        self.noise.append(float(torch.rand(())))
        self.logger.experiment.log_metrics({"by_hand": self.noise[-1]}, step=self.global_step)

    def on_validation_epoch_end(self):
        self.log("val/end", self.net[6].weight.square().sum())


class Keep(pl.Callback):
    """The metrics after each validation."""

    def __init__(self):
        self.metrics, self.batches = [], 0

    def on_validation_batch_end(self, *args, **kwargs):
        self.batches += 1

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")})


def run(tmp_path, *callbacks, host=Measured, **kwargs):
    net, keep = make(host), Keep()
    kwargs = {"logger": CSVLogger(tmp_path), "num_sanity_val_steps": 2, **kwargs}
    made = fit(net, [*callbacks, keep], tmp_path, **kwargs)
    return net, keep, made


def test_raw_and_averaged_metrics_stand_side_by_side(tmp_path):
    bare, averaged, both = (
        run(tmp_path, *ours)
        for ours in ([], [WeightEMA(decay=0.8)], [WeightEMA(decay=0.8, validate_raw=True, start="1ep")])
    )
    for raw, average, found in zip(bare[1].metrics, averaged[1].metrics, both[1].metrics, strict=True):
        assert raw.keys() == average.keys() == {"val/loss", "val/accuracy", "val/end"}
        assert found.keys() == {*raw, *(f"{name}_raw" for name in raw)}
        assert {name: found[f"{name}_raw"] for name in raw} == raw
    assert all(both[1].metrics[0][name] == bare[1].metrics[0][name] for name in ("val/loss", "val/accuracy", "val/end"))
    assert both[1].metrics[2]["val/loss"] != bare[1].metrics[2]["val/loss"]


def test_the_averaged_metrics_and_the_training_are_as_without_it(tmp_path):
    plain, both = (run(tmp_path, WeightEMA(decay=0.8, validate_raw=raw)) for raw in (False, True))
    for without, found in zip(plain[1].metrics, both[1].metrics, strict=True):
        assert {name: found[name] for name in without} == without
    assert_equal_state(state(plain[0]), state(both[0]))
    assert both[0].noise[2::4] == both[0].noise[4::4]  # the first two are of the sanity check
    assert plain[1].batches == both[1].batches
    loops = [made.fit_loop.state_dict() for _, _, made in (plain, both)]
    assert loops[0] == loops[1]
    assert "run" not in vars(both[2].fit_loop.epoch_loop.val_loop)


def test_callbacks_may_monitor_both(tmp_path):
    stopping = EarlyStopping("val/loss_raw", patience=1, mode="max")
    saving = ModelCheckpoint(tmp_path, "{epoch}", monitor="val/loss_raw", save_top_k=-1)
    made = run(tmp_path, WeightEMA(validate_raw=True), stopping, saving, enable_checkpointing=None)[2]
    assert made.current_epoch == 2  # counted once an epoch
    assert len(saving.best_k_models) == 2


def test_loggers_get_one_row_for_each_validation(tmp_path):
    made = run(tmp_path, WeightEMA(validate_raw=True))[2]
    text = Path(made.logger.experiment.metrics_file_path).read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["val/loss"]]
    assert [int(row["step"]) for row in rows] == [3, 7, 11]
    assert all(float(row["val/loss"]) != float(row["val/loss_raw"]) for row in rows)


def test_several_data_loaders(tmp_path):
    net, keep = make(Several), Keep()
    made = trainer(tmp_path, callbacks=[WeightEMA(validate_raw=True), keep], max_epochs=1)
    made.fit(net, loaders(DATA, 8), [loaders(DATA, 16), loaders(DATA, 32)])
    names = {f"val/{name}/dataloader_idx_{i}" for i in (0, 1) for name in ("loss", "loss_raw")}
    assert keep.metrics[-1].keys() == names


class Several(Host):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)


class Failing(Host):
    def validation_step(self, batch, batch_idx):
        raise RuntimeError("stop")


def test_an_exception_in_it_leaves_everybody_in_place(tmp_path):
    callbacks, logger = [WeightEMA(validate_raw=True), Keep()], CSVLogger(tmp_path)
    made = trainer(tmp_path, callbacks=callbacks, logger=logger, num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="stop"):
        made.fit(make(Failing), loaders(DATA, 8), loaders(DATA, 16))
    assert callbacks[0] in made.callbacks
    assert callbacks[1] in made.callbacks
    assert made.loggers == [logger]
    assert "run" not in vars(made.fit_loop.epoch_loop.val_loop)
