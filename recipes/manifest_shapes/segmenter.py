"""A small U-Net and a LightningModule around it, which finds the class of each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_tuning import CutMixMixin, DropBlockMixin, EMATeacherMixin, SAMMixin
from recipes.manifest_shapes.build import PALETTE

VOID = -100
"""The class of pixels that count neither in the loss nor in the metric, as in ``F.cross_entropy``."""


def convolutions(inside: int, outside: int) -> nn.Sequential:
    """Two convolutions with batch norm that keep height and width."""
    layers: list[nn.Module] = []
    for channels in (inside, outside):
        layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Three scales of ``width``, twice and four times as many channels, on the way down and up again.

    Args:
        width: Channels of the finest scale.
        in_channels: Channels of the images ``[N, in_channels, H, W]``; H and W are multiples of 4.
        num_classes: Channels of the logits ``[N, num_classes, H, W]``.
    """

    def __init__(self, width: int = 8, in_channels: int = 3, num_classes: int = 4) -> None:
        super().__init__()
        self.down1, self.down2 = convolutions(in_channels, width), convolutions(width, 2 * width)
        self.bottom = convolutions(2 * width, 4 * width)
        self.up2, self.up1 = convolutions(6 * width, 2 * width), convolutions(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        middle = self.down2(F.max_pool2d(fine, 2))
        coarse = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up2(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        fine = self.up1(torch.cat([F.interpolate(middle, scale_factor=2.0), fine], 1))
        return self.head(fine)


class Segmenter(pl.LightningModule):
    """Learns the class of each pixel. Its score is the mean over the classes of intersection over union (IoU).

    A test draws its first images, their masks and the predictions: ``predictions.png`` in the run's folder.

    Args:
        num_classes: Number of classes; the background is one.
        width: Channels of the network's finest scale.
        lr: Highest learning rate of AdamW: it rises over the first 30 % of the run and falls to 0.
        weight_decay: Of AdamW.
    """

    def __init__(self, num_classes: int = 4, width: int = 8, lr: float = 0.01, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_classes, self.lr, self.weight_decay = num_classes, lr, weight_decay
        self.network = SmallUNet(width, 3, num_classes)
        self.val_iou = MulticlassJaccardIndex(num_classes, ignore_index=VOID)
        self.test_iou = MulticlassJaccardIndex(num_classes, ignore_index=VOID)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images, and masks whose pixels without a class (255 in the data) are ``VOID``."""
        x, mask = batch
        return x, mask.masked_fill(mask == 255, VOID)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, ignore_index=VOID)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = self.unpack_batch(batch)
        loss = self.compute_loss(self(x), target)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_iou)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        logits = self._evaluate(batch, "test", self.test_iou)
        folder = self.trainer.log_dir if self.trainer.loggers else None
        if batch_idx == 0 and folder is not None and self.trainer.is_global_zero:
            x, target = self.unpack_batch(batch)
            draw(x, target, logits.argmax(1), Path(folder, "predictions.png"))

    def _evaluate(self, batch: Any, stage: str, iou: MulticlassJaccardIndex) -> Tensor:
        x, target = self.unpack_batch(batch)
        logits = self(x)
        iou.update(logits, target)
        self.log(f"{stage}/loss", self.compute_loss(logits, target))
        self.log(f"{stage}/iou", iou, prog_bar=True)
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TunedSegmenter(SAMMixin, EMATeacherMixin, CutMixMixin, DropBlockMixin, Segmenter):
    """The segmenter with techniques that take logits ``[N, C, H, W]``; config.yaml switches them off."""


def draw(x: Tensor, target: Tensor, predicted: Tensor, path: Path, columns: int = 10, every: int = 3) -> None:
    """Write a PNG: images, masks and predictions below each other.

    Args:
        x: Images ``[N, 3, H, W]`` on any scale.
        target: Class of each pixel, ``[N, H, W]``.
        predicted: The same, as predicted.
        path: The file.
        columns: Most images.
        every: Take every so many of them.
    """
    colours = ListedColormap([[value / 255 for value in PALETTE[i : i + 3]] for i in range(0, len(PALETTE), 3)])
    chosen = slice(0, columns * every, every)
    low, high = x.amin(), x.amax()
    images = ((x[chosen] - low) / (high - low)).permute(0, 2, 3, 1).cpu()
    rows = {"image": images, "mask": target[chosen].cpu(), "predicted": predicted[chosen].cpu()}
    figure = Figure(figsize=(0.4 + len(images), 3.2), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, cmap=colours, vmin=0, vmax=colours.N - 1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
