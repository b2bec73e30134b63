"""Small hosts for value tests, and a Trainer that feeds them the very batches of the test."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

NUM_CLASSES, FEATURES = 3, 4


class Tiny(pl.LightningModule):
    """A classifier that notes each training step's batch, logits and target."""

    def __init__(self, network: nn.Module | None = None, lr: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__()
        self.num_classes = NUM_CLASSES
        self.network = linear() if network is None else network
        self.lr, self.momentum = lr, momentum
        self.batches, self.logits, self.targets = [], [], []

    def forward(self, x):
        return self.network(x["features"] * x["mask"] if isinstance(x, dict) else x)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        self.logits.append(logits.detach())
        self.targets.append(target)
        return F.cross_entropy(logits, target)

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        x, target = batch[0], batch[1]
        return self.compute_loss(self(x), target)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.compute_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


def linear() -> nn.Module:
    return nn.Linear(FEATURES, NUM_CLASSES)


def deep() -> nn.Module:
    """With what a pass leaves behind: batch norm's statistics and the random numbers of dropout."""
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, NUM_CLASSES)
    )


def smooth() -> nn.Module:
    """Without batch norm and dropout."""
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, NUM_CLASSES))


def convolution() -> nn.Module:
    """For images ``[N, 2, 5, 5]``."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, NUM_CLASSES)
    )


def batches(count: int = 4, size: int = 8, shape: tuple[int, ...] = (FEATURES,), dtype=torch.float32, seed: int = 1):
    """``count`` batches ``(x, ids)``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, *shape, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(NUM_CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def streams(count: int = 4, size: int = 4, ratio: int = 2, shape: tuple[int, ...] = (FEATURES,), dtype=torch.float32):
    """``count`` batches with a labelled and an unlabelled part of ``ratio * size`` inputs in two views."""
    unlabeled = batches(count, ratio * size, shape, dtype, seed=2)
    return [
        {"labeled": labeled, "unlabeled": {"weak": x, "strong": x + 0.5 * x.roll(1, 0)}}
        for labeled, (x, _) in zip(batches(count, size, shape, dtype), unlabeled, strict=True)
    ]


def unchanged(data):
    return data


def loader(data: list) -> DataLoader:
    """A loader that returns the items of a list as they are, without drawing random numbers."""
    return DataLoader(data, batch_size=None, collate_fn=unchanged, generator=torch.Generator())


def fit(net: pl.LightningModule, data: list, ckpt_path=None, val_data: list | None = None, **kwargs) -> pl.Trainer:
    """Train ``net`` on the batches of a list, in order."""
    if kwargs.get("precision") == "16-mixed":  # by name, Lightning silently takes bf16 on a CPU
        kwargs["plugins"] = MixedPrecision(kwargs.pop("precision"), device="cpu")
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **kwargs,
        }
    )
    trainer.fit(net, loader(data), loader(val_data) if val_data else None, ckpt_path=ckpt_path)
    return trainer


def parameters(module: nn.Module) -> list[Tensor]:
    """Copies of the trainable parameters."""
    return [p.detach().clone() for p in module.parameters() if p.requires_grad]


def assert_same(a, b) -> None:
    """Bitwise equality of two lists or state dicts of tensors."""
    a, b = (dict(enumerate(v)) if isinstance(v, (list, tuple)) else dict(v) for v in (a, b))
    assert a.keys() == b.keys()
    different = [key for key, value in a.items() if not torch.equal(value, b[key])]
    assert not different
