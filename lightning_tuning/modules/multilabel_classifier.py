"""Classification into any number of classes at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_tuning.errors import check_range

from .checks import check_multi_hot
from .host import BaseHost, techniques_for
from .lean import Lean
from .losses import MultiLabelLossName, multilabel_loss
from .metrics import MultiLabelMetrics
from .networks import NetworkName
from .optimizers import OptimizerName
from .schedules import ScheduleName


class MultiLabelClassifier(BaseHost, metaclass=Lean, techniques=techniques_for("multilabel")):
    """Finds all classes of a sample, with the techniques that fit as arguments: ``MultiLabelClassifier(sam_rho=0.1)``.

    A batch is ``(x, target)``, the target multi-hot ``[N, C]``: 1 for each class that the sample has, else 0, of any
    type. It logs ``train/loss`` and ``train/accuracy`` (of a mixed target: what it gives to the predicted side) and, on
    validation and test data, ``val/`` and ``test/`` with ``loss``, ``accuracy``, ``f1`` and ``map`` (average
    precision), each the mean over the classes. A class is predicted where its probability is above 0.5.

    Example:
        >>> import torch
        >>> model = MultiLabelClassifier(network="mlp", num_classes=3, image_size=8)
        >>> model.compute_loss(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.6931)

    Args:
        network: ``mlp``, ``cnn`` (small), ``resnet18`` (3x3 stem for small images), ``wrn_16_2`` (Wide ResNet 16-2),
            or a class path of a network that turns ``x`` into logits ``[N, num_classes]``.
        num_classes: Number of classes, at least 2. (One class that is there or not is two classes of ImageClassifier.)
        loss: ``bce`` (binary cross entropy, mean over the classes), ``focal``, or a class path of a module called with
            logits and floating targets ``[N, C]``, returning the mean.
        class_weights: A factor for each class's part of a loss given by name, at least 0; null: none. The loss is
            divided by the number of samples and of classes, whatever the weights.
        focal_gamma: How much ``focal`` plays down what is classified well already, at least 0; 0 is ``bce``.
        focal_alpha: Weight of the positives in ``focal``, in [0, 1], the negatives having ``1 - focal_alpha``; the
            paper's 0.25. null: both 1.
    """

    task = "multilabel"
    outputs_argument = "num_classes"
    headline = "f1"

    def __init__(
        self,
        network: NetworkName | nn.Module = "cnn",
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 16,
        dropout: float = 0.0,
        loss: MultiLabelLossName | nn.Module = "bce",
        class_weights: list[float] | None = None,
        focal_gamma: float = 2.0,
        focal_alpha: float | None = None,
        optimizer: OptimizerName | OptimizerCallable = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        schedule: ScheduleName | LRSchedulerCallable = "constant",
        warmup_steps: int = 0,
    ) -> None:
        check_range("num_classes", num_classes, 2)
        training = (optimizer, lr, weight_decay, momentum, schedule, warmup_steps)
        super().__init__(network, num_classes, in_channels, image_size, dropout, *training)
        self.num_classes = num_classes
        self.loss = multilabel_loss(loss, num_classes, class_weights, focal_gamma, focal_alpha)
        self.val_metrics = MultiLabelMetrics(num_classes)
        self.test_metrics = MultiLabelMetrics(num_classes)

    def unpack_batch(self, batch: Any) -> tuple[Any, Tensor]:
        """Return ``(x, target)``, a multi-hot target as floats: as integers a mixin would take them for ids."""
        x, target = super().unpack_batch(batch)
        multi_hot = isinstance(target, Tensor) and target.ndim == 2
        return x, target.float() if multi_hot and not target.is_floating_point() else target

    def check_target(self, target: Any) -> None:
        check_multi_hot(target, self.num_classes)

    def predictions(self, outputs: Tensor) -> Tensor:
        """The probability of each class, ``[N, C]``."""
        return outputs.float().sigmoid()

    def training_terms(self, outputs: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        return {"accuracy": target.where(outputs > 0, 1 - target).mean()}
