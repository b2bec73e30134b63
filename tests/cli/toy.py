"""A model and its data that train in a fraction of a second."""

import os
import signal
import time

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import L1Mixin
from lightning_tuning.errors import InvalidValueError


class ToyModel(LightningModule):
    """A linear classifier.

    Args:
        lr: Learning rate.
        width: Inputs.
        broken: Whether making it fails as a bug would.
    """

    def __init__(self, lr: float = 0.1, width: int = 2, broken: bool = False):
        super().__init__()
        self.save_hyperparameters()
        if width < 1:
            raise InvalidValueError(f"width is {width}; it must be a number of at least 1.")
        if broken:
            raise KeyError("a bug")
        self.layer = nn.Linear(width, 2)
        self.lr = lr

    def forward(self, x):
        return self.layer(x)

    def step(self, batch, stage):
        x, y = batch
        logits = self(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.log(f"{stage}/loss", loss, on_step=stage == "train", on_epoch=True, sync_dist=True)
        self.log(
            f"{stage}/accuracy", (logits.argmax(1) == y).float().mean(), on_epoch=True, on_step=False, sync_dist=True
        )
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Interrupted(ToyModel):
    """A signal comes in the fifth step: Ctrl-C's."""

    signal = signal.SIGINT

    def training_step(self, batch, batch_idx):
        if self.global_step == 4:
            os.kill(os.getpid(), self.signal)
            time.sleep(0.01)
        return super().training_step(batch, batch_idx)


class Terminated(Interrupted):
    """The scheduler ends the job in the fifth step."""

    signal = signal.SIGTERM


class Failing(ToyModel):
    """Its fifth step has a bug."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 4:
            raise ZeroDivisionError("a bug")
        return super().training_step(batch, batch_idx)


class Diverging(ToyModel):
    """From its fifth step on the loss is NaN."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (float("nan") if self.global_step >= 4 else 1)


class Plateau(ToyModel):
    """Its scheduler waits for a metric that is misspelt."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/los"}}


class ToyData(LightningDataModule):
    """24 points in two classes.

    Args:
        batch_size: Points for each step.
    """

    def __init__(self, batch_size: int = 8):
        super().__init__()
        self.batch_size = batch_size

    def loader(self):
        x = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class WideModel(ToyModel):
    """A model that ToyModel's checkpoints do not fit."""

    def __init__(self, lr: float = 0.1, width: int = 2, broken: bool = False):
        super().__init__(lr, width, broken)
        self.more = nn.Linear(2, 2)


class Frozen(ToyModel):
    """Has nothing to train."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class FrozenModel(L1Mixin, Frozen):
    """And a penalty on it."""


class Masked(ToyModel):
    """With a frozen parameter that is infinite by design, as attention masks are."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
