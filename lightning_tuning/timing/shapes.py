"""The shapes of schedules, with their settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range
from lightning_tuning.functional.schedule import (
    between,
    cosine_height,
    drops_factor,
    inverse_sqrt_factor,
    one_cycle_heights,
    place_in_cycle,
    polynomial_height,
    stable_decay_height,
)

from .durations import Duration, check_duration, duration_of
from .moments import Moment, level

Size = str | float
"""A number, or a share of the full value as in ``"1%"``."""
Form = Literal["linear", "sqrt", "cosine"]
_DURATIONS = ("every", "first", "rise", "decay", "scale")
_SIZES = ("start", "end")


@dataclass(frozen=True)
class Shape:
    """How a value goes on after its warm-up. The fields are what may stand in brackets behind its name."""

    name: ClassVar[str]
    has_length: ClassVar[bool] = True
    """Whether it ends somewhere: with the run, or earlier."""

    def __post_init__(self) -> None:
        for field in fields(self):
            argument, value = f"{self.name}({field.name}=...)", getattr(self, field.name)
            if field.name in _DURATIONS and value is not None:
                check_duration(argument, value)
            elif field.name in _SIZES:
                level(argument, value)
            elif field.name == "gamma":
                check_range(argument, value)

    def value(self, full: float, now: Moment) -> float:
        """The value at a moment after the warm-up, where it was ``full``."""
        raise NotImplementedError

    def durations(self) -> list[Duration]:
        """The durations among its settings."""
        given = [getattr(self, field.name) for field in fields(self) if field.name in _DURATIONS]
        return [duration_of(text) for text in given if text is not None]


class Towards(Shape):
    """A shape between the full value and its end."""

    end: Size

    def value(self, full: float, now: Moment) -> float:
        return between(full, level("end", self.end).of(full), self.height(now))

    def height(self, now: Moment) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Shape):
    """The full value."""

    name = "constant"
    has_length = False

    def value(self, full: float, now: Moment) -> float:
        return full


@dataclass(frozen=True)
class Step(Shape):
    """Times ``gamma`` every so often, counted from the run's start; without ``every`` after a half and three quarters
    of what follows the warm-up."""

    every: str | None = None
    gamma: float = 0.1
    name = "step"

    def value(self, full: float, now: Moment) -> float:
        if self.every is None:
            return full * drops_factor((now.share >= 0.5) + (now.share >= 0.75), self.gamma)
        every = duration_of(self.every)

        def drop(number: int) -> float:
            return now.clock.at(Duration(number * every.value, every.unit))

        drops = int(now.step / max(drop(1), 1.0))  # nearly: epochs may differ in length
        while drop(drops + 1) <= now.step:
            drops += 1
        while drops > 0 and drop(drops) > now.step:
            drops -= 1
        return full * drops_factor(drops, self.gamma)


@dataclass(frozen=True)
class MultiStep(Shape):
    """Times ``gamma`` at each of these points of the run."""

    at: tuple[str, ...] = ()
    gamma: float = 0.1
    name = "multi_step"
    has_length = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at:
            raise InvalidValueError("multi_step needs the points where it drops, as in multi_step(30ep, 60ep).")
        for point in self.at:
            check_duration("multi_step(...)", point)

    def value(self, full: float, now: Moment) -> float:
        drops = sum(now.clock.at(point) <= now.step for point in self.durations())
        return full * drops_factor(drops, self.gamma)

    def durations(self) -> list[Duration]:
        return [duration_of(point) for point in self.at]


@dataclass(frozen=True)
class Exponential(Shape):
    """The same factor at each step, down to ``end``."""

    end: Size = "1%"
    name = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if level("end", self.end).size == 0:
            raise InvalidValueError("exponential(end=0) cannot be: it never gets to 0. Write a small end, as in 1%.")

    def value(self, full: float, now: Moment) -> float:
        end = level("end", self.end)
        return full * (end.size if end.relative else end.size / full) ** now.share


@dataclass(frozen=True)
class Linear(Towards):
    """In a line to ``end``."""

    end: Size = 0.0
    name = "linear"

    def height(self, now: Moment) -> float:
        return polynomial_height(now.share, 1.0)


@dataclass(frozen=True)
class Polynomial(Towards):
    """To ``end`` as what is left of the way, to the ``power``."""

    power: float = 2.0
    end: Size = 0.0
    name = "polynomial"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("polynomial(power=...)", self.power, open_low=True)

    def height(self, now: Moment) -> float:
        return polynomial_height(now.share, self.power)


@dataclass(frozen=True)
class Cosine(Towards):
    """To ``end`` in half a wave."""

    end: Size = 0.0
    name = "cosine"

    def height(self, now: Moment) -> float:
        return cosine_height(now.share)


@dataclass(frozen=True)
class CosineRestarts(Towards):
    """Half waves to ``end``, each ``growth`` times as long as the one before."""

    first: str | None = None
    growth: float = 1.0
    end: Size = 0.0
    name = "cosine_restarts"
    has_length = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first is None:
            raise InvalidValueError("cosine_restarts needs the length of its first cycle, as in cosine_restarts(10ep).")
        check_range("cosine_restarts(growth=...)", self.growth, 1.0)

    def height(self, now: Moment) -> float:
        first = now.clock.at(duration_of(self.first or ""))
        return cosine_height(place_in_cycle(now.position, first, self.growth))


@dataclass(frozen=True)
class OneCycle(Shape):
    """Half a wave from ``start`` to the full value, and one to ``end``: its own warm-up."""

    rise: str = "30%"
    start: Size = "4%"
    end: Size = "0.0004%"
    name = "one_cycle"

    def value(self, full: float, now: Moment) -> float:
        rises, height = one_cycle_heights(now.position, now.length, now.clock.at(duration_of(self.rise)))
        return between(full, level("start", self.start if rises else self.end).of(full), height)


@dataclass(frozen=True)
class StableDecay(Towards):
    """The full value, and in the last ``decay`` of the way to ``end``."""

    decay: str = "20%"
    form: Form = "linear"
    end: Size = 0.0
    name = "wsd"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("wsd(form=...)", self.form, get_args(Form))

    def height(self, now: Moment) -> float:
        decay = min(now.clock.at(duration_of(self.decay)), now.length)
        return stable_decay_height(self.form, now.length - now.position, decay)


@dataclass(frozen=True)
class InverseSqrt(Shape):
    """One over the root of the steps, from ``scale`` on; without it, from the end of the warm-up on."""

    scale: str | None = None
    name = "inverse_sqrt"
    has_length = False

    def value(self, full: float, now: Moment) -> float:
        scale = now.begin if self.scale is None else now.clock.at(duration_of(self.scale))
        return full * inverse_sqrt_factor(now.position, max(scale, 1.0))


@dataclass(frozen=True)
class OnPlateau(Shape):
    """Times ``gamma`` whenever ``monitor`` has stopped to improve, but not below ``end``."""

    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: int = 10
    gamma: float = 0.1
    threshold: float = 1e-4
    cooldown: int = 0
    end: Size = 0.0
    name = "plateau"
    has_length = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("plateau(mode=...)", self.mode, ("min", "max"))
        check_count("plateau(patience=...)", self.patience, 0)
        check_count("plateau(cooldown=...)", self.cooldown, 0)
        check_range("plateau(threshold=...)", self.threshold)
        check_range("plateau(gamma=...)", self.gamma, 0.0, 1.0, open_high=True)

    def value(self, full: float, now: Moment) -> float:
        return max(full * drops_factor(now.drops, self.gamma), level("end", self.end).of(full))


SHAPES: dict[str, type[Shape]] = {
    shape.name: shape
    for shape in (
        *(Constant, Step, MultiStep, Exponential, Linear, Polynomial),
        *(Cosine, CosineRestarts, OneCycle, StableDecay, InverseSqrt, OnPlateau),
    )
}
