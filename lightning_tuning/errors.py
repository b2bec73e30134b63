"""Errors whose message is the whole story: the command line prints them without a traceback. And one warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral


class TuningError(Exception):
    """Base of the errors that the user can mend from the message alone.

    A ``DataLoader`` makes an error of a worker process anew from one text, the worker's traceback. Its last part is the
    message.
    """

    exit_code = 2
    """What the command line ends with."""

    def __init__(self, *args: object) -> None:
        if len(args) == 1 and "in DataLoader worker process" in str(args[0]):
            args = (str(args[0]).strip().rpartition(f"{type(self).__name__}: ")[2],)
        super().__init__(*args)


class InvalidValueError(TuningError, ValueError):
    """An argument's value is not allowed."""


class CompositionError(TuningError, TypeError):
    """Mixins and host do not fit together, or an argument name is unknown."""


class NoEffectError(TuningError):
    """A technique is switched on, but can change nothing in this model."""


class CheckpointError(TuningError, ValueError):
    """A checkpoint is missing, damaged or foreign, or loading it would run code."""


class DivergenceError(TuningError):
    """The training came to values that nothing more can be learnt from, and a guard stopped it."""

    exit_code = 3


class DoesNotFitError(TuningError, MemoryError):
    """A training step needs more memory than there is, however its batch is split."""

    exit_code = 3


class ResumeError(TuningError, AssertionError):
    """A resumed run is not the uninterrupted one."""

    exit_code = 1


def check_range(
    name: str,
    value: float,
    low: float = 0.0,
    high: float = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise :class:`InvalidValueError` unless ``value`` is a number in the interval from ``low`` to ``high``.

    Args:
        name: The argument as the user writes it, e.g. ``sam_rho``.
        value: What came.
        low: Smallest value allowed.
        high: Largest value allowed.
        open_low: Whether ``low`` itself is excluded.
        open_high: Whether ``high`` itself is excluded.

    Example:
        >>> check_range("sam_rho", 0.05)
        >>> check_range("sam_rho", -1)
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: sam_rho is -1; it must be a number in [0, inf).
    """
    open_high = open_high or high == float("inf")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # A NaN fails every comparison, so it is refused too.
    above = is_number and (value > low if open_low else value >= low)
    below = is_number and (value < high if open_high else value <= high)
    if not (above and below):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise InvalidValueError(f"{name} is {value!r}; it must be a number in {interval}.")


def check_count(name: str, value: object, low: int, high: int | None = None, *, optional: bool = False) -> None:
    """Raise :class:`InvalidValueError` unless ``value`` is an integer from ``low`` to ``high``.

    Args:
        name: The argument as the user writes it.
        value: What came.
        low: Smallest integer allowed.
        high: Largest integer allowed; None: no limit.
        optional: Whether None is allowed too.

    Example:
        >>> check_count("batch_size", 0, 1)
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: batch_size is 0; it must be an integer of at least 1.
    """
    if optional and value is None:
        return
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_integer and low <= value and (high is None or value <= high)):  # type: ignore[operator]
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidValueError(f"{name} is {value!r}; it must be an integer {limits}{' or None' if optional else ''}.")


def check_used(name: str, value: object, default: object, condition: str, holds: bool) -> None:
    """Raise :class:`InvalidValueError` if an argument was given that does nothing beside the others.

    Args:
        name: The argument as the user writes it.
        value: What came.
        default: What comes where the user writes nothing; it is allowed anywhere.
        condition: What the argument needs, as the user writes it.
        holds: Whether that is so.

    Example:
        >>> check_used("depth", 1, 1, "group_by: module", False)
        >>> check_used("depth", 2, 1, "group_by: module", False)
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: depth is 2, which has no effect without group_by: module. Write \
that too, or leave depth out.
    """
    if not holds and value != default:
        raise InvalidValueError(
            f"{name} is {value!r}, which has no effect without {condition}. Write that too, or leave {name} out."
        )


def did_you_mean(name: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """How a sentence about an unknown name ends: with the nearest name that exists, if one is near.

    Example:
        >>> did_you_mean("mixup_alpa", ["mixup_alpha", "sam_rho"])
        "; did you mean 'mixup_alpha'?"
        >>> did_you_mean("zzz", ["mixup_alpha"])
        '.'
    """
    close = get_close_matches(str(name), list(names), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else "."


def check_choice(argument: str, value: object, names: Iterable[str], otherwise: str | None = None) -> None:
    """Raise :class:`InvalidValueError` unless ``value`` is one of ``names``.

    Args:
        argument: The argument as the user writes it, e.g. ``network``.
        value: What came.
        names: The names allowed.
        otherwise: What is allowed besides a name, e.g. ``an nn.Module``.

    Example:
        >>> check_choice("network", "resnet19", ["cnn", "resnet18"], "an nn.Module")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: network is 'resnet19'; did you mean 'resnet18'? \
It must be one of 'cnn', 'resnet18', or an nn.Module.
    """
    names = list(names)
    if not (isinstance(value, str) and value in names):
        allowed = ", ".join(map(repr, names)) + (f", or {otherwise}" if otherwise else "")
        raise InvalidValueError(f"{argument} is {value!r}{did_you_mean(value, names)} It must be one of {allowed}.")


def warn_of_reach(technique: str, epsilon: float, norm: str) -> None:
    """Warn of a ball that holds every image, where epsilon is in pixels of [0, 1]: it was probably meant in 255ths.

    Args:
        technique: Whose epsilon it is.
        epsilon: Radius in pixels of [0, 1].
        norm: ``linf``, or ``l2``, of which nothing is said: its length depends on the size of the image.
    """
    if norm == "linf" and epsilon >= 1:
        warnings.warn(
            f"{technique}: epsilon is {epsilon:g}, in pixels of [0, 1]: each image can become any other. Divide by 255 "
            "what is meant in grey levels of 0 to 255, as in 8 / 255 = 0.0314.",
            stacklevel=2,
        )
