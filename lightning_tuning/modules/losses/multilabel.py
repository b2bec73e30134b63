"""Losses of any number of classes a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import sigmoid_focal
from lightning_tuning.functional.precision import at_least_float32

from .names import MultiLabelLossName, check_loss
from .parts import PartsLoss, check_class_weights


class MultiLabelLoss(PartsLoss):
    """Binary cross entropy of logits and targets ``[N, C, ...]``: the mean over all positions and classes.

    Args:
        class_weights: What the part of each class is multiplied by; None: nothing. The sum is divided by C and the
            number of positions, never by the sum of the weights.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a target from 0 to 1, floating, integer or boolean."""
        if target.shape != logits.shape:
            raise InvalidValueError(
                f"The logits have shape {list(logits.shape)}, the target has {list(target.shape)}; they must be equal."
            )
        logits = at_least_float32(logits)
        return self.weighted_sum(logits, target.to(logits.dtype)).mean() / logits.shape[1]

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


class SigmoidFocal(MultiLabelLoss):
    """The focal loss of each decision (Lin et al., 2017, equations 4 and 5).

    Args:
        class_weights: As for every loss of classes.
        gamma: How fast the weight of well-classified samples falls, >= 0; 0 is binary cross entropy.
        alpha: Weight of the positives, that of the negatives being ``1 - alpha``; None: both 1.
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, gamma: float = 2.0, alpha: float | None = None
    ) -> None:
        super().__init__(class_weights)
        self.gamma, self.alpha = gamma, alpha

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal(logits, target, self.gamma, self.alpha)


def multilabel_loss(
    loss: MultiLabelLossName | nn.Module,
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    focal_gamma: float = 2.0,
    focal_alpha: float | None = None,
) -> nn.Module:
    """Return the loss of that name, or the module itself.

    Raises:
        InvalidValueError: If it is neither a loss for several classes nor a module, or a setting is wrong.
    """
    check_loss(loss, "multilabel", class_weights)
    check_class_weights(class_weights, num_classes)
    check_range("focal_gamma", focal_gamma)
    if focal_alpha is not None:
        check_range("focal_alpha", focal_alpha, 0.0, 1.0)
    if isinstance(loss, nn.Module):
        return loss
    return MultiLabelLoss(class_weights) if loss == "bce" else SigmoidFocal(class_weights, focal_gamma, focal_alpha)
