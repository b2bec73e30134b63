"""Learning-rate schedules by name: a factor for each optimizer step, a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal, get_args

from lightning_tuning.errors import InvalidValueError, check_choice, check_range
from lightning_tuning.timing.progress import total_steps as total_steps

ScheduleName = Literal["constant", "step", "exponential", "cosine"]


def check_schedule(schedule: object, warmup_steps: int) -> None:
    """Check a classifier's schedule arguments.

    Raises:
        InvalidValueError: If the schedule is neither a known name nor a callable, ``warmup_steps`` is negative, or a
            warm-up would be lost on a scheduler that has its own arguments.
    """
    check_range("warmup_steps", warmup_steps)
    if not callable(schedule):
        check_choice("schedule", schedule, get_args(ScheduleName), "a class path or callable that takes the optimizer")
    elif warmup_steps > 0:
        raise InvalidValueError(
            f"warmup_steps is {warmup_steps}, which only a schedule given by name uses; leave it 0 or give one of "
            f"{', '.join(get_args(ScheduleName))}."
        )


def schedule_factor(name: str, step: int, total: int, warmup: int = 0) -> float:
    """Return what the learning rate is multiplied by at one optimizer step.

    The factor rises linearly from ``1 / warmup`` to 1 over the first ``warmup`` steps. Then, with ``p`` rising from 0
    at the end of the warm-up to 1 at the end of the run:

    - ``constant``: 1;
    - ``step``: 1, 0.1 from ``p = 0.5`` and 0.01 from ``p = 0.75``;
    - ``exponential``: ``0.01 ** p``;
    - ``cosine``: ``(1 + cos(pi * p)) / 2``, which ends at 0.

    Args:
        name: The schedule's name.
        step: Optimizer steps taken so far, from 0.
        total: Optimizer steps of the whole run; after it the last factor holds.
        warmup: Length of the warm-up in optimizer steps, 0 = none.

    Example:
        >>> [schedule_factor("step", step, total=8) for step in range(8)]
        [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
        >>> [schedule_factor("constant", step, total=8, warmup=4) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    p = min((step - warmup) / max(total - warmup, 1), 1.0)
    if name == "step":
        return 0.01 if p >= 0.75 else 0.1 if p >= 0.5 else 1.0
    if name == "exponential":
        return 0.01**p
    if name == "cosine":
        return (1.0 + math.cos(math.pi * p)) / 2
    return 1.0
