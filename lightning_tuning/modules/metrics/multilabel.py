"""What a classifier of any number of classes a sample reports on evaluation data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAccuracy, MultilabelAveragePrecision, MultilabelF1Score


class MultiLabelMetrics(nn.Module):
    """Accuracy, F1 and average precision (``map``), each the mean over the classes.

    A class is predicted where its probability is above 0.5. Without a positive example F1 and average precision of a
    class are 0. ``map`` is exact, for which all predictions are kept until ``reset``.

    Args:
        num_classes: Number of classes, at least 2.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # The metrics' own validation of every batch costs more than they do; the host checks the targets.
        self.accuracy = MultilabelAccuracy(num_classes, average="macro", validate_args=False)
        self.f1 = MultilabelF1Score(num_classes, average="macro", validate_args=False)
        self.map = MultilabelAveragePrecision(num_classes, average="macro", validate_args=False)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: ``[N, C]``.
            target: ``[N, C]`` from 0 to 1; from 0.5 on it counts as 1.
        """
        probabilities = logits.float().sigmoid()
        hard = (target >= 0.5).long()
        for metric in self.children():
            metric.update(probabilities, hard)  # type: ignore[operator]

    def compute(self) -> dict[str, Tensor]:
        """Return the values so far, over all ranks, by name."""
        return {name: metric.compute() for name, metric in self.named_children()}  # type: ignore[operator]

    def reset(self) -> None:
        """Start again."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]
