"""SpikeGuard: a step far above the last ones is not made."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Literal

from lightning.pytorch import Trainer

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range
from lightning_tuning.functional import spike_threshold

from ._guard import Guard
from ._step_gate import StepValues


class SpikeGuard(Guard):
    """Leaves out a step whose loss or gradient norm stands out from those of the last steps.

    A value is a spike above ``mean + sigma * deviation`` of the last ``window`` steps that were made; the deviation
    counts with at least 1 % of the mean. A value that is not finite always is. The loss is the mean over the
    accumulation window and all ranks, the norm that of the accumulated and reduced gradient before clipping. What a
    refused step leaves as it is, and what is written about it, is as for ``FiniteGuard``; list both for a patience of
    their own. Steps that fp16's scaler skips do not count.

    Args:
        watch: What is looked at: ``loss``, ``gradient`` (its norm) or ``both``.
        sigma: How many standard deviations above the mean a value may be, > 0.
        window: How many steps mean and deviation are taken of, at least 2.
        warmup: How many steps have to be known before it acts, from 2 to ``window``.
        robust: Whether median and median absolute deviation take the place of mean and standard deviation.
        patience: How many steps in a row may be spikes before ``action`` is taken, at least 1.
        action: What is done then. ``accept`` takes the new level for the normal one: the known steps are forgotten.
            ``stop`` raises ``DivergenceError`` (exit code 3). ``reduce_lr`` makes all further steps with ``lr_factor``
            times the scheduled learning rate. ``rewind`` puts weights, buffers and the optimizer's state back to the
            last snapshot; data, schedule and random numbers go on. If no step can be made after that either, the
            training stops.
        lr_factor: What ``reduce_lr`` multiplies learning rates by, between 0 and 1.
        rewind_every: With ``rewind``, good steps between two snapshots, at least 1. A snapshot is a copy of weights and
            the optimizer's state in main memory, and in each checkpoint.
        max_total: How many spikes the training stops after, whatever the action, at least 1. Null: no limit.

    Raises:
        InvalidValueError: If an argument is not allowed.
        DivergenceError: In training, as described.
        MisconfigurationException: When training starts, with manual optimization, LBFGS, or under strategies that split
            gradients over the processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SpikeGuard(watch="gradient")], logger=False, accelerator="cpu")
    """

    stem = "spike_guard"
    actions = ("accept", "stop", "reduce_lr", "rewind")

    def __init__(
        self,
        watch: Literal["loss", "gradient", "both"] = "loss",
        sigma: float = 6.0,
        window: int = 128,
        warmup: int = 32,
        robust: bool = False,
        patience: int = 10,
        action: Literal["accept", "stop", "reduce_lr", "rewind"] = "accept",
        lr_factor: float = 0.5,
        rewind_every: int = 100,
        max_total: int | None = None,
    ) -> None:
        check_choice("watch", watch, ("loss", "gradient", "both"))
        check_range("sigma", sigma, open_low=True)
        check_count("window", window, 2)
        check_count("warmup", warmup, 2)
        if warmup > window:
            raise InvalidValueError(f"warmup is {warmup}; it must be at most window, {window}.")
        self.watch = watch
        self.sigma = sigma
        self.window = window
        self.warmup = warmup
        self.robust = robust
        super().__init__(patience, action, lr_factor, rewind_every, max_total)

    def _reset(self) -> None:
        super()._reset()
        watched = ("loss", "gradient") if self.watch == "both" else (self.watch,)
        self._known: dict[str, deque[float]] = {name: deque(maxlen=self.window) for name in watched}

    def objection(self, values: StepValues) -> str | None:
        for what, value in (("loss", values.loss), ("gradient's norm", values.norm)):
            if value is not None and not math.isfinite(value):
                return f"the {what} was {value}"
        for name, known in self._known.items():
            value = _value(name, values)
            if value is None or len(known) < self.warmup:
                continue
            threshold = spike_threshold(known, self.sigma, self.robust)
            if value > threshold:
                what = "loss" if name == "loss" else "gradient's norm"
                return f"the {what} was {value:g}, above {threshold:g} ({self.sigma:g} sigma of the last {len(known)})"
        return None

    def on_let_through(self, trainer: Trainer, values: StepValues) -> None:
        super().on_let_through(trainer, values)
        for name, known in self._known.items():
            if (value := _value(name, values)) is not None:
                known.append(value)

    def _acts(self, trainer: Trainer) -> str:
        if self.action != "accept":
            return super()._acts(trainer)
        for known in self._known.values():
            known.clear()
        return f"their level is taken for the normal one, and {self.warmup} steps are made before the next is refused."

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "known": {name: [*known] for name, known in self._known.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for name, known in self._known.items():
            known.clear()
            known.extend(state_dict["known"].get(name, ()))


def _value(name: str, values: StepValues) -> float | None:
    return values.loss if name == "loss" else values.norm
