"""Losses of values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional.precision import at_least_float32

from .names import RegressionLossName, check_loss


class RegressionLoss(nn.Module):
    """A loss of the error e of each value: the mean over all values.

    Args:
        name: ``mse`` (e^2), ``mae`` (|e|) or ``huber``: e^2 / 2 up to delta, delta (|e| - delta / 2) beyond (Huber,
            1964, "Robust estimation of a location parameter").
        delta: Where ``huber`` turns from square to straight, above 0, in the target's unit.

    Example:
        >>> import torch
        >>> RegressionLoss("huber", delta=1.0)(torch.tensor([[3.0], [0.5]]), torch.zeros(2, 1))  # (2.5 + 0.125) / 2
        tensor(1.3125)
    """

    def __init__(self, name: RegressionLossName, delta: float = 1.0) -> None:
        super().__init__()
        self.name, self.delta = name, delta

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of values of one shape."""
        if target.shape != predicted.shape:
            raise InvalidValueError(
                f"The predictions have shape {list(predicted.shape)}, the target has {list(target.shape)}; they must "
                "be equal."
            )
        predicted = at_least_float32(predicted)
        target = target.to(predicted.dtype)
        if self.name == "huber":
            return F.huber_loss(predicted, target, delta=self.delta)
        return F.mse_loss(predicted, target) if self.name == "mse" else F.l1_loss(predicted, target)


def regression_loss(loss: RegressionLossName | nn.Module, huber_delta: float = 1.0) -> nn.Module:
    """Return the loss of that name, or the module itself.

    Raises:
        InvalidValueError: If it is neither a loss for values nor a module, or ``huber_delta`` is not above 0.
    """
    check_loss(loss, "regression")
    check_range("huber_delta", huber_delta, open_low=True)
    return loss if isinstance(loss, nn.Module) else RegressionLoss(loss, huber_delta)
