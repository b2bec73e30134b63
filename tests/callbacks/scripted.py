"""A module that logs what a script says, and whose weight is the number of optimizer steps done."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

BATCHES = 4
"""Optimizer steps of an epoch."""


class Scripted(pl.LightningModule):
    """Logs ``val[name][i]`` in the validation after ``every * (i + 1)`` steps, and ``train[name][i]`` at epoch i's end.

    ``measured`` has the weight of each validation.
    """

    def __init__(self, val=None, train=None, every=BATCHES):
        super().__init__()
        self.val, self.train_values, self.every = val or {}, train or {}, every
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.measured = []

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return -self.weight

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.measured.append(self.weight.item())

    def on_validation_epoch_end(self):
        number = max(self.trainer.global_step // self.every - 1, 0)
        for name, values in self.val.items():
            self.log(name, values[number])

    def on_train_epoch_end(self):
        for name, values in self.train_values.items():
            self.log(name, values[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def loader(size=BATCHES):
    return DataLoader(torch.zeros(size, 1), batch_size=1)


def fit(net, *callbacks, ckpt_path=None, **kwargs):
    """Train on the CPU, quietly, for at most ten epochs; return the Trainer."""
    settings = {
        "accelerator": "cpu",
        "max_epochs": 10,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})
    trainer.fit(net, loader(), loader(1), ckpt_path=ckpt_path)
    return trainer
