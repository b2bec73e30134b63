"""Losses of one class a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tuning.errors import check_range
from lightning_tuning.functional import class_probabilities, softmax_focal
from lightning_tuning.functional.precision import at_least_float32

from .names import ClassificationLossName, check_loss
from .parts import PartsLoss, check_class_weights

IGNORED = -100
"""The id of positions that do not count, as in torch's cross entropy."""


class ClassificationLoss(PartsLoss):
    """A loss of logits ``[N, C, ...]`` for class ids ``[N, ...]`` or probabilities ``[N, C, ...]``.

    The mean over the positions of a sum of parts, one for each class. Ids count as one-hot probabilities, so both have
    the same loss. Positions with the id -100 do not count; where no position counts, the mean is NaN, as torch's is.

    Args:
        class_weights: What the part of each class is multiplied by; None: nothing. The sum is divided by the number of
            positions, never by the sum of the weights, so that ids and one-hot probabilities, k micro-batches and one
            batch agree. (``F.cross_entropy`` does so with probabilities, but divides by the sum of weights with ids.)
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss."""
        logits = at_least_float32(logits)
        if target.is_floating_point():
            return self.weighted_sum(logits, target.to(logits.dtype)).mean()
        target = target.long()
        counts = target != IGNORED
        one_hot = class_probabilities(target.where(counts, 0), logits.shape[1]).to(logits.dtype)
        return self.weighted_sum(logits, one_hot).where(counts, 0.0).sum() / counts.sum()


class CrossEntropy(ClassificationLoss):
    """``-y_c log p_c`` for each class of a softmax: cross entropy. Without weights it is torch's own.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> CrossEntropy()(logits, torch.tensor([0]))
        tensor(0.1269)
        >>> CrossEntropy([10.0, 1.0])(logits, torch.tensor([[1.0, 0.0]]))
        tensor(1.2693)
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.class_weights is not None:
            return super().forward(logits, target)
        logits = at_least_float32(logits)
        target = target.to(logits.dtype) if target.is_floating_point() else target.long()
        return F.cross_entropy(logits, target)

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        return -target * F.log_softmax(logits, dim=1)


class BinaryCrossEntropy(ClassificationLoss):
    """Cross entropy of a sigmoid for each class against all others, divided by C: the mean over the C decisions.

    Source: as a loss of one class a sample, Wightman et al., 2021, "ResNet strikes back".
    """

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none") / logits.shape[1]


class BrierScore(ClassificationLoss):
    """``(p_c - y_c)^2`` for each class of a softmax: the squared error of the probabilities, from 0 to 2.

    Source: Brier, 1950, "Verification of forecasts expressed in terms of probability": the sum over the classes, not
    their mean.
    """

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits.softmax(dim=1) - target).square()


class AbsoluteError(ClassificationLoss):
    """``|p_c - y_c|`` for each class of a softmax; for an id y the sum is ``2 - 2 p_y``. Robust to wrong labels.

    Source: Ghosh et al., 2017, "Robust loss functions under label noise for deep neural networks".
    """

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits.softmax(dim=1) - target).abs()


class Focal(ClassificationLoss):
    """``-y_c (1 - p_c)^gamma log p_c`` for each class of a softmax; ``class_weights`` are the paper's alpha.

    Args:
        class_weights: As for every loss of classes.
        gamma: How fast the weight of well-classified samples falls, >= 0; 0 is cross entropy.

    Source: Lin et al., 2017, "Focal loss for dense object detection", equations 4 and 5.
    """

    def __init__(self, class_weights: Sequence[float] | None = None, gamma: float = 2.0) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        return softmax_focal(logits, target, self.gamma)


def classification_loss(
    loss: ClassificationLossName | nn.Module,
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    focal_gamma: float = 2.0,
) -> nn.Module:
    """Return the loss of that name, or the module itself.

    Raises:
        InvalidValueError: If it is neither a loss for classes nor a module, or a setting is wrong.
    """
    check_loss(loss, "multiclass", class_weights)
    check_class_weights(class_weights, num_classes)
    check_range("focal_gamma", focal_gamma)
    if isinstance(loss, nn.Module):
        return loss
    if loss == "focal":
        return Focal(class_weights, focal_gamma)
    return {"cross_entropy": CrossEntropy, "bce": BinaryCrossEntropy, "mse": BrierScore, "mae": AbsoluteError}[loss](
        class_weights
    )
