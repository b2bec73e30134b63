import errno
import os
import re
import shutil

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_tuning.runs import JournalLogger
from lightning_tuning.runs.checkpoints import default_checkpoints
from tests.helpers_checkpoints import truncate


class Scripted(LightningModule):
    """Its validation reports the given scores, one for each epoch; its weight counts the steps."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, scores, epochs, resume=None):
    trainer = Trainer(
        max_epochs=epochs,
        logger=JournalLogger(folder),
        callbacks=default_checkpoints("score", "max"),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    data = DataLoader(range(2))
    trainer.fit(Scripted(scores), data, data, ckpt_path=resume, weights_only=True)
    return trainer


def weight(path):
    return torch.load(path, weights_only=True)["state_dict"]["weight"].item()


def test_best_and_last(tmp_path):
    fit(tmp_path, [0.1, 0.9, 0.5], 3)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["best.ckpt", "last.ckpt"]
    assert weight(tmp_path / "checkpoints/best.ckpt") == 4
    assert weight(tmp_path / "checkpoints/last.ckpt") == 6


@pytest.mark.parametrize(("third", "best", "score"), [(0.5, 4, 0.9), (0.95, 6, 0.95)])
def test_a_resumed_run_remembers_the_best(third, best, score, tmp_path, recwarn):
    fit(tmp_path / "first", [0.1, 0.9], 2)
    trainer = fit(tmp_path / "second", [0.1, 0.9, third], 3, tmp_path / "first/checkpoints/last.ckpt")
    assert weight(tmp_path / "second/checkpoints/best.ckpt") == best
    assert weight(tmp_path / "first/checkpoints/best.ckpt") == 4
    assert trainer.checkpoint_callback.best_model_score.item() == pytest.approx(score)
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "second/checkpoints/best.ckpt")
    assert not [w for w in recwarn if "dirpath has changed" in str(w.message)]


def test_without_a_metric_there_is_the_last_alone():
    assert [c.filename for c in default_checkpoints(None, None)] == ["last"]


def test_the_best_one_of_a_run_that_was_moved(tmp_path):
    fit(tmp_path / "first", [0.1, 0.9], 2)
    (tmp_path / "first").rename(tmp_path / "moved")
    trainer = fit(tmp_path / "second", [0.1, 0.9, 0.5], 3, tmp_path / "moved/checkpoints/last.ckpt")
    assert weight(tmp_path / "second/checkpoints/best.ckpt") == 4
    assert trainer.checkpoint_callback.best_model_score.item() == pytest.approx(0.9)


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("why", ["it is cut off", "it could not be copied (No space left on device)"])
def test_a_best_one_that_cannot_be_carried_over_does_not_count(why, tmp_path, monkeypatch):
    """With its score alone, no later one would be written, and the run would end without a best checkpoint."""
    fit(tmp_path / "first", [0.1, 0.9], 2)
    if why == "it is cut off":
        truncate(tmp_path / "first/checkpoints/best.ckpt")
    else:
        monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.warns(UserWarning, match=rf"first/checkpoints/best\.ckpt, does not count any more: {re.escape(why)}"):
        trainer = fit(tmp_path / "second", [0.1, 0.9, 0.5], 3, tmp_path / "first/checkpoints/last.ckpt")
    assert weight(tmp_path / "second/checkpoints/best.ckpt") == 6
    assert trainer.checkpoint_callback.best_model_score.item() == pytest.approx(0.5)
    assert sorted(os.listdir(tmp_path / "second/checkpoints")) == ["best.ckpt", "last.ckpt"]
