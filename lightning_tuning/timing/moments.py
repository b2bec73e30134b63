"""When and how much: what the shapes of schedules are told, and the sizes that they are given."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from lightning_tuning.errors import InvalidValueError

from .durations import Duration, unrounded


class Clock(Protocol):
    """How long the run is. Steps are optimizer steps that count: not those that fp16's scaler skips."""

    @property
    def total(self) -> float:
        """Steps of the whole run."""

    def at(self, point: Duration) -> float:
        """Steps that are done at a point of the run."""


class PlainClock:
    """A run that is known in advance.

    Args:
        total_steps: Its optimizer steps.
        steps_per_epoch: For durations in epochs.
        samples_per_step: For durations in samples.

    Raises:
        InvalidValueError: When it is asked for a duration whose unit it does not know.

    Example:
        >>> PlainClock(100).at(Duration(0.25, "dur"))
        25.0
    """

    def __init__(
        self, total_steps: float, steps_per_epoch: float | None = None, samples_per_step: float | None = None
    ) -> None:
        self.total: float = total_steps
        self._unit = {
            "st": (1.0, "total_steps"),
            "dur": (total_steps, "total_steps"),
            "ep": (steps_per_epoch, "steps_per_epoch"),
            "smp": (1.0 / samples_per_step if samples_per_step else None, "samples_per_step"),
        }

    def at(self, point: Duration) -> float:
        length, argument = self._unit[point.unit]
        if length is None:
            raise InvalidValueError(f"The duration {point} needs {argument}. Give it, or write the duration in steps.")
        return unrounded(point.value * length)


class Moment(NamedTuple):
    """What a shape gives the value for: some step after the warm-up."""

    step: float
    """Steps done."""
    begin: float
    """Where the warm-up ended, in steps."""
    until: Duration | None
    """Where the shape ends; None: with the run."""
    clock: Clock
    drops: int = 0
    """How often the metric of a plateau shape has stopped to improve."""

    @property
    def position(self) -> float:
        """Steps since the warm-up."""
        return self.step - self.begin

    @property
    def length(self) -> float:
        """Steps from the warm-up to where the shape ends."""
        end = self.clock.total if self.until is None else self.clock.at(self.until)
        return max(end - self.begin, 1.0)

    @property
    def share(self) -> float:
        """The share of the length that is done, in [0, 1]."""
        return min(self.position / self.length, 1.0)


class Level(NamedTuple):
    """A size of the scheduled value: a number, or a share of the full value."""

    size: float
    relative: bool

    def of(self, full: float) -> float:
        return self.size * full if self.relative else self.size


def level(argument: str, value: object) -> Level:
    """The level that a number, or a text such as ``"1%"`` of the full value, describes.

    Raises:
        InvalidValueError: It describes none.

    Example:
        >>> level("end", "1%").of(0.5), level("end", 0.1).of(0.5)
        (0.005, 0.1)
    """
    text = str(value).strip()
    try:
        size = math.nan if isinstance(value, bool) else float(text.removesuffix("%"))
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise InvalidValueError(
            f"{argument} is {value!r}; it must be a number of at least 0, or a share of the full value as in '1%'."
        )
    return Level(size / 100, True) if text.endswith("%") else Level(size, False)
