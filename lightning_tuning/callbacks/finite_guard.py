"""FiniteGuard: a loss or gradient that is not finite changes nothing."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_tuning.errors import DivergenceError

from ._diagnosis import diagnose
from ._guard import Guard
from ._step_gate import StepValues

_SAVES = ("_save_topk_checkpoint", "_save_last_checkpoint")


class FiniteGuard(Guard):
    """Keeps a loss or gradient that is not finite from changing anything, and a broken model from being saved.

    The step is not made, as fp16's scaler does not make one that overflows: weights, moments, step counts, averages and
    teachers stay, and buffers such as batch norm's statistics are put back. Under accumulation the whole window is left
    out, and the ranks decide together. Which batch it was, with its samples where they can be known, is written to
    ``bad_batches.jsonl`` in the run's folder. The learning-rate schedule and ``global_step`` go on. Steps that fp16's
    scaler skips are its own business: only a loss that is not finite, or a gradient at a scale of 1 or less, counts.

    While weights, buffers or the optimizer's state are not finite, no ``ModelCheckpoint`` saves: the last good file
    stays. A training that ends like that raises ``DivergenceError`` (exit code 3).

    Args:
        patience: How many steps in a row may be bad before ``action`` is taken, at least 1.
        action: What is done then. ``stop`` raises ``DivergenceError`` (exit code 3). ``reduce_lr`` makes all further
            steps with ``lr_factor`` times the scheduled learning rate. ``rewind`` puts weights, buffers and the
            optimizer's state back to the last snapshot; data, schedule and random numbers go on, so the batches in
            between are not met again in this epoch. If no step can be made after that either, the training stops.
        lr_factor: What ``reduce_lr`` multiplies learning rates by, between 0 and 1.
        rewind_every: With ``rewind``, good steps between two snapshots, at least 1. A snapshot is a copy of weights and
            the optimizer's state in main memory, and in each checkpoint.
        max_total: How many bad steps the training stops after, whatever the action, at least 1. Null: no limit.

    Raises:
        InvalidValueError: If an argument is not allowed.
        DivergenceError: In training, as described.
        MisconfigurationException: When training starts, with manual optimization, LBFGS, or under strategies that split
            gradients over the processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> guard = FiniteGuard(patience=3, action="rewind")
        >>> trainer = Trainer(callbacks=[guard], logger=False, accelerator="cpu")
    """

    stem = "finite_guard"

    def __init__(
        self,
        patience: int = 10,
        action: Literal["stop", "reduce_lr", "rewind"] = "stop",
        lr_factor: float = 0.5,
        rewind_every: int = 100,
        max_total: int | None = None,
    ) -> None:
        super().__init__(patience, action, lr_factor, rewind_every, max_total)
        self._infinite: set[str] = set()
        self._told = False

    def objection(self, values: StepValues) -> str | None:
        if values.loss is not None and not math.isfinite(values.loss):
            return f"the loss was {values.loss}"
        return None if math.isfinite(values.norm) else f"the gradient's norm was {values.norm}"

    # Checkpoints.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        # Masks of attention hold infinities for good, and a metric's minimum begins as one.
        trained = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        held = {**_weights_and_buffers(pl_module), **pl_module.state_dict()}
        self._infinite = {
            name
            for name, value in held.items()
            if name not in trained and isinstance(value, Tensor) and not _are_finite([value])
        }
        self._told = False
        for callback in _savers(trainer):
            for name in _SAVES:
                setattr(callback, name, partial(self._save_if_finite, getattr(type(callback), name), callback))

    def _save_if_finite(self, save: Any, callback: ModelCheckpoint, trainer: Trainer, *args: Any) -> None:
        if self._all_ranks_are_finite(trainer):
            save(callback, trainer, *args)

    def _all_ranks_are_finite(self, trainer: Trainer) -> bool:
        finite = trainer.strategy.reduce_boolean_decision(self._is_finite(trainer), all=True)
        if not finite and not self._told:
            self._told = True
            diagnose(
                trainer,
                "FiniteGuard: weights, buffers or the optimizer's state are not finite; no checkpoint is saved.",
            )
        return finite

    def _is_finite(self, trainer: Trainer) -> bool:
        """Whether what a checkpoint would hold is finite."""
        raw = _weights_and_buffers(trainer.lightning_module)
        saved = trainer.strategy.lightning_module_state_dict()  # averages, where there are some
        both = [*raw.items(), *saved.items()]
        held = [v for name, v in both if isinstance(v, Tensor) and name not in self._infinite]
        state = [v for o in trainer.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
        return _are_finite([*held, *state])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._all_ranks_are_finite(trainer):
            raise DivergenceError(
                "The training has ended with weights, buffers or an optimizer's state that are not finite. Checkpoints "
                "are of before that. Lower the learning rate or clip gradients (trainer.gradient_clip_val)."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # ModelCheckpoint saves at an exception too. No rank may be waited for here; they hold the same weights.
        if self._gate is not None and not self._is_finite(trainer):
            for callback in _savers(trainer):
                callback._last_global_step_saved = trainer.global_step
        super().on_exception(trainer, pl_module, exception)

    def _leave(self) -> None:
        if self._gate is not None:
            for callback in _savers(self._gate.trainer):
                for name in _SAVES:
                    vars(callback).pop(name, None)
        super()._leave()


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _weights_and_buffers(module: LightningModule) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def _are_finite(tensors: list[Tensor]) -> bool:
    # The sum of finite numbers may overflow, so a sum that is not finite is looked at again.
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point() and not t.sum().isfinite())
