"""Choosing by name: one message for every misspelt name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from lightning_tuning.errors import InvalidValueError


def check_name(argument: str, value: object, names: Iterable[str], otherwise: str) -> None:
    """Raise :class:`InvalidValueError` unless ``value`` is one of ``names``.

    Args:
        argument: The argument as the user writes it, e.g. ``network``.
        value: What came.
        names: The names allowed.
        otherwise: What is allowed besides a name, e.g. ``an nn.Module``.

    Example:
        >>> check_name("network", "resnet19", ["cnn", "resnet18"], "an nn.Module")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: network is 'resnet19'; did you mean 'resnet18'? \
It must be one of 'cnn', 'resnet18', or an nn.Module.
    """
    names = list(names)
    if isinstance(value, str) and value in names:
        return
    close = get_close_matches(value, names, n=1) if isinstance(value, str) else []
    hint = f" did you mean {close[0]!r}? It" if close else " it"
    raise InvalidValueError(
        f"{argument} is {value!r};{hint} must be one of {', '.join(map(repr, names))}, or {otherwise}."
    )
