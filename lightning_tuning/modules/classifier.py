"""The plain classifier that the ready hosts put their mixins on."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.mixins.terms import term_log

from .checks import check_data, check_target
from .losses import LossName, build_loss
from .metrics import ClassificationMetrics, confusion_figure
from .networks import NetworkName, build_network
from .optimizers import OptimizerName, build_optimizer, check_optimizer
from .schedules import ScheduleName, check_schedule, schedule_factor, total_steps


class Classifier(LightningModule):
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
        in_channels: Channels of the images, for a network given by name.
        image_size: Height and width of the images in pixels, for ``mlp`` only.
        dropout: Probability that a feature before the last layer is dropped, in [0, 1), for a network given by name.
            R-Drop needs it.
        loss: ``cross_entropy``, or a class path of a module called with logits ``[N, C]`` and a target of ids ``[N]``
            or probabilities ``[N, C]``, returning the mean.
        optimizer: ``sgd``, ``rmsprop``, ``adam`` or ``adamw``, or a class path whose own ``init_args`` then hold the
            learning rate and all else.
        lr: Learning rate of an optimizer given by name, above 0.
        weight_decay: Weight decay of an optimizer given by name; not applied to biases and norm layers. 0 = none.
        momentum: Nesterov momentum of ``sgd``, in [0, 1). 0 = none.
        schedule: Factor on the learning rate, for each optimizer step of the run: ``constant``, ``step`` (0.1 from
            50 %, 0.01 from 75 %), ``exponential`` (down to 0.01), ``cosine`` (down to 0), or a class path of a
            scheduler, which steps once an epoch.
        warmup_steps: Optimizer steps over which the learning rate first rises linearly to ``lr``; a schedule given by
            name then fills the rest of the run. 0 = none.

    Raises:
        InvalidValueError: If a name is unknown or a number is outside its range.

    Example:
        >>> import torch
        >>> model = Classifier(network="mlp", num_classes=3, image_size=8)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        network: NetworkName | nn.Module = "cnn",
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 16,
        dropout: float = 0.0,
        loss: LossName | nn.Module = "cross_entropy",
        optimizer: OptimizerName | OptimizerCallable = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        schedule: ScheduleName | LRSchedulerCallable = "constant",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        check_range("num_classes", num_classes, 2)
        check_optimizer(optimizer, lr, weight_decay, momentum)
        check_schedule(schedule, warmup_steps)
        self.num_classes = num_classes
        self.optimizer, self.lr, self.weight_decay, self.momentum = optimizer, lr, weight_decay, momentum
        self.schedule, self.warmup_steps = schedule, warmup_steps

        self._to_match = {"num_classes": num_classes}
        if isinstance(network, nn.Module):
            if dropout:
                raise InvalidValueError(
                    f"dropout is {dropout}, but it is for a network given by name; set it in "
                    f"{type(network).__name__}'s own arguments."
                )
            self.network = network
        else:
            self.network = build_network(network, in_channels, num_classes, image_size, dropout)
            self._to_match["in_channels"] = in_channels
        if network == "mlp":
            self._to_match["image_size"] = image_size
        self.loss = build_loss(loss)
        self.val_metrics = ClassificationMetrics(num_classes)
        self.test_metrics = ClassificationMetrics(num_classes, confusion=True)
        self.test_confusion: Tensor | None = None
        self._run_length = 1
        self._checked: set[str] = set()

    def forward(self, x: Any) -> Tensor:
        """Return logits ``[N, C]``."""
        return self.network(x)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits ``[N, C]`` and a target of ids ``[N]`` or probabilities ``[N, C]``."""
        if logits.ndim < 2 or logits.shape[1] != self.num_classes:
            raise InvalidValueError(
                f"The network returned logits of shape {list(logits.shape)}; num_classes={self.num_classes} needs "
                f"[N, {self.num_classes}]. Change the network's last layer or model.num_classes."
            )
        return self.loss(logits, target)

    def unpack_batch(self, batch: Any) -> tuple[Any, Tensor]:
        """Return ``(x, target)``, of the labelled part if the batch has two."""
        pair = batch["labeled"] if isinstance(batch, dict) and "labeled" in batch else batch
        if not isinstance(pair, (tuple, list)) or len(pair) < 2:
            raise InvalidValueError(
                f"The batch is a {type(pair).__name__}; it must be (x, target, ...) or "
                "{'labeled': (x, target, ...)}. Change the dataset, or define unpack_batch and pack_batch."
            )
        return pair[0], pair[1]

    def pack_batch(self, batch: Any, x: Any, target: Tensor) -> Any:
        """Return the batch with its inputs and its target exchanged; ``batch`` itself stays as it is."""
        if isinstance(batch, dict):
            return {**batch, "labeled": self.pack_batch(batch["labeled"], x, target)}
        return (x, target, *batch[2:])

    def log_term(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        """Record a scalar of this step as ``train/<name>``, its mean over the epoch as ``train/<name>_epoch``."""
        term_log(self).add(f"train/{name}", value, prog_bar)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = self.unpack_batch(batch)
        logits = self(x)
        loss = self.compute_loss(logits, target)
        self.log_term("loss", loss, prog_bar=True)
        predicted = logits.argmax(1)
        if target.is_floating_point():
            self.log_term("mixed_accuracy", target.gather(1, predicted[:, None]).mean())
        else:
            self.log_term("accuracy", (predicted == target).float().mean())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_metrics)

    def _evaluate(self, stage: str, batch: Any, metrics: ClassificationMetrics) -> None:
        self._check_batch(stage, batch)
        x, target = self.unpack_batch(batch)
        logits = self(x)
        metrics.update(logits, target)
        loss = self.compute_loss(logits, target)
        self.log(f"{stage}/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(logits))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities ``[N, C]`` of a batch ``(x, target)`` or of ``x`` alone."""
        x = batch if isinstance(batch, Tensor) else self.unpack_batch(batch)[0]
        return self(x).float().softmax(1)

    def on_fit_start(self) -> None:
        check_data(getattr(self.trainer, "datamodule", None), self._to_match)
        self._checked.clear()
        term_log(self).clear()

    def on_train_start(self) -> None:
        if isinstance(self.schedule, str) and self.schedule != "constant":
            self._run_length = total_steps(self.trainer)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._check_batch("train", batch)

    # With a mixin left of it both hand over: the first empties the log, the second finds nothing.
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        term_log(self).hand_over_step(self)

    def on_train_epoch_end(self) -> None:
        term_log(self).hand_over_epoch(self)

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()  # an earlier validation may have been broken off

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        values = self.val_metrics.compute()
        self.val_metrics.reset()
        self.log("val/accuracy", values.pop("accuracy"), prog_bar=True, sync_dist=True)
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        values = self.test_metrics.compute()
        self.test_metrics.reset()
        self.test_confusion = values.pop("confusion").cpu()
        self.log_dict({f"test/{name}": value for name, value in values.items()}, sync_dist=True)

    def on_test_end(self) -> None:
        # log_dir is a broadcast: every rank has to ask. Without a logger it would be the working directory.
        directory = self.trainer.log_dir if self.trainer.loggers else None
        if directory is None or self.test_confusion is None or not self.trainer.is_global_zero:
            return
        files = get_filesystem(directory)
        files.makedirs(directory, exist_ok=True)
        with files.open(os.path.join(directory, "confusion_matrix.png"), "wb") as file:
            confusion_figure(self.test_confusion).savefig(file, format="png", dpi=120)

    def configure_optimizers(self) -> Any:
        if isinstance(self.optimizer, str):
            optimizer = build_optimizer(self.optimizer, self.parameters(), self.lr, self.weight_decay, self.momentum)
        else:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.schedule == "constant" and self.warmup_steps == 0:
            return optimizer
        if isinstance(self.schedule, str):
            # The run's length is known from on_train_start on; the factor of step 0, taken here, does not need it.
            name, warmup = self.schedule, self.warmup_steps
            by_name = LambdaLR(optimizer, lambda step: schedule_factor(name, step, self._run_length, warmup))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": by_name, "interval": "step"}}
        scheduler = self.schedule(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _check_batch(self, stage: str, batch: Any) -> None:
        # On an accelerator the first batch only: a look at the values waits for the device.
        if stage not in self._checked or self.device.type == "cpu":
            check_target(self.unpack_batch(batch)[1], self.num_classes)
            self._checked.add(stage)
