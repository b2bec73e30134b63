"""Capture and replay of the random generators that a training step may draw from."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import torch


class RngState(NamedTuple):
    """States of torch's CPU generator, the accelerator's generator (if any), Python's and numpy's."""

    cpu: torch.Tensor
    device: tuple[torch.device, torch.Tensor] | None
    python: Any
    numpy: Any


def get_rng_state(device: torch.device) -> RngState:
    """The generators' states now.

    Args:
        device: The device the model computes on.
    """
    on_device = (device, torch.cuda.get_rng_state(device)) if device.type == "cuda" else None
    return RngState(torch.get_rng_state(), on_device, random.getstate(), np.random.get_state())  # noqa: NPY002


def set_rng_state(state: RngState) -> None:
    """Put the generators back, so that the same draws come again.

    Args:
        state: What :func:`get_rng_state` returned.

    Example:
        >>> state = get_rng_state(torch.device("cpu"))
        >>> first = torch.rand(3)
        >>> set_rng_state(state)
        >>> torch.equal(torch.rand(3), first)
        True
    """
    torch.set_rng_state(state.cpu)
    if state.device is not None:
        torch.cuda.set_rng_state(state.device[1], state.device[0])
    random.setstate(state.python)
    np.random.set_state(state.numpy)  # noqa: NPY002
