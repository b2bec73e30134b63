"""A schedule without its target: warm-up, shape and end."""

from __future__ import annotations

import math
import re

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional.ramp import RAMP_SHAPES
from lightning_tuning.functional.schedule import between, warmup_height

from .durations import Duration, check_duration, duration_of
from .moments import Clock, Moment, PlainClock, level
from .shape_text import parse_shape
from .shapes import MultiStep, OneCycle, Size, Step

_WARMUP = re.compile(rf"(?:({'|'.join(RAMP_SHAPES)}) +)?(.+)")


class Curve:
    """How a value goes over a run: a pure function of the steps done and of the run's length.

    Args:
        shape: Its shape after the warm-up.
        warmup: Length of the rise before, with its form in front if it is not linear: ``5ep``, ``sigmoid 40%``. None:
            no rise.
        warmup_from: Where the rise begins: a number, or a share of the full value. The first step is made above it.
        until: The point of the run where the shape ends; afterwards the value stays. None: the end of the run.

    Raises:
        InvalidValueError: An argument is not allowed.

    Example:
        >>> Curve("cosine", warmup="2st").preview(6)
        [0.5, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]
    """

    def __init__(
        self, shape: str = "cosine", warmup: str | None = None, warmup_from: Size = 0.0, until: str | None = None
    ) -> None:
        self.shape = parse_shape(shape)
        self._warmup = _parse_warmup(warmup)
        self._from = level("warmup_from", warmup_from)
        self._until = None if until is None else duration_of(check_duration("until", until))
        if warmup is not None and isinstance(self.shape, OneCycle):
            raise InvalidValueError(
                f"warmup is {warmup!r}, but one_cycle has a rise of its own. Write it as one_cycle(rise=...)."
            )
        if warmup is None and self._from.size != 0:
            raise InvalidValueError(f"warmup_from is {warmup_from!r}, but there is no warm-up. Give warmup its length.")
        if until is not None and (not self.shape.has_length or getattr(self.shape, "every", None)):
            raise InvalidValueError(f"until is {until!r}, but {shape} has no end. Leave it out.")

    def value(self, full: float, step: float, clock: Clock, drops: int = 0) -> float:
        """The value that the optimizer step after ``step`` others has.

        Args:
            full: The value after the warm-up.
            step: Steps done.
            clock: Knows the run's length.
            drops: How often the metric of a plateau shape has stopped to improve.
        """
        begin = 0.0
        if self._warmup is not None:
            form, length = self._warmup
            begin = clock.at(length)
            if step < begin:
                return between(full, self._from.of(full), warmup_height(form, step, begin))
        return self.shape.value(full, Moment(step, begin, self._until, clock, drops))

    def durations(self) -> list[Duration]:
        """All durations in it."""
        own = [self._warmup[1] if self._warmup else None, self._until]
        return [*filter(None, own), *self.shape.durations()]

    def unreached(self, clock: Clock) -> list[str]:
        """The warm-up and the points of the run that lie behind its end.

        Raises:
            InvalidValueError: The shape ends before the warm-up does.
            MisconfigurationException: The clock cannot tell a length that is needed.
        """
        warmup = self._warmup[1] if self._warmup else None
        if warmup and self._until and clock.at(self._until) <= clock.at(warmup):
            raise InvalidValueError(
                f"until is '{self._until}', but the warm-up of {warmup} is not over then. Write a later until or a "
                "shorter warmup."
            )
        points = self.shape.durations() if isinstance(self.shape, (Step, MultiStep)) else []
        # A drop at the end comes before no step; a warm-up may end with the run.
        late = [f"the drop at {point}" for point in points if clock.at(point) >= clock.total]
        return [f"the end of the warm-up at {warmup}"] * bool(warmup and clock.at(warmup) > clock.total) + late

    def values(self, full: float, clock: Clock, count: int) -> list[float]:
        """The values at about so many points, spread over the whole run, or over as many steps of one without end.

        Raises:
            MisconfigurationException: The clock cannot tell a length that will be needed.
        """
        begin = clock.at(self._warmup[1]) if self._warmup else 0.0
        self.value(full, begin, clock)
        needs_end = self.shape.has_length or any(d.unit == "dur" for d in self.durations())
        total = clock.total if needs_end else max(10.0 * begin, count)
        every = max(math.ceil(total / count), 1)
        return [self.value(full, step, clock) for step in [*range(0, math.ceil(total), every), total]]

    def preview(
        self,
        total_steps: int,
        full: float = 1.0,
        steps_per_epoch: float | None = None,
        samples_per_step: float | None = None,
    ) -> list[float]:
        """The values of all steps of a run. A plateau shape does not drop in it.

        Args:
            total_steps: Optimizer steps of the run.
            full: The value after the warm-up.
            steps_per_epoch: For durations in epochs.
            samples_per_step: For durations in samples.
        """
        clock = PlainClock(total_steps, steps_per_epoch, samples_per_step)
        return [self.value(full, step, clock) for step in range(total_steps)]


def _parse_warmup(warmup: str | None) -> tuple[str, Duration] | None:
    if warmup is None:
        return None
    found = _WARMUP.fullmatch(warmup.strip()) if isinstance(warmup, str) else None
    length = check_duration("warmup", found[2] if found else warmup)
    return (found and found[1]) or "linear", duration_of(length)
