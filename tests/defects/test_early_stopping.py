"""What Lightning's EarlyStopping gets wrong."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_tuning.callbacks import EarlyStop
from tests.callbacks.scripted import Scripted, fit


def test_a_decision_under_min_epochs_is_never_withdrawn():
    """EarlyStopping sets ``trainer.should_stop`` once and for all: the run ends after ``min_epochs`` though the metric
    has become better meanwhile."""
    values = [3.0, 4.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert fit(Scripted({"val/loss": values}), EarlyStopping("val/loss", patience=1), min_epochs=4).current_epoch == 4
    assert fit(Scripted({"val/loss": values}), EarlyStop("val/loss", patience=1), min_epochs=4).current_epoch == 10


@pytest.mark.parametrize(("kind", "epochs"), [(EarlyStopping, 3), (EarlyStop, 6)])
def test_the_patience_of_the_checkpoint_wins_over_the_one_configured_now(kind, epochs, tmp_path):
    """EarlyStopping restores its old patience, so a run cannot be resumed with more of it."""
    values = [1.0] + [2.0] * 9
    keep = ModelCheckpoint(tmp_path, "kept", save_top_k=-1, every_n_epochs=2, save_on_train_epoch_end=True)
    fit(Scripted({"val/loss": values}), kind("val/loss", patience=2), keep, max_epochs=2)
    again = Scripted({"val/loss": values})
    assert fit(again, kind("val/loss", patience=5), ckpt_path=tmp_path / "kept.ckpt").current_epoch == epochs


@pytest.mark.parametrize(
    ("stop", "epochs"),
    [
        (EarlyStopping("val/loss", patience=2, strict=False, check_on_train_epoch_end=True), 5),
        (EarlyStop("val/loss", patience=2), 10),
    ],
)
def test_the_value_of_an_old_validation_counts_again_at_each_epochs_end(stop, epochs):
    """EarlyStopping with ``check_on_train_epoch_end`` compares a validation's value with itself in each epoch until the
    next validation, though each validation is an improvement."""
    net = Scripted({"val/loss": [5.0, 4.0, 3.0]}, every=12)
    assert fit(net, stop, check_val_every_n_epoch=3, max_epochs=10).current_epoch == epochs


def test_ranks_that_see_different_values_count_differently(tmp_path):
    """Where ranks see different values, EarlyStopping's ranks disagree on the best one and on how long ago it was."""

    class OnRanks(Scripted):
        def on_validation_epoch_end(self):
            epoch = self.trainer.current_epoch
            self.log("val/loss", float(epoch if self.trainer.global_rank else -epoch))

        def on_train_end(self):
            stop = self.trainer.early_stopping_callback
            torch.save(stop.wait_count, tmp_path / f"{type(stop).__name__}{self.trainer.global_rank}.pt")

    for stop in (EarlyStopping("val/loss", patience=9), EarlyStop("val/loss", patience=9)):
        fit(OnRanks(), stop, strategy="ddp_fork", devices=2, max_epochs=3)
    counts = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    assert counts["EarlyStopping0"] != counts["EarlyStopping1"]
    assert counts["EarlyStop0"] == counts["EarlyStop1"]


def test_restoring_the_best_weights_is_left_to_the_user():
    """EarlyStopping leaves the model with the weights that it stopped at, as many epochs too late as its patience."""
    nets = [Scripted({"val/loss": [1.0, 2.0, 3.0, 4.0]}) for _ in range(2)]
    for net, stop in zip(nets, [EarlyStopping("val/loss"), EarlyStop("val/loss")], strict=True):
        fit(net, stop)
    assert [net.weight.item() for net in nets] == [16, 4]
