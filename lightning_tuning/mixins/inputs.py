"""Inputs that are one tensor or a dict of tensors (text)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def map_inputs(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """Apply ``function`` to a tensor, or to each tensor of a dict; entries that are no tensors stay."""
    if isinstance(x, Mapping):
        mapped = {key: function(value) if isinstance(value, Tensor) else value for key, value in x.items()}
        return mapped if isinstance(x, dict) else type(x)(mapped)  # type: ignore[call-arg]
    return function(x)


def first_tensor(x: Any) -> Tensor:
    """The tensor ``x``, or the first tensor of the dict ``x``: it tells batch size and device."""
    return next(v for v in x.values() if isinstance(v, Tensor)) if isinstance(x, Mapping) else x
