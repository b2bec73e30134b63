"""The schedules of the ready hosts by name."""

from __future__ import annotations

from typing import Literal, get_args

from torch.optim import Optimizer

from lightning_tuning.errors import InvalidValueError, check_choice, check_range
from lightning_tuning.timing.lr_scheduler import ScheduleLR

ScheduleName = Literal[
    "constant", "step", "exponential", "linear", "polynomial", "cosine", "one_cycle", "wsd", "inverse_sqrt"
]
"""The shapes of ``Schedule`` that need no settings."""


def check_schedule(schedule: object, warmup_steps: int) -> None:
    """Check a classifier's schedule arguments.

    Raises:
        InvalidValueError: If the schedule is neither a known name nor a callable, ``warmup_steps`` is negative, or a
            warm-up would be lost on a scheduler that has its own arguments.
    """
    check_range("warmup_steps", warmup_steps)
    if not callable(schedule):
        check_choice("schedule", schedule, get_args(ScheduleName), "a class path or callable that takes the optimizer")
    if warmup_steps > 0 and (callable(schedule) or schedule == "one_cycle"):
        why = "one_cycle has a rise of its own" if schedule == "one_cycle" else "only a schedule given by name uses it"
        others = ", ".join(name for name in get_args(ScheduleName) if name != "one_cycle")
        raise InvalidValueError(f"warmup_steps is {warmup_steps}, but {why}; leave it 0 or give one of {others}.")


def build_schedule(optimizer: Optimizer, name: ScheduleName, warmup_steps: int) -> ScheduleLR:
    """The scheduler by name. It is told the run's length when training starts (:meth:`ScheduleLR.set_total`).

    Args:
        optimizer: The optimizer.
        name: The shape, with its own settings.
        warmup_steps: Length of the warm-up in optimizer steps, 0 = none.
    """
    return ScheduleLR(optimizer, 1, name, f"{warmup_steps}st" if warmup_steps else None)
