"""What the callbacks that read or edit gradients share."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_tuning.errors import NoEffectError
from lightning_tuning.functional import step_was_skipped


def holds_whole_gradients(strategy: Strategy) -> bool:
    """Whether each process has every gradient as a whole."""
    return isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and not isinstance(strategy, DeepSpeedStrategy)


def is_logging_step(trainer: Trainer) -> bool:
    """Whether the loggers get values after this batch."""
    return bool(trainer.loggers) and trainer._logger_connector.should_update_logs


def scaler_of_scaled_gradients(plugin: Precision, optimizer: Optimizer) -> GradScaler | None:
    """The scaler whose factor the gradients still carry in the hooks of the step: fused optimizers unscale them within
    their step only."""
    scaler = getattr(plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return None
    return scaler if scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY else None


def remaining_scale(trainer: Trainer, optimizer: Optimizer, beside: Tensor) -> Tensor | None:
    """The factor that the gradients still carry, beside a tensor and without waiting for the device; None for none."""
    scaler = scaler_of_scaled_gradients(trainer.precision_plugin, optimizer)
    return None if scaler is None else scaler.scale(beside.new_ones(()))


def clipping_callbacks(trainer: Trainer, callback: Callback) -> tuple[list[GradientCallback], list[GradientCallback]]:
    """The callbacks that clip gradients behind ``callback`` in the Trainer's list, and those in front of it."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    place = callbacks.index(callback)
    parts = callbacks[place:], callbacks[:place]
    behind, in_front = ([c for c in part if isinstance(c, GradientCallback) and c.clips] for part in parts)
    return behind, in_front


class StepFollower(Callback):
    """Base of the callbacks that want to know which optimizer steps counted."""

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[RemovableHandle] = []

    def follow_steps(self, trainer: Trainer) -> None:
        """Have :meth:`_on_step` called after each optimizer step that counted. Call it in ``on_fit_start``."""
        self._release()
        for i, optimizer in enumerate(trainer.optimizers):

            def stepped(optimizer: Optimizer, args: Any, kwargs: Any, index: int = i) -> None:
                if not step_was_skipped(optimizer):
                    self._on_step(index)

            self._handles.append(optimizer.register_step_post_hook(stepped))

    def _on_step(self, index: int) -> None:
        """The optimizer of that index changed the weights."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        while self._handles:
            self._handles.pop().remove()


class GradientCallback(StepFollower):
    """Base of the callbacks that edit the gradient between backward pass and optimizer step.

    It refuses strategies that split gradients and models in which nothing qualifies, hands terms to the loggers at
    logging steps, and tells which optimizer steps counted.
    """

    changes: ClassVar[tuple[str, ...]] = ("gradient",)
    """What of the training it changes."""
    clips: ClassVar[bool] = False
    """Whether it makes gradients shorter."""
    nothing: ClassVar[str] = "has no trained parameter"
    """How the sentence about a model goes on in which it can change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._terms: dict[str, Tensor | float] = {}

    def _acts_on(self, parameter: nn.Parameter) -> bool:
        """Whether this callback changes the parameter's gradient."""
        return True

    def edited(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The optimizer's parameters whose gradient is there to be changed."""
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        return [p for p in parameters if p.grad is not None and self._acts_on(p)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self).__name__
        if not holds_whole_gradients(trainer.strategy):
            raise MisconfigurationException(
                f"{name} cannot work under {type(trainer.strategy).__name__}: no process holds whole gradients there. "
                "Train on a single device or with DDP (preset:ddp), or remove the callback."
            )
        trained = (p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"])
        if not any(p.requires_grad and self._acts_on(p) for p in trained):
            raise NoEffectError(
                f"{name} would do nothing: {type(pl_module).__name__} {self.nothing}. Remove the callback."
            )
        self._terms.clear()

    def add_term(self, trainer: Trainer, optimizer: Optimizer, name: str, value: Tensor | float) -> None:
        """Log ``train/<name>`` at this logging step, with several optimizers ``train/<name>/optimizer<i>``."""
        suffix = f"/optimizer{trainer.optimizers.index(optimizer)}" if len(trainer.optimizers) > 1 else ""
        self._terms[f"train/{name}{suffix}"] = value

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._terms and is_logging_step(trainer):
            terms = {name: float(value) for name, value in self._terms.items()}
            trainer._logger_connector.log_metrics(terms)  # type: ignore[arg-type]
        self._terms.clear()
