"""What the tests of averaged weights share."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from tests.contract.nets import Host, loaders, trainer
from tests.contract.settings import Setting
from tests.numerics import array

DATA = Setting({})
STEPS = 4
"""In an epoch of batches of 8."""


def make(host=Host, seed=0, **kwargs):
    torch.manual_seed(seed)
    return host(**kwargs)


def fit(net, callbacks, tmp_path, size=8, ckpt_path=None, **kwargs):
    """Three epochs, each with a validation."""
    made = trainer(tmp_path, callbacks=callbacks, **{"max_epochs": 3, "num_sanity_val_steps": 0, **kwargs})
    torch.manual_seed(1)
    made.fit(net, loaders(DATA, size), loaders(DATA, 16), ckpt_path=ckpt_path)
    return made


def validate(net, tmp_path, ckpt_path=None):
    """The loss that a Trainer without callbacks finds."""
    return trainer(tmp_path).validate(net, loaders(DATA, 16), ckpt_path=ckpt_path, verbose=False)[0]["val/loss"]


def state(net):
    """A copy of a module's state."""
    return {name: value.clone() for name, value in net.state_dict().items()}


class Record(pl.Callback):
    """Keeps the state after each optimizer step, the first one before any, and what each validation measured."""

    def __init__(self):
        self.states, self.measured, self.validated = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.states.append({name: array(value).copy() for name, value in pl_module.state_dict().items()})
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > self.step:
            self.on_train_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer, pl_module):
        self.validated.append(state(pl_module))

    def on_validation_end(self, trainer, pl_module):
        self.measured.append(float(trainer.callback_metrics["val/loss"]))
