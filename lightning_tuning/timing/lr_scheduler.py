"""The shapes of schedules as a learning-rate scheduler of torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_tuning.errors import InvalidValueError, check_range

from .curves import Curve
from .moments import PlainClock
from .shapes import OnPlateau, Size


class ScheduleLR(LRScheduler):
    """Sets each group's learning rate as the callback ``Schedule`` does, stepped once after each optimizer step.

    For training loops of your own, manual optimization, and ``configure_optimizers``, where it is returned with
    ``{"scheduler": ..., "interval": "step"}``. There the callback needs less: it knows the run's length, and leaves
    out the steps that fp16's scaler skips, after which Lightning steps a scheduler too.

    Args:
        optimizer: The optimizer; its groups' learning rates are the full values.
        total_steps: Optimizer steps of the run, at least 1. After them the last value stays.
        shape: How the learning rate goes on after the warm-up, as ``Schedule`` takes it; no plateau.
        warmup: Length of the rise before, as in ``500st`` or ``cosine 0.05dur``. None: none.
        warmup_from: Where the rise begins: a number, or a share of the full value as in ``1%``.
        until: The point of the run where the shape ends. None: the run's end.
        steps_per_epoch: For durations in epochs.
        samples_per_step: For durations in samples.
        last_epoch: As of all of torch's schedulers: the steps done, less one; -1 begins anew.

    Raises:
        InvalidValueError: An argument is not allowed, or a duration's unit is not known.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> scheduler = ScheduleLR(optimizer, total_steps=4, shape="linear")
        >>> for _ in range(4):
        ...     print(scheduler.get_last_lr())
        ...     optimizer.step()
        ...     scheduler.step()
        [0.1]
        [0.07500000000000001]
        [0.05]
        [0.025]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        shape: str = "cosine",
        warmup: str | None = None,
        warmup_from: Size = 0.0,
        until: str | None = None,
        steps_per_epoch: float | None = None,
        samples_per_step: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        check_range("total_steps", total_steps, 1)
        self._curve = Curve(shape, warmup, warmup_from, until)
        if isinstance(self._curve.shape, OnPlateau):
            raise InvalidValueError(
                f"shape is {shape!r}, but ScheduleLR knows no metric. Use the callback Schedule, or torch's "
                "ReduceLROnPlateau."
            )
        self._units = steps_per_epoch, samples_per_step
        self._clock = PlainClock(total_steps, *self._units)
        super().__init__(optimizer, last_epoch)

    def set_total(self, total_steps: int) -> None:
        """Exchange the run's length, for where it becomes known late, and set the learning rates to match."""
        self._clock = PlainClock(total_steps, *self._units)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        step = self.last_epoch
        return [self._curve.value(float(full), step, self._clock) for full in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """What it counts, in plain numbers; the run's length and the shape are those of the object that loads it."""
        return {
            name: value for name, value in super().state_dict().items() if name not in ("_curve", "_clock", "_units")
        }
