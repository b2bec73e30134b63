"""What the ready hosts share, whatever their targets are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.mixins import TECHNIQUES, TuningMixin
from lightning_tuning.mixins.teachers import note_class
from lightning_tuning.mixins.terms import term_log
from lightning_tuning.timing.lr_scheduler import ScheduleLR
from lightning_tuning.timing.progress import total_steps

from .checks import check_data, explain_input
from .networks import NetworkName, build_network
from .optimizers import OptimizerName, build_optimizer, check_optimizer
from .schedules import ScheduleName, build_schedule, check_schedule


class BaseHost(LightningModule):
    """Network, optimizer, schedule, the steps and what they log. A subclass says what the targets are.

    It sets ``task``, ``outputs_argument``, ``headline``, ``loss``, ``val_metrics`` and ``test_metrics``, and defines
    ``check_target``, ``predictions`` and, if it has any, ``training_terms``.

    Args:
        network: The network, or its name.
        num_outputs: Number of the network's outputs.
        in_channels: Channels of the images, for a network given by name.
        image_size: Height and width of the images in pixels, for ``mlp`` only.
        dropout: Probability that a feature before the last layer is dropped, in [0, 1), for a network given by name.
            R-Drop needs it.
        optimizer: ``sgd``, ``rmsprop``, ``adam`` or ``adamw``, or a class path whose own ``init_args`` then hold the
            learning rate and all else.
        lr: Learning rate of an optimizer given by name, above 0.
        weight_decay: Weight decay of an optimizer given by name; not applied to biases and norm layers. 0 = none.
        momentum: Nesterov momentum of ``sgd``, in [0, 1). 0 = none.
        schedule: Factor on the learning rate, for each optimizer step of the run: ``constant``, ``step`` (0.1 from
            50 %, 0.01 from 75 %), ``exponential`` (down to 0.01), ``linear``, ``polynomial`` (of power 2) or ``cosine``
            (down to 0), ``one_cycle`` (up to the full rate at 30 %, down to 0), ``wsd`` (down to 0 in the last 20 %),
            ``inverse_sqrt`` (of the steps, from the warm-up on), or a class path of a scheduler, which steps once an
            epoch. The callback ``Schedule`` has more: leave this at ``constant`` with it.
        warmup_steps: Optimizer steps over which the learning rate first rises linearly to ``lr``; a schedule given by
            name then fills the rest of the run. 0 = none.

    Raises:
        InvalidValueError: If a name is unknown or a number is outside its range.
    """

    task: ClassVar[str]
    """The kind of target: ``multiclass``, ``multilabel`` or ``regression``."""
    outputs_argument: ClassVar[str]
    """The name of the argument that tells the number of the network's outputs."""
    headline: ClassVar[str]
    """The metric that the progress bar shows."""

    loss: nn.Module
    val_metrics: Any
    test_metrics: Any

    def __init__(
        self,
        network: NetworkName | nn.Module,
        num_outputs: int,
        in_channels: int,
        image_size: int,
        dropout: float,
        optimizer: OptimizerName | OptimizerCallable,
        lr: float,
        weight_decay: float,
        momentum: float,
        schedule: ScheduleName | LRSchedulerCallable,
        warmup_steps: int,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer, lr, weight_decay, momentum)
        check_schedule(schedule, warmup_steps)
        self.optimizer, self.lr, self.weight_decay, self.momentum = optimizer, lr, weight_decay, momentum
        self.schedule, self.warmup_steps = schedule, warmup_steps

        self._num_outputs = num_outputs
        self._to_match = {self.outputs_argument: num_outputs}
        self._built_for: tuple[str, int, int] | None = None
        if isinstance(network, nn.Module):
            if dropout:
                raise InvalidValueError(
                    f"dropout is {dropout}, but it is for a network given by name; set it in "
                    f"{type(network).__name__}'s own arguments."
                )
            self.network = network
        else:
            self.network = build_network(network, in_channels, num_outputs, image_size, dropout)
            self._built_for = network, in_channels, image_size
            self._to_match["in_channels"] = in_channels
        if network == "mlp":
            self._to_match["image_size"] = image_size
        self._checked: set[str] = set()

    def check_target(self, target: Any) -> None:
        """Raise :class:`InvalidValueError` unless ``target`` is of the kind that the host learns from."""
        raise NotImplementedError

    def predictions(self, outputs: Tensor) -> Tensor:
        """What ``predict_step`` makes of the network's outputs."""
        raise NotImplementedError

    def training_terms(self, outputs: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        """What is logged of a training step besides the loss."""
        return {}

    def forward(self, x: Any) -> Tensor:
        """Return the network's outputs, ``[N, C]``."""
        try:
            return self.network(x)
        except Exception as error:
            weight = next(self.network.parameters(), None)
            if self._built_for and weight is not None and (why := explain_input(x, *self._built_for, weight.dtype)):
                raise InvalidValueError(why) from error
            raise

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the network's outputs ``[N, C]`` for a batch's target."""
        name, wanted = self.outputs_argument, self._num_outputs
        if logits.ndim < 2 or logits.shape[1] != wanted:
            raise InvalidValueError(
                f"The network returned logits of shape {list(logits.shape)}; {name}={wanted} needs "
                f"[N, {wanted}]. Change the network's last layer or model.{name}."
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
        outputs = self(x)
        loss = self.compute_loss(outputs, target)
        self.log_term("loss", loss, prog_bar=True)
        for name, value in self.training_terms(outputs, target).items():
            self.log_term(name, value)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_metrics)

    def _evaluate(self, stage: str, batch: Any, metrics: Any) -> None:
        self._check_batch(stage, batch)
        x, target = self.unpack_batch(batch)
        outputs = self(x)
        loss = self.compute_loss(outputs, target)  # first, as it checks the outputs' shape
        metrics.update(outputs, target)
        self.log(f"{stage}/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(outputs))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return predictions ``[N, C]`` of a batch ``(x, target)`` or of ``x`` alone."""
        x = batch if isinstance(batch, Tensor) else self.unpack_batch(batch)[0]
        return self.predictions(self(x))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        note_class(self, checkpoint)

    def on_fit_start(self) -> None:
        check_data(getattr(self.trainer, "datamodule", None), self._to_match)
        self._checked.clear()
        term_log(self).clear()

    def on_train_start(self) -> None:
        if isinstance(self.schedule, str) and self.schedule not in ("constant", "inverse_sqrt"):
            length = total_steps(self.trainer)
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, ScheduleLR):
                    config.scheduler.set_total(length)

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
        self.log(f"val/{self.headline}", values.pop(self.headline), prog_bar=True, sync_dist=True)
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        values = self.test_metrics.compute()
        self.test_metrics.reset()
        self.log_dict({f"test/{name}": value for name, value in values.items() if value.ndim == 0}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        if isinstance(self.optimizer, str):
            optimizer = build_optimizer(self.optimizer, self.parameters(), self.lr, self.weight_decay, self.momentum)
        else:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.schedule == "constant" and self.warmup_steps == 0:
            return optimizer
        if isinstance(self.schedule, str):
            by_name = build_schedule(optimizer, self.schedule, self.warmup_steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": by_name, "interval": "step"}}
        scheduler = self.schedule(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _check_batch(self, stage: str, batch: Any) -> None:
        # On an accelerator the first batch only: a look at the values waits for the device.
        if stage not in self._checked or self.device.type == "cpu":
            self.check_target(self.unpack_batch(batch)[1])
            self._checked.add(stage)


def techniques_for(task: str, streams: bool = False) -> tuple[type[TuningMixin], ...]:
    """The techniques that make sense for a kind of target, in stage order.

    Args:
        task: The host's ``task``.
        streams: Whether its batches have an unlabelled part; without one nothing can be learnt from it.
    """
    return tuple(t for t in TECHNIQUES if task in t.tasks and (streams or not t.needs_streams))
