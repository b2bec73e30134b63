"""The plain classifier that the ready hosts put their mixins on."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_tuning.callbacks._image_grid import class_name
from lightning_tuning.callbacks._pictures import show_picture
from lightning_tuning.errors import check_range

from .checks import check_target
from .host import BaseHost
from .losses import ClassificationLossName, classification_loss
from .metrics import ClassificationMetrics, confusion_figure
from .networks import NetworkName
from .optimizers import OptimizerName
from .schedules import ScheduleName


class Classifier(BaseHost):
    """Classifier of images, or of anything else that the given network takes.

    A batch is ``(x, target)`` or ``{"labeled": (x, target), ...}``, the target ids ``[N]`` or probabilities ``[N, C]``.
    It logs ``train/loss`` and ``train/accuracy`` (``train/mixed_accuracy`` where the target is probabilities: the
    probability that the target gives to the predicted class) and, on validation and test data, ``val/`` and ``test/``
    with ``loss``, ``accuracy``, ``f1`` (macro) and ``calibration_error`` (15 bins). A test also leaves the confusion
    matrix in ``test_confusion`` and, if the run has a logger, as ``confusion_matrix.png`` in its directory.

    Args:
        network: ``mlp``, ``cnn`` (small), ``resnet18`` (3x3 stem for small images), ``wrn_16_2`` (Wide ResNet 16-2),
            or a class path of a network that turns ``x`` into logits ``[N, num_classes]``.
        num_classes: Number of classes, at least 2.
        loss: ``cross_entropy``; ``bce`` (a sigmoid for each class, mean over the classes); ``mse`` (Brier score) or
            ``mae`` of the softmax probabilities, summed over the classes; ``focal``; or a class path of a module called
            with logits ``[N, C]`` and a target of ids ``[N]`` or probabilities ``[N, C]``, returning the mean.
        class_weights: A factor for each class's part of a loss given by name, at least 0; null: none. The loss is
            divided by the number of samples, whatever the weights.
        focal_gamma: How much ``focal`` plays down what is classified well already, at least 0; 0 is cross entropy.

    Raises:
        InvalidValueError: If a name is unknown or a number is outside its range.

    Example:
        >>> import torch
        >>> model = Classifier(network="mlp", num_classes=3, image_size=8)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """

    task = "multiclass"
    outputs_argument = "num_classes"
    headline = "accuracy"

    def __init__(
        self,
        network: NetworkName | nn.Module = "cnn",
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 16,
        dropout: float = 0.0,
        loss: ClassificationLossName | nn.Module = "cross_entropy",
        class_weights: list[float] | None = None,
        focal_gamma: float = 2.0,
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
        self.loss = classification_loss(loss, num_classes, class_weights, focal_gamma)
        self.val_metrics = ClassificationMetrics(num_classes)
        self.test_metrics = ClassificationMetrics(num_classes, confusion=True)
        self.test_confusion: Tensor | None = None

    def check_target(self, target: Any) -> None:
        check_target(target, self.num_classes)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Class probabilities ``[N, C]``."""
        return outputs.float().softmax(1)

    def training_terms(self, outputs: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        predicted = outputs.argmax(1)
        if target.is_floating_point():
            return {"mixed_accuracy": target.gather(1, predicted[:, None]).mean()}
        return {"accuracy": (predicted == target).float().mean()}

    def on_test_epoch_end(self) -> None:
        self.test_confusion = self.test_metrics.confusion.compute().cpu()
        super().on_test_epoch_end()

    def on_test_end(self) -> None:
        # log_dir is a broadcast: every rank has to ask. Without a logger it would be the working directory.
        directory = self.trainer.log_dir if self.trainer.loggers else None
        if directory is None or self.test_confusion is None or not self.trainer.is_global_zero:
            return
        files = get_filesystem(directory)
        path = os.path.join(directory, "confusion_matrix.png")
        names = [class_name(self.trainer, k) for k in range(self.num_classes)]
        picture = io.BytesIO()
        confusion_figure(self.test_confusion, names).savefig(picture, format="png", dpi=120)
        try:
            files.makedirs(directory, exist_ok=True)
            with files.open(path, "wb") as file:
                file.write(picture.getvalue())
        except OSError as error:  # a full disk costs the picture, not what the test has found
            rank_zero_warn(f"{path} was not written: {error.strerror or error}.")
            return
        if os.path.exists(path):  # the folder may be a bucket
            show_picture(self.trainer, path)
