"""What a classifier of one class a sample reports on evaluation data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

_LARGEST_WITH_COUNTS = 30


class ClassificationMetrics(nn.Module):
    """Accuracy, macro F1, expected calibration error over 15 bins and, if wanted, the confusion matrix.

    Macro F1 averages over the classes that occur among the targets or the predictions.

    Args:
        num_classes: Number of classes.
        confusion: Whether to count the confusion matrix as well.
    """

    def __init__(self, num_classes: int, confusion: bool = False) -> None:
        super().__init__()
        # The metrics' own validation of every batch costs more than they do; the classifier checks the targets.
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.f1 = MulticlassF1Score(num_classes, average="macro", validate_args=False)
        self.calibration_error = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1", validate_args=False)
        if confusion:
            self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: ``[N, C]``.
            target: Ids ``[N]``, or probabilities ``[N, C]``, of which the largest counts as the class.
        """
        if target.is_floating_point():
            target = target.argmax(1)
        probabilities = logits.float().softmax(1)
        for metric in self.children():
            metric.update(probabilities, target)  # type: ignore[operator]

    def compute(self) -> dict[str, Tensor]:
        """Return the values so far, over all ranks, by name."""
        return {name: metric.compute() for name, metric in self.named_children()}  # type: ignore[operator]

    def reset(self) -> None:
        """Start again."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]


def confusion_figure(counts: Tensor, names: Sequence[str] = ()) -> Figure:
    """Draw a confusion matrix as a heat map.

    The colour is the share of the true class; for up to 30 classes the counts are written into the cells, and the names
    beside them.

    Args:
        counts: ``[C, C]``, one row for each true class.
        names: Of the classes; default: their ids.
    """
    from matplotlib.figure import Figure

    classes = len(counts)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(3.0 + 0.45 * classes, 16.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix")
    if classes <= _LARGEST_WITH_COUNTS:
        labels = list(names) or [str(k) for k in range(classes)]
        axes.set_xticks(range(classes), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
        axes.set_yticks(range(classes), labels)
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, label="share of the true class")
    return figure
