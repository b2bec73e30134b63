import hashlib

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from lightning_tuning.data import DigitsDataModule


@pytest.fixture(autouse=True)
def _one_thread_and_no_seed(monkeypatch, tmp_path_factory):
    torch.set_num_threads(1)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    # Statistics of images are kept there, and must not go to the user's folder.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def digits():
    """Makes a datamodule that is set up."""

    def make(**kwargs):
        datamodule = DigitsDataModule(**kwargs)
        datamodule.setup()
        return datamodule

    return make


def tensors(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    return [t for part in (batch.values() if isinstance(batch, dict) else batch) for t in tensors(part)]


@pytest.fixture
def digest():
    """The hash of a batch's bytes."""
    return lambda batch: hashlib.sha1(b"".join(t.numpy().tobytes() for t in tensors(batch))).hexdigest()


@pytest.fixture
def recorder(digest):
    """Makes a LightningModule that notes (epoch, batch index, hash) of what it is trained on."""

    class Recorder(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(256, 10)
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append((self.current_epoch, batch_idx, digest(batch)))
            x, y = batch["labeled"] if isinstance(batch, dict) else batch
            return torch.nn.functional.cross_entropy(self.layer(x.flatten(1)), y)

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Recorder


@pytest.fixture
def gradient_image():
    """An image without two equal rows or columns: uint8 [16, 16, 1]."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
