"""Errors whose message is the whole story: the command line prints them without a traceback."""

from __future__ import annotations


class TuningError(Exception):
    """Base of the errors that the user can mend from the message alone."""


class InvalidValueError(TuningError, ValueError):
    """An argument's value is not allowed."""


class CompositionError(TuningError, TypeError):
    """Mixins and host do not fit together, or an argument name is unknown."""


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
