"""Averages of weights over training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_decay(update: int, decay: float, warmup: bool = True) -> float:
    """Decay of the ``update``-th update of an exponential moving average.

    With warm-up it is ``min(1 - 1 / (update + 1), decay)`` (Tarvainen & Valpola, 2017): a running mean of all weights
    so far, until that mean would reach further back than the decay allows.

    Args:
        update: Number of the update, counted from 1.
        decay: Final decay, in ``[0, 1]``.
        warmup: Whether early updates use a smaller decay.

    Returns:
        The decay to use, in ``[0, decay]``.

    Example:
        >>> [round(ema_decay(t, 0.9), 3) for t in (1, 2, 9, 100)]
        [0.5, 0.667, 0.9, 0.9]
    """
    return min(1.0 - 1.0 / (update + 1), decay) if warmup else decay


@torch.no_grad()
def ema_update_(average: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """In place ``average = decay * average + (1 - decay) * current``, all tensors in one foreach pass.

    Args:
        average: The averages, floating tensors.
        current: The current values, in the same order and of the same shapes.
        decay: Share of the old average that stays, in ``[0, 1]``.

    Example:
        >>> a = [torch.tensor([1.0])]
        >>> ema_update_(a, [torch.tensor([3.0])], decay=0.75)
        >>> a
        [tensor([1.5000])]
    """
    torch._foreach_lerp_(average, current, 1.0 - decay)
