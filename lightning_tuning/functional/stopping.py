"""When to stop: what a sequence of measured values says, without a Trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from .smoothing import Smoothing


class Position(NamedTuple):
    """A point in a run: how many checks, optimizer steps and epochs are done."""

    checks: int = 0
    steps: int = 0
    epochs: float = 0.0


class Span(NamedTuple):
    """A stretch of a run."""

    length: float
    unit: Literal["checks", "steps", "epochs"] = "checks"

    def between(self, since: Position, now: Position) -> float:
        """How often the stretch fits between two positions."""
        passed: float = getattr(now, self.unit) - getattr(since, self.unit)
        return passed / self.length if self.length else math.inf

    def is_over(self, since: Position, now: Position) -> bool:
        """Whether it has passed; at the position where it begins it has not, however short it is."""
        # Parts of an epoch are inexact.
        return now.checks > since.checks and self.between(since, now) > 1 - 1e-9


class MetricRule(NamedTuple):
    """What counts as better, as good enough and as too bad in one metric."""

    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    relative: bool = False
    """Whether ``min_delta`` is a share of the value to improve on."""
    target: float | None = None
    limit: float | None = None

    def gain(self, value: float, reference: float) -> float:
        """By how much a value is better than another one."""
        return reference - value if self.mode == "min" else value - reference

    def improves(self, value: float, reference: float | None) -> bool:
        """Whether a value is better by more than ``min_delta``."""
        if reference is None:
            return True
        return self.gain(value, reference) > self.min_delta * (abs(reference) if self.relative else 1.0)


class Track(NamedTuple):
    """What is known of one metric."""

    memory: tuple[float, ...] = ()
    """What its smoothing remembers."""
    value: float | None = None
    """The latest value, smoothed."""
    finite: bool = True
    """Whether the latest measurement was a finite number."""
    reference: float | None = None
    """The value that the next one has to improve on."""
    since: Position | None = None
    """Where the reference was measured."""
    best: float | None = None
    """The best value, by however little."""
    best_at: Position | None = None


class StopState(NamedTuple):
    """All that the decision depends on."""

    now: Position = Position()
    """The latest check."""
    tracks: tuple[Track, ...] = ()
    """Of the monitored metrics and, behind them, of the training metric."""
    narrow: Position | None = None
    """Where the gap was last narrow enough."""

    @property
    def is_best(self) -> bool:
        """Whether the latest check gave the first metric its best value."""
        return bool(self.tracks) and self.tracks[0].best_at == self.now

    def plain(self) -> dict[str, Any]:
        """The state as dictionaries, lists and numbers."""
        tracks = [
            {name: [*value] if isinstance(value, tuple) else value for name, value in track._asdict().items()}
            for track in self.tracks
        ]
        return {**self._asdict(), "now": [*self.now], "tracks": tracks, "narrow": self.narrow and [*self.narrow]}

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> StopState:
        """The state that :meth:`plain` described."""

        def position(numbers: Sequence[Any] | None) -> Position | None:
            return None if numbers is None else Position(*numbers)

        tracks = tuple(
            Track(
                **{**track, "memory": tuple(track["memory"]), **{k: position(track[k]) for k in ("since", "best_at")}}
            )
            for track in plain["tracks"]
        )
        known = {"now": Position(*plain["now"]), "tracks": tracks, "narrow": position(plain["narrow"])}
        return cls(**{**plain, **known})


class Stop(NamedTuple):
    """A decision to stop."""

    reason: Literal["not_finite", "divergence", "target", "gap", "patience"]
    metrics: tuple[int, ...]
    """The metrics that it rests on, by their number."""


class StopRule(NamedTuple):
    """Decides from the values of one or several metrics, check by check, when to stop.

    A metric improves when it is better than its reference by more than ``min_delta``; it then becomes the reference.
    Values that are not finite improve nothing and do not enter the smoothing.

    Example:
        >>> rule, state = StopRule((MetricRule(),), Span(2)), StopState()
        >>> for number, loss in enumerate([3.0, 2.0, 2.5, 2.0], start=1):
        ...     state = rule.advance(state, [loss], Position(number))
        ...     print(rule.verdict(state))
        None
        None
        None
        Stop(reason='patience', metrics=(0,))
    """

    metrics: tuple[MetricRule, ...]
    patience: Span
    combine: Literal["any", "all"] = "all"
    """Whether one metric without patience left is enough, and one that reached its target."""
    start_from: Span = Span(0)
    """Before it, values are not looked at but for being finite."""
    smoothing: Smoothing | None = None
    check_finite: bool = True
    max_gap: float | None = None
    """How much worse the first metric may be than the training metric, whose value then comes last."""

    def has_begun(self, now: Position) -> bool:
        """Whether a check at this position counts."""
        if self.start_from.unit == "checks":
            return now.checks > self.start_from.length
        return getattr(now, self.start_from.unit) > self.start_from.length - 1e-9

    def advance(self, state: StopState, values: Sequence[float], now: Position) -> StopState:
        """The state after a check.

        Args:
            state: The state before it.
            values: What was measured: a number for each metric and, with ``max_gap``, one for the training metric.
            now: Where the run is, this check included.
        """
        rules = [*self.metrics, *[self.metrics[0]] * (self.max_gap is not None)]
        before = state.tracks or (Track(),) * len(rules)
        if not self.has_begun(now):
            tracks = tuple(track._replace(finite=math.isfinite(v)) for track, v in zip(before, values, strict=True))
            return StopState(now, tracks)
        tracks = tuple(self._follow(*each, now) for each in zip(before, rules, values, strict=True))
        is_narrow = self.max_gap is not None and self._excess(tracks) <= 0
        narrow = now if is_narrow or state.narrow is None else state.narrow
        return StopState(now, tracks, narrow)

    def _follow(self, track: Track, rule: MetricRule, measured: float, now: Position) -> Track:
        track = track._replace(finite=math.isfinite(measured), since=track.since or now)
        if not track.finite:
            return track
        memory, value = self.smoothing.add(track.memory, measured) if self.smoothing else ((), measured)
        track = track._replace(memory=memory, value=value)
        if track.best is None or rule.gain(value, track.best) > 0:
            track = track._replace(best=value, best_at=now)
        return track._replace(reference=value, since=now) if rule.improves(value, track.reference) else track

    def gap(self, tracks: Sequence[Track]) -> float:
        """How much worse the first metric is than the training metric; 0 as long as one of them is unknown."""
        value, trained = tracks[0].value, tracks[-1].value
        return 0.0 if value is None or trained is None else -self.metrics[0].gain(value, trained)

    def _excess(self, tracks: Sequence[Track]) -> float:
        trained = tracks[-1].value or 0.0
        return self.gap(tracks) - (self.max_gap or 0.0) * (abs(trained) if self.metrics[0].relative else 1.0)

    def verdict(self, state: StopState) -> Stop | None:
        """The decision after the latest check; None to go on."""
        if self.check_finite and (broken := _where(not track.finite for track in state.tracks)):
            return Stop("not_finite", broken)
        if not state.tracks or not self.has_begun(state.now):
            return None
        judged = [*zip(self.metrics, state.tracks, strict=False)]
        if diverged := _where(_is_worse(*each) for each in judged):
            return Stop("divergence", diverged)
        reached = _where(_is_reached(*each) for each in judged)
        if reached and (self.combine == "any" or len(reached) == sum(r.target is not None for r in self.metrics)):
            return Stop("target", reached)
        if self.max_gap is not None and state.narrow and self.patience.is_over(state.narrow, state.now):
            return Stop("gap", (0, len(self.metrics)))
        waited = _where(
            track.since is not None and self.patience.is_over(track.since, state.now) for _, track in judged
        )
        if waited and (self.combine == "any" or len(waited) == len(judged)):
            return Stop("patience", waited)
        return None

    def used(self, state: StopState) -> float:
        """The share of the patience that is used up, of the metric on which the decision hangs."""
        shares = [
            min(self.patience.between(track.since, state.now), 1.0) if track.since not in (None, state.now) else 0.0
            for _, track in zip(self.metrics, state.tracks, strict=False)
        ]
        return (max if self.combine == "any" else min)(shares, default=0.0)


def _where(flags: Any) -> tuple[int, ...]:
    return tuple(number for number, flag in enumerate(flags) if flag)


def _is_worse(rule: MetricRule, track: Track) -> bool:
    return rule.limit is not None and track.value is not None and rule.gain(track.value, rule.limit) < 0


def _is_reached(rule: MetricRule, track: Track) -> bool:
    return rule.target is not None and track.value is not None and rule.gain(track.value, rule.target) >= 0
