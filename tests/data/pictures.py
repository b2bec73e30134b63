"""Folders of images that say which one they are, and a Trainer that notes what it gets of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from .image_files import png

SIZE = 8


def picture(number: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Of one colour, which tells its number below 200: uint8 [height, width, 3]."""
    return np.broadcast_to(np.array([number, 255 - number, 40], np.uint8), (height, width, 3))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels, 2 if pixels.ndim == 3 else 0))
    return path


def write_folder(root: Path, classes: dict[str, Sequence[int]], **kwargs: int) -> Path:
    """``cats/007.png`` and so on; the numbers are the pictures'."""
    for name, numbers in classes.items():
        for number in numbers:
            write(root / name / f"{number:03d}.png", picture(number, **kwargs))
    return root


def numbers_of(data, x: Tensor) -> list[int]:
    """Which pictures a normalised batch [N, 3, H, W] shows, if they are not augmented."""
    middle = x[:, 0, x.shape[2] // 2, x.shape[3] // 2].double()
    return (middle * data.normalize.std[0] + data.normalize.mean[0]).mul(255).round().int().tolist()


def tensors(batch) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return [t for part in (batch.values() if isinstance(batch, dict) else batch) for t in tensors(part)]


def digest(batch) -> str:
    return hashlib.sha1(b"".join(t.contiguous().numpy().tobytes() for t in tensors(batch))).hexdigest()


class Watcher(LightningModule):
    """Notes (epoch, batch index, what ``note`` makes of the batch) in training, and the same in evaluation."""

    def __init__(self, note=digest):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.note = note
        self.seen, self.evaluated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, self.note(batch)))
        x = batch["labeled"][0] if isinstance(batch, dict) else batch[0]
        return (self.weight * x.float().mean() - 1) ** 2

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.evaluated.append((self.current_epoch, batch_idx, self.note(batch)))

    def test_step(self, batch, batch_idx):
        self.evaluated.append((0, batch_idx, self.note(batch)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, callbacks=(), logger=False, **kwargs) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
