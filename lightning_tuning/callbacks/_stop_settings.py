"""What EarlyStop's arguments mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range, check_used
from lightning_tuning.functional.smoothing import check_smoothing
from lightning_tuning.functional.stopping import MetricRule, Span, Stop, StopRule, StopState
from lightning_tuning.timing.durations import FORMS, check_duration, duration_of

SETTINGS = (
    "mode",
    "patience",
    "min_delta",
    "relative",
    "combine",
    "smoothing",
    "start_from",
    "stopping_threshold",
    "divergence_threshold",
    "check_finite",
    "max_gap",
)
"""The arguments that the decision depends on."""


def check_settings(settings: Mapping[str, Any], names: Sequence[str], train_monitor: str | None) -> None:
    """Raise :class:`InvalidValueError` unless the settings are allowed.

    Args:
        settings: The values of ``SETTINGS``.
        names: The monitored metrics.
        train_monitor: The training metric.
    """
    for mode in _each("mode", settings["mode"], names):
        check_choice("mode", mode, ("min", "max"))
    for delta in _each("min_delta", settings["min_delta"], names):
        check_range("min_delta", delta)
    for argument in ("stopping_threshold", "divergence_threshold"):
        for threshold in _each(argument, settings[argument], names):
            if threshold is not None:
                check_range(argument, threshold, float("-inf"))
    both = (_each(argument, settings[argument], names) for argument in ("stopping_threshold", "divergence_threshold"))
    for name, mode, best, worst in zip(names, _each("mode", settings["mode"], names), *both, strict=True):
        if best is not None and worst is not None and (best >= worst if mode == "min" else best <= worst):
            raise InvalidValueError(
                f"stopping_threshold is {best!r} and divergence_threshold {worst!r}, so with mode={mode!r} each value "
                f"of {name} stops. The stopping threshold must be the {'smaller' if mode == 'min' else 'larger'} one."
            )
    check_choice("combine", settings["combine"], ("all", "any"))
    check_used("combine", settings["combine"], "all", "a list of metrics as monitor", len(names) > 1)
    differences = (*_each("min_delta", settings["min_delta"], names), settings["max_gap"])
    check_used("relative", settings["relative"], False, "a min_delta or max_gap", any(differences))
    check_smoothing("smoothing", settings["smoothing"])
    _check_span("patience", settings["patience"])
    _check_span("start_from", settings["start_from"])
    max_gap = settings["max_gap"]
    if (train_monitor is None) is not (max_gap is None):
        raise InvalidValueError(
            f"train_monitor is {train_monitor!r} and max_gap is {max_gap!r}; the gap needs both of them."
        )
    if max_gap is not None:
        check_range("max_gap", max_gap)


def make_rule(settings: Mapping[str, Any], names: Sequence[str], trainer: Trainer) -> StopRule:
    """The rule that the settings describe in this run, known from ``on_train_start`` on."""
    arguments = ("mode", "min_delta", "stopping_threshold", "divergence_threshold")
    each = zip(*(_each(argument, settings[argument], names) for argument in arguments), strict=True)
    same = {name: settings[name] for name in ("combine", "check_finite", "max_gap")}
    return StopRule(
        tuple(MetricRule(mode, delta, settings["relative"], best, worst) for mode, delta, best, worst in each),
        patience=_span(settings["patience"], trainer),
        start_from=_span(settings["start_from"], trainer),
        smoothing=check_smoothing("smoothing", settings["smoothing"]),
        **same,
    )


def sentence(stop: Stop, state: StopState, names: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Why training stops.

    Args:
        stop: The decision.
        state: What it was made from.
        names: The monitored metrics and, behind them, the training metric.
        settings: The values of ``SETTINGS``.
    """
    at = f"at step {state.now.steps}, epoch {state.now.epochs:g}"
    if stop.reason == "not_finite":
        return f"{_and(names[i] for i in stop.metrics)} is not finite {at}."
    known = {i: f"{names[i]} is {state.tracks[i].value:.4g}" for i in stop.metrics}
    if stop.reason in ("divergence", "target"):
        argument = "divergence_threshold" if stop.reason == "divergence" else "stopping_threshold"
        given = settings[argument]
        limits = {i: given[i] if isinstance(given, (list, tuple)) else given for i in known}
        values = _and(f"{text}, the threshold {limits[i]:g}" for i, text in known.items())
        return f"{argument.capitalize().replace('_', ' ')} reached {at}: {values}."
    patience = settings["patience"]
    if not isinstance(patience, str):  # more than the patience where min_epochs or min_steps put the end off
        begins = [state.narrow] if stop.reason == "gap" else [state.tracks[i].since for i in stop.metrics]
        checks = min(state.now.checks - begin.checks for begin in begins if begin is not None)
        patience = f"{checks} check{'s' * (checks != 1)}"
    if stop.reason == "gap":
        share = " of the latter" if settings["relative"] else ""
        return f"The gap has been above {settings['max_gap']:g}{share} for {patience} {at}: {_and(known.values())}."
    waited = []
    for i in stop.metrics:
        track = state.tracks[i]
        since = (
            f" on {track.reference:.4g}, reached at step {track.since.steps},"
            if track.since and track.reference is not None
            else ""
        )
        waited.append(f"{names[i]} did not improve{since}")
    return f"{_and(waited)} for {patience}, up to step {state.now.steps}, epoch {state.now.epochs:g}."


def _and(parts: Any) -> str:
    return " and ".join(parts)


def _each(argument: str, value: Any, names: Sequence[str]) -> list[Any]:
    """The value of each metric, of one for all or of a list."""
    if not isinstance(value, (list, tuple)):
        return [value] * len(names)
    if len(value) != len(names):
        raise InvalidValueError(
            f"{argument} is {value!r}; for {len(names)} metrics it must be one value or a list of {len(names)}."
        )
    return list(value)


def _check_span(argument: str, value: int | str) -> None:
    if isinstance(value, str):
        check_duration(argument, value)
    else:
        try:
            check_count(argument, value, 0)
        except InvalidValueError:
            raise InvalidValueError(
                f"{argument} is {value!r}; it must be a number of checks, at least 0, or a duration: {FORMS}."
            ) from None


def _span(value: int | str, trainer: Trainer) -> Span:
    if not isinstance(value, str):
        return Span(value)
    duration = duration_of(value)
    # In epochs it needs no run of known length.
    return Span(duration.value, "epochs") if duration.unit == "ep" else Span(duration.steps(trainer), "steps")
