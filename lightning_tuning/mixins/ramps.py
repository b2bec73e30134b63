"""Ramps as users write them: ``"sigmoid 0.4dur"``, ``"linear 2000st"``, ``"cosine 5ep"``."""

from __future__ import annotations

import re
from typing import NamedTuple

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional.ramp import RAMP_SHAPES, ramp_factor
from lightning_tuning.timing.durations import FORMS, Duration, parse_duration

_SHAPE = re.compile(rf"({'|'.join(RAMP_SHAPES)}) +(.+)")


class Ramp(NamedTuple):
    """A rise from the first optimizer step on."""

    shape: str
    length: Duration

    def factor(self, step: int, length: float) -> float:
        """The factor before optimizer step ``step``, counted from 0, of a ramp of ``length`` steps."""
        return ramp_factor(self.shape, step / length)


def parse_ramp(text: str) -> Ramp | None:
    """The ramp that ``text`` describes; None if it describes none."""
    found = _SHAPE.fullmatch(text.strip())
    length = parse_duration(found[2]) if found else None
    return Ramp(found[1], length) if found and length is not None and length.value > 0 else None


def check_ramp(argument: str, ramp: str | None) -> str | None:
    """Return ``ramp`` if it is None or describes a ramp.

    Raises:
        InvalidValueError: It is anything else.

    Example:
        >>> check_ramp("pi_model_ramp", "sigmoid 0.4dur")
        'sigmoid 0.4dur'
        >>> check_ramp("pi_model_ramp", "sigmoid")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: pi_model_ramp is 'sigmoid'; write null for none, or a shape \
(linear, sigmoid, cosine) and a length above 0: '5ep' (epochs), '500st' (optimizer steps), '0.1dur' or '10%' (of the \
run), or '1e6smp' (samples), as in 'sigmoid 0.4dur'.
    """
    if ramp is not None and (not isinstance(ramp, str) or parse_ramp(ramp) is None):
        raise InvalidValueError(
            f"{argument} is {ramp!r}; write null for none, or a shape ({', '.join(RAMP_SHAPES)}) and a length above 0: "
            f"{FORMS}, as in 'sigmoid 0.4dur'."
        )
    return ramp
