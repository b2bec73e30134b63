"""The clock of a run under way."""

from __future__ import annotations

from bisect import bisect_left

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from .durations import Duration, unrounded
from .progress import total_steps

_UNKNOWN = 1e12
"""Steps of a run that only its time limits, before its first step."""


class RunClock:
    """What schedules ask of a Trainer's run, from ``on_train_start`` on.

    A point of the run, such as the end of an epoch, is a number of steps as the Trainer counts them. Those that fp16's
    scaler skipped are taken out, so that a schedule which counts the others still arrives there in time.

    Args:
        trainer: The Trainer.
        skipped: The Trainer's numbers, from 0 and rising, of the steps that did not count. Later ones may be added.
    """

    def __init__(self, trainer: Trainer, skipped: list[int]) -> None:
        self._trainer, self._skipped, self._steps = trainer, skipped, 0
        self._timers = [c for c in trainer.callbacks if isinstance(c, Timer) and c._duration]  # type: ignore[attr-defined]
        self._time_share = 0.0
        self._known: dict[Duration, float] = {}

    def look(self, steps: int) -> None:
        """Take the time; all ranks have to do it together, and agree on the latest.

        Args:
            steps: The steps that have counted.
        """
        self._steps = steps
        if self._timers:
            shares = [timer.time_elapsed() / timer._duration for timer in self._timers if timer._duration]
            share = torch.tensor(max(shares), dtype=torch.float64, device=self._trainer.strategy.root_device)
            self._time_share = float(self._trainer.strategy.reduce(share, reduce_op="max"))

    @property
    def total(self) -> float:
        return min(self._counted(self._planned), self._by_time)

    def at(self, point: Duration) -> float:
        if point.unit == "st":
            return point.value
        if point.unit == "dur":
            return min(self._counted(unrounded(point.value * self._planned)), point.value * self._by_time)
        if point not in self._known:
            self._known[point] = point.steps(self._trainer)
        return self._counted(self._known[point])

    @property
    def _by_time(self) -> float:
        """The steps that the run has if its time goes on as it did."""
        return self._steps / self._time_share if self._time_share > 0 and self._steps > 0 else _UNKNOWN

    @property
    def _planned(self) -> float:
        """The steps of the run, those included that do not count, if its time suffices."""
        whole = Duration(1.0, "dur")
        if whole not in self._known:
            try:
                self._known[whole] = total_steps(self._trainer, "A schedule", "its durations in steps, as in 500st")
            except MisconfigurationException:
                if not self._timers:
                    raise
                self._known[whole] = _UNKNOWN
        return self._known[whole]

    def _counted(self, step: float) -> float:
        return step - bisect_left(self._skipped, step)
