"""Modules, data and callbacks such as users write, right ones and such that do not resume."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIZE, BATCH = 32, 8


class Points(Dataset):
    """Fixed points in two classes."""

    def __init__(self) -> None:
        self.x = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index):
        return self.x[index], int(self.x[index, 0] > 0)


class NoisyPoints(Points):
    """A transform with a random generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.Generator().manual_seed(1)

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(4, generator=self.noise), y


class KeptPlace(DataLoader):
    """Goes on within an epoch."""

    place = start = 0

    def __iter__(self):
        start, self.start, self.place = self.start, 0, 0
        for number, batch in enumerate(super().__iter__()):
            if number >= start:
                self.place = (number + 1) % len(self)
                yield batch

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.start = state["place"]


def data(kind=KeptPlace, dataset=Points):
    return kind(dataset(), BATCH), DataLoader(dataset(), BATCH)


class Net(LightningModule):
    """Resumes exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/loss", nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=9.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train/loss_epoch"}}


class Counting(Net):
    """Weighs its loss by a counter that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
        return super().training_step(batch, batch_idx) * (1 + self.calls / 10)


class Forgetting(Net):
    """Has a running mean that checkpoints leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def training_step(self, batch, batch_idx):
        self.mean.lerp_(batch[0].mean(0), 0.1)
        return super().training_step(batch, batch_idx)


class Summing(Net):
    """Gathers an epoch's losses in a list."""

    def on_train_epoch_start(self):
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if not hasattr(self, "losses"):
            self.losses = []
        self.losses.append(float(loss))
        return loss

    def on_train_epoch_end(self):
        self.log("train/sum", sum(self.losses))


class Late(Net):
    """Shrinks its weights behind the callbacks that save."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.net[0].weight.mul_(0.9)


class Unseeded(Net):
    """No two runs are equal."""

    def training_step(self, batch, batch_idx):
        noise = torch.rand(1, generator=self.generator)
        return super().training_step(batch, batch_idx) + noise * self.net[0].weight.square().sum()

    def on_fit_start(self):
        self.generator = torch.Generator()
        self.generator.seed()


class Draws(Callback):
    """Draws a random number in its first batch of a process."""

    drawn = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.drawn:
            torch.rand(1)
        self.drawn = True


class Patience(Callback):
    """Counts batches, and does not save the count."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, *args):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}
