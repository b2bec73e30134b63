"""Smoothing of a sequence of measured values."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from lightning_tuning.errors import InvalidValueError

_FORM = re.compile(r"(ema|median) +([0-9.]+)")


class Smoothing(NamedTuple):
    """A way to smooth, as users write it: ``"ema 0.9"`` or ``"median 5"``.

    Example:
        >>> smoothing, memory = check_smoothing("smoothing", "ema 0.5"), ()
        >>> for value in (1.0, 4.0):
        ...     memory, smooth = smoothing.add(memory, value)
        ...     print(smooth)
        1.0
        3.0
    """

    kind: Literal["ema", "median"]
    amount: float
    """Of ``ema`` the decay, of ``median`` how many values it is taken of."""

    def add(self, memory: tuple[float, ...], value: float) -> tuple[tuple[float, ...], float]:
        """Add a value and smooth.

        The exponential moving average is divided by the sum of its weights, so that it does not lean towards its first
        value (Kingma & Ba, 2015, section 3). The median of fewer values than asked for is that of those there are.

        Args:
            memory: What was remembered so far; ``()`` at first.
            value: A finite number.

        Returns:
            What is to be remembered, and the smoothed value.
        """
        if self.kind == "median":
            memory = (*memory, value)[-int(self.amount) :]
            ordered, middle = sorted(memory), len(memory) // 2
            return memory, ordered[middle] if len(memory) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        total, weight = memory or (0.0, 0.0)
        total, weight = (self.amount * total + (1 - self.amount) * value), self.amount * weight + 1 - self.amount
        return (total, weight), total / weight


def check_smoothing(argument: str, text: str | None) -> Smoothing | None:
    """The smoothing that ``text`` describes; None for None.

    Raises:
        InvalidValueError: It describes none.

    Example:
        >>> check_smoothing("smoothing", "median 5")
        Smoothing(kind='median', amount=5.0)
        >>> check_smoothing("smoothing", "mean 5")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: smoothing is 'mean 5'; write None for none, 'ema 0.9' (a moving \
average whose decay is at least 0 and below 1) or 'median 5' (of the last values, at least 1).
    """
    if text is None:
        return None
    found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    smoothing = _smoothing(found[1], found[2]) if found else None
    if smoothing is None:
        raise InvalidValueError(
            f"{argument} is {text!r}; write None for none, 'ema 0.9' (a moving average whose decay is at least 0 and "
            "below 1) or 'median 5' (of the last values, at least 1)."
        )
    return smoothing


def _smoothing(kind: str, number: str) -> Smoothing | None:
    try:
        amount = float(number)
    except ValueError:
        return None
    if kind == "ema":
        return Smoothing("ema", amount) if 0 <= amount < 1 else None
    return Smoothing("median", amount) if amount >= 1 and amount.is_integer() else None
