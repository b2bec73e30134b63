"""Checks of the datamodules' arguments."""

from __future__ import annotations

from numbers import Integral

from lightning_tuning.errors import InvalidValueError


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
