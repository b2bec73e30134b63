"""EarlyStop in training: when it looks, what it restores, what a resume keeps."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning.callbacks import EarlyStop, MonitorCheck, WeightEMA, early_stop
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs.summary import checkpoint_to_test, format_summary, summarize

from .scripted import Scripted, fit, loader

LOSSES = [5.0, 3.0, 4.0, 2.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0]
"""Best after epoch 3 (step 16), until epoch 7."""


def losses(values=LOSSES, **kwargs):
    return Scripted({"val/loss": values}, **kwargs)


def test_it_stops_and_restores_the_best_weights(told):
    net, stop = losses(), EarlyStop("val/loss", patience=3)
    trainer = fit(net, stop)
    assert (trainer.global_step, trainer.current_epoch) == (28, 7)
    assert (net.weight.item(), net.seen.item()) == (16, 16)  # buffers too
    assert (stop.stopped_epoch, stop.stopping_reason) == (6, EarlyStoppingReason.PATIENCE_EXHAUSTED)
    assert stop.stopping_reason_message == (
        "val/loss did not improve on 2, reached at step 16, for 3 checks, up to step 28, epoch 7."
    )
    assert f"EarlyStop: {stop.stopping_reason_message}" in told.messages
    assert "EarlyStop: the model has the weights of step 16, where val/loss was at its best, 2." in told.messages
    assert (stop.best_score.item(), stop.wait_count, stop.restored) == (2.0, 3, True)
    assert trainer.early_stopping_callback is stop


def test_a_run_that_ends_by_itself_has_its_best_weights_too():
    net, stop = losses(), EarlyStop("val/loss", patience=3)
    assert fit(net, stop, max_epochs=6).global_step == 24
    assert net.weight.item() == 16
    assert (stop.stopping_reason, stop.stopping_reason_message) == (EarlyStoppingReason.NOT_STOPPED, None)


def test_without_restoring_the_weights_are_the_last_ones():
    net, stop = losses(), EarlyStop("val/loss", patience=3, restore_best=False)
    fit(net, stop)
    assert net.weight.item() == 28
    assert stop.state_dict()["weights"] == {"best": None, "candidate": None}


@pytest.mark.parametrize(
    ("settings", "trainer", "steps"),
    [
        ({"patience": 3}, {"val_check_interval": 0.5}, 14),  # best at step 8, three checks of 2 steps
        ({"patience": "4st"}, {"val_check_interval": 0.5}, 12),
        ({"patience": "1ep"}, {"val_check_interval": 0.5}, 12),
        ({"patience": "1.5ep"}, {"val_check_interval": 0.5}, 14),
        ({"patience": "0.1dur"}, {"val_check_interval": 0.5}, 12),  # 4 of 40 steps
        ({"patience": "4smp"}, {"val_check_interval": 0.5}, 12),
        ({"patience": 1}, {"check_val_every_n_epoch": 2}, 24),
        ({"patience": 2, "start_from": "5ep"}, {}, 28),  # the first value that counts is that of epoch 5
        ({"patience": 1, "start_from": 3}, {}, 20),
    ],
)
def test_it_looks_after_each_validation(settings, trainer, steps):
    every = 2 if "val_check_interval" in trainer else 8 if trainer else 4
    net = losses(every=every)
    assert fit(net, EarlyStop("val/loss", **settings), **trainer).global_step == steps
    assert len(net.measured) == steps // every


def test_metrics_of_training_are_looked_at_at_the_epochs_end():
    net = Scripted(train={"train/loss": [3.0, 2.0, 2.5, 2.5, 1.0]})
    assert fit(net, EarlyStop("train/loss", patience=2)).global_step == 16
    assert net.weight.item() == 8


def test_the_value_of_a_steps_own_metric_is_that_of_the_last_step():
    class Stepwise(Scripted):
        def training_step(self, batch, batch_idx):
            self.log("height", float(batch_idx + 10 * (self.current_epoch < 2)))
            return super().training_step(batch, batch_idx)

    stop = EarlyStop("height", mode="max", patience=2)
    assert fit(Stepwise(), stop).global_step == 12
    assert stop.best_score == 13


def test_an_old_value_is_no_check():
    """Validated in every second epoch, a value is the same at the end of two epochs."""
    net, stop = losses(LOSSES, every=8), EarlyStop("val/loss", patience=9)
    fit(net, stop, check_val_every_n_epoch=2)
    assert stop.state_dict()["now"] == [5, 40, 10.0]


def test_several_metrics_and_the_gap_wait_for_each_other():
    val, train = {"val/loss": [3.0, 2.0, 2.0, 2.0, 2.0]}, {"train/loss": [3.0, 2.0, 1.0, 0.5, 0.1]}
    stop = EarlyStop(["val/loss", "train/loss"], patience=2, combine="any")
    assert fit(Scripted(val, train), stop).global_step == 16
    assert stop.state_key == "EarlyStop{'monitor': ['val/loss', 'train/loss'], 'mode': 'min'}"
    net = Scripted({"val/loss": [3.0, 2.0, 1.9, 1.8, 1.7]}, train)
    stop = EarlyStop("val/loss", train_monitor="train/loss", max_gap=1.0, patience=2)
    assert fit(net, stop).global_step == 20
    assert stop.stopping_reason_message == (
        "The gap has been above 1 for 2 checks at step 20, epoch 5: val/loss is 1.7 and train/loss is 0.1."
    )
    assert net.weight.item() == 20


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        (
            {"stopping_threshold": 3.0},
            8,
            "Stopping threshold reached at step 8, epoch 2: val/loss is 3, the threshold 3.",
        ),
        (
            {"divergence_threshold": 4.5},
            4,
            "Divergence threshold reached at step 4, epoch 1: val/loss is 5, the threshold 4.5.",
        ),
    ],
)
def test_thresholds(settings, steps, message):
    stop = EarlyStop("val/loss", **settings)
    assert fit(losses(), stop).global_step == steps
    assert stop.stopping_reason_message == message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite(value):
    values = [3.0, 2.0, value, value, 1.0]
    net, stop = losses(values), EarlyStop("val/loss")
    assert fit(net, stop).global_step == 12
    assert stop.stopping_reason_message == "val/loss is not finite at step 12, epoch 3."
    assert net.weight.item() == 8
    assert fit(losses(values), EarlyStop("val/loss", check_finite=False), max_epochs=5).global_step == 20


# The Trainer's minimum.


def test_an_improvement_under_min_epochs_withdraws_the_decision():
    """Out of patience after epochs 2 and 3, better again in epoch 4, min_epochs over after epoch 5."""
    values = [1.0, 2.0, 2.0, 2.0, 0.5, 0.6, 0.4, 0.7, 0.8, 0.9]
    assert fit(losses(values), EarlyStop("val/loss", patience=1), min_epochs=5).global_step == 24


def test_what_stands_at_min_epochs_is_done_at_once(told):
    values, stop = [1.0, 2.0, 2.0, 2.0], EarlyStop("val/loss", patience=1)
    assert fit(losses(values), stop, min_epochs=4).global_step == 16
    assert stop.stopped_epoch == 3
    assert stop.stopping_reason_message.endswith(" for 3 checks, up to step 16, epoch 4.")
    assert [m for m in told.messages if "did not improve" in m] == [f"EarlyStop: {stop.stopping_reason_message}"]
    # No validation in epochs 3 and 5: the decision of the check before stands.
    net = losses([1.0, 2.0, 2.0, 2.0], every=8)
    assert fit(net, EarlyStop("val/loss", patience=1), min_epochs=5, check_val_every_n_epoch=2).global_step == 20


def test_min_steps_within_an_epoch():
    net = losses([1.0, 2.0, 2.0, 2.0, 2.0, 2.0], every=1)
    assert fit(net, EarlyStop("val/loss", patience=1), min_steps=5, val_check_interval=1).global_step == 5


# Which weights were measured.


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("averaging", [EMAWeightAveraging, WeightEMA])
def test_averaged_weights_are_restored_where_averaged_weights_were_measured(averaging, order):
    net, stop = losses(), EarlyStop("val/loss", patience=3)
    fit(net, *[stop, averaging(decay=0.9)][::order])
    assert net.measured[3] != 16
    assert net.weight.item() == net.measured[3]


def test_the_weights_are_those_of_the_measurement_and_not_of_the_epochs_end():
    """The gap is known at the end of the epoch, half an epoch behind the validation."""
    train = {"train/loss": [2.0, 2.0, 2.0]}
    net = Scripted({"val/loss": [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]}, train, every=3)
    stop = EarlyStop("val/loss", train_monitor="train/loss", max_gap=9.0)
    fit(net, stop, val_check_interval=3, max_epochs=2)
    assert net.measured == [3, 7]  # the second one at 1.0
    assert net.weight.item() == 7


# Checkpoints and resume.


def resumed(tmp_path, first, second, step=20, **kwargs):
    """A run that is interrupted after that step and goes on with other settings."""
    keep = ModelCheckpoint(tmp_path, "kept", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    fit(losses(), first, keep, max_epochs=step // 4)
    torch.load(tmp_path / "kept.ckpt", weights_only=True)
    net = losses()
    return net, fit(net, second, ckpt_path=tmp_path / "kept.ckpt", **kwargs)


def test_a_resume_keeps_what_was_counted_and_the_best_weights(tmp_path):
    stop = EarlyStop("val/loss", patience=3)
    net, trainer = resumed(tmp_path, EarlyStop("val/loss", patience=3), stop)
    assert (trainer.global_step, net.weight.item()) == (28, 16)
    straight = EarlyStop("val/loss", patience=3)
    fit(losses(), straight)
    assert str(stop.state_dict()) == str(straight.state_dict())


def test_the_settings_of_now_count_after_a_resume_or_those_of_the_checkpoint(tmp_path):
    _, trainer = resumed(tmp_path, EarlyStop("val/loss", patience=3), EarlyStop("val/loss", patience=2))
    assert trainer.global_step == 24
    other = EarlyStop("val/loss", patience=2, settings_from="checkpoint")
    assert resumed(tmp_path, EarlyStop("val/loss", patience=3), other)[1].global_step == 28
    assert other.patience == 3


def test_a_run_that_had_stopped_stops_again_unless_the_settings_are_others(tmp_path):
    first = EarlyStop("val/loss", patience=3)
    net, trainer = resumed(tmp_path, first, EarlyStop("val/loss", patience=3), step=40)
    assert (trainer.global_step, net.weight.item()) == (28, 16)
    net, trainer = resumed(tmp_path, first, EarlyStop("val/loss", patience=4), step=40)
    assert (trainer.global_step, net.weight.item()) == (40, 32)


def test_resumed_with_restoring_only_now(tmp_path):
    first, second = EarlyStop("val/loss", patience=9, restore_best=False), EarlyStop("val/loss", patience=9)
    with pytest.warns(UserWarning, match="no best weights"):
        net, _ = resumed(tmp_path, first, second, max_epochs=7)
    assert net.weight.item() == 24  # of the values 3, 3 the first one
    assert second.state_dict()["tracks"][0]["reference"] == 2.0


def test_another_smoothing_forgets_the_values_of_the_old_one(tmp_path):
    first, second = (EarlyStop("val/loss", patience=9, smoothing=s) for s in ("median 5", "ema 0.5"))
    resumed(tmp_path, first, second, max_epochs=6)
    assert second.state_dict()["tracks"][0]["memory"] == [1.5, 0.5]


def test_another_run_begins_anew_and_a_longer_one_goes_on():
    stop = EarlyStop("val/loss", patience=3)
    fit(losses(), stop)
    net = losses([1.0, 0.5, 0.7])
    assert fit(net, stop, max_epochs=3).global_step == 12
    assert net.weight.item() == 8
    stop, net = EarlyStop("val/loss", patience=3), losses()
    trainer = fit(net, stop, max_epochs=5)
    trainer.fit_loop.max_epochs = 10
    trainer.fit(net, loader(), loader(1))
    assert trainer.global_step == 28


def test_a_checkpoint_between_a_validation_and_its_check_has_the_measured_weights(tmp_path):
    val, train = {"val/loss": [3.0, 1.0, 2.0, 2.0]}, {"train/loss": [2.0, 2.0, 2.0]}
    stops = [EarlyStop("val/loss", train_monitor="train/loss", max_gap=9.0) for _ in range(2)]
    keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=4, save_top_k=-1)
    fit(Scripted(val, train, every=3), stops[0], keep, val_check_interval=3, max_epochs=1)
    state = torch.load(tmp_path / "kept.ckpt", weights_only=True)["callbacks"][stops[0].state_key]
    assert state["values"] == {"val/loss": 3.0}
    assert (state["weights"]["best"], state["weights"]["candidate"]["weight"]) == (None, 3)


def test_ctrl_c_leaves_the_weights_as_they_are():
    class Interrupt(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 22:
                raise KeyboardInterrupt

    net = losses()
    with pytest.raises(SystemExit):
        fit(net, EarlyStop("val/loss"), Interrupt())
    assert net.weight.item() == 22


# What is missing.


def test_a_name_that_validation_does_not_log_is_told_in_the_sanity_run():
    with pytest.warns(
        UserWarning, match=r"EarlyStop monitors 'val/los', .* It logs: val/loss. Did you mean 'val/loss'"
    ):
        fit(losses(), EarlyStop("val/los", strict=True), num_sanity_val_steps=1, max_epochs=0)
    with pytest.raises(MisconfigurationException, match=r"^EarlyStop monitors 'acc', which validation .*ignore="):
        fit(losses(), EarlyStop(["val/loss", "acc"]), MonitorCheck(), num_sanity_val_steps=1)


@pytest.mark.parametrize("validating", [1.0, 0.0])
def test_a_name_that_nobody_logs_is_an_error_after_the_first_epoch(validating):
    net = Scripted({"val/loss": LOSSES}, {"height": LOSSES})
    names = "height, val/loss" if validating else "height"
    with pytest.raises(MisconfigurationException, match=f"'val/los', which the run never logs. It logs: {names}[.]"):
        fit(net, EarlyStop("val/los"), limit_val_batches=validating)
    assert net.weight.item() == 4


def test_a_name_that_nobody_logs_is_let_through():
    assert fit(losses(), EarlyStop("val/los", strict=False), max_epochs=2).global_step == 8


def test_a_first_validation_is_waited_for():
    net = losses(every=12)
    assert fit(net, EarlyStop("val/loss", patience=1), check_val_every_n_epoch=3, max_epochs=4).global_step == 16


# Surroundings.


class OnRanks(Scripted):
    """Logs another value on each rank, and one metric on rank 0 alone."""

    def on_validation_epoch_end(self):
        number, rank = self.trainer.global_step // self.every - 1, self.trainer.global_rank
        self.log("val/loss", [[4.0, 1.0], [2.0, 2.0], [1.5, 3.5], [4.0, 2.0], [0.0, 9.0]][number][rank])
        if rank == 0:
            self.log("alone", -float(number), rank_zero_only=True)


class PerRank(pl.Callback):
    def __init__(self, folder, stop):
        self.folder, self.stop = folder, stop

    def teardown(self, trainer, pl_module, stage):
        state = {**self.stop.state_dict(), "step": trainer.global_step, "weight": pl_module.weight.item()}
        torch.save(state, self.folder / f"rank{trainer.global_rank}.pt")


def test_all_ranks_decide_by_the_mean(tmp_path):
    """Means 2.5, 2, 2.5, 3. Rank 0 alone would have its best value at the third check, rank 1 at the first one."""
    stop = EarlyStop(["val/loss", "alone"], patience=2, combine="any")
    fit(OnRanks(every=2), stop, PerRank(tmp_path, stop), strategy="ddp_fork", devices=2, max_epochs=5)
    states = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert str(states[0]) == str(states[1])
    assert (states[0]["step"], states[0]["weight"]) == (8, 4)
    assert [track["best"] for track in states[0]["tracks"]] == [2.0, -3.0]


def test_nothing_is_done_in_a_development_run_or_outside_of_fit():
    net, stop = losses([math.nan] * 9), EarlyStop("val/loss")
    assert fit(net, stop, fast_dev_run=3).global_step == 3
    trainer = fit(losses(), stop, max_epochs=1)
    trainer.validate(net, loader(1), verbose=False)
    assert stop.state_dict()["now"] == [1, 4, 1.0]


def test_the_patience_used_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(losses(), EarlyStop("val/loss", patience=4), logger=logger, max_epochs=7)
    rows = csv.DictReader(Path(logger.experiment.metrics_file_path).read_text().splitlines())
    used = [float(row["early_stop/patience_used"]) for row in rows if row["early_stop/patience_used"]]
    assert used == [0, 0, 0.25, 0, 0.25, 0.5, 0.75]


def test_the_summary_says_why_and_the_test_takes_the_restored_weights(tmp_path):
    stop, last = EarlyStop("val/loss", patience=3), ModelCheckpoint(tmp_path, "last")
    trainer = fit(losses(), stop, last)
    assert checkpoint_to_test(trainer) is None
    summary = summarize(trainer, {}, tmp_path, 1.0)
    assert summary["stopped"] == stop.stopping_reason_message
    assert f"stopped    {stop.stopping_reason_message}" in format_summary(summary)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    assert checkpoint_to_test(fit(losses(), EarlyStop("val/loss"), best, last)) == str(tmp_path / "best.ckpt")
    kept = EarlyStop("val/loss", restore_best=False)
    assert checkpoint_to_test(fit(losses(), kept, ModelCheckpoint(tmp_path, "end"))) == str(tmp_path / "end.ckpt")


def test_best_weights_that_no_process_holds_are_refused(monkeypatch):
    monkeypatch.setattr(early_stop, "holds_whole_gradients", lambda strategy: False)
    with pytest.raises(
        MisconfigurationException, match=r"^EarlyStop cannot .* SingleDeviceStrategy, .*restore_best: f"
    ):
        fit(losses(), EarlyStop("val/loss"))
    assert fit(losses(), EarlyStop("val/loss", restore_best=False)).global_step == 28


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": []}, "^monitor is"),
        ({"monitor": ["a", "a"]}, "named once"),
        ({"monitor": ["a", ""]}, "^monitor is"),
        ({"mode": "auto"}, "^mode is 'auto'"),
        ({"mode": ["min", "max"]}, "^mode is .* for 1 metrics it must be one value or a list of 1"),
        ({"monitor": ["a", "b"], "min_delta": [0.1, -1]}, "^min_delta is -1"),
        ({"patience": -1}, "^patience is -1; it must be a number of checks, at least 0, or a duration: '5ep'"),
        ({"patience": 1.5}, "^patience is 1.5"),
        ({"patience": "3"}, "^patience is '3'"),
        ({"start_from": "soon"}, "^start_from is 'soon'"),
        ({"smoothing": "ema 2"}, "^smoothing is 'ema 2'"),
        ({"combine": "both"}, "^combine is 'both'"),
        ({"stopping_threshold": "low"}, "^stopping_threshold is 'low'"),
        (
            {"stopping_threshold": 1.0, "divergence_threshold": 0.5},
            "with mode='min' each value of val.loss stops. .* the smaller",
        ),
        (
            {"mode": "max", "stopping_threshold": [0.9], "divergence_threshold": [0.9]},
            "with mode='max' each value of val.loss stops. .* the larger",
        ),
        ({"max_gap": 1.0}, "^train_monitor is None and max_gap is 1.0; the gap needs both"),
        ({"train_monitor": "a", "max_gap": -1.0}, "^max_gap is -1.0"),
        ({"settings_from": "file"}, "^settings_from is 'file'"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        EarlyStop(**{"monitor": "val/loss", **arguments})
