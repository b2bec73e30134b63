"""Regression of one or several values."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_tuning.errors import check_range

from .checks import check_values
from .host import BaseHost, techniques_for
from .lean import Lean
from .losses import RegressionLossName, regression_loss
from .metrics import RegressionMetrics
from .networks import NetworkName
from .optimizers import OptimizerName
from .schedules import ScheduleName


class Regressor(BaseHost, metaclass=Lean, techniques=techniques_for("regression")):
    """Predicts values, with the techniques that fit as arguments: ``Regressor(in_channels=10, mixup_alpha=0.2)``.

    A batch is ``(x, target)``, the target floats ``[N, D]``, or ``[N]`` where D is 1. It logs ``train/loss`` and, on
    validation and test data, ``val/`` and ``test/`` with ``loss``, ``rmse``, ``mae`` and ``r2`` (the mean over the
    outputs). Targets are taken as they are: bring them to about mean 0 and deviation 1 in the dataset.

    Example:
        >>> import torch
        >>> model = Regressor(in_channels=10, num_outputs=2)
        >>> model(torch.zeros(4, 10)).shape
        torch.Size([4, 2])

    Args:
        network: ``mlp``, ``cnn`` (small), ``resnet18`` (3x3 stem for small images), ``wrn_16_2`` (Wide ResNet 16-2),
            or a class path of a network that turns ``x`` into predictions ``[N, num_outputs]``.
        num_outputs: D, the number of values a sample, at least 1.
        in_channels: Channels of the images, or numbers in a vector, for a network given by name.
        image_size: Height and width of the images in pixels, for ``mlp`` only; 1: vectors ``[N, in_channels]``.
        loss: ``mse``, ``mae``, ``huber`` (each the mean over samples and outputs), or a class path of a module called
            with predictions and targets ``[N, D]``, returning the mean.
        huber_delta: Error up to which ``huber`` is half the square and beyond which it is a straight line, above 0, in
            the target's unit.
    """

    task = "regression"
    outputs_argument = "num_outputs"
    headline = "rmse"

    def __init__(
        self,
        network: NetworkName | nn.Module = "mlp",
        num_outputs: int = 1,
        in_channels: int = 1,
        image_size: int = 1,
        dropout: float = 0.0,
        loss: RegressionLossName | nn.Module = "mse",
        huber_delta: float = 1.0,
        optimizer: OptimizerName | OptimizerCallable = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        schedule: ScheduleName | LRSchedulerCallable = "constant",
        warmup_steps: int = 0,
    ) -> None:
        check_range("num_outputs", num_outputs, 1)
        training = (optimizer, lr, weight_decay, momentum, schedule, warmup_steps)
        super().__init__(network, num_outputs, in_channels, image_size, dropout, *training)
        self.num_outputs = num_outputs
        self.loss = regression_loss(loss, huber_delta)
        self.val_metrics = RegressionMetrics(num_outputs)
        self.test_metrics = RegressionMetrics(num_outputs)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of predictions ``[N, D]``, D being ``num_outputs``, for a target of the same shape or,
        where D is 1, ``[N]``."""
        return super().compute_loss(logits, self._as_columns(target))

    def unpack_batch(self, batch: Any) -> tuple[Any, Tensor]:
        """Return ``(x, target)``, a target ``[N]`` as ``[N, 1]``: else its error would be one of all pairs."""
        x, target = super().unpack_batch(batch)
        return x, self._as_columns(target)

    def _as_columns(self, target: Any) -> Any:
        alone = isinstance(target, Tensor) and target.is_floating_point() and target.ndim == self.num_outputs == 1
        return target[:, None] if alone else target

    def check_target(self, target: Any) -> None:
        check_values(target, self.num_outputs)

    def predictions(self, outputs: Tensor) -> Tensor:
        """The values ``[N, D]``."""
        return outputs.float()
