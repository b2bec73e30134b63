"""Flooding of a loss."""

from __future__ import annotations

from torch import Tensor

from .precision import at_least_float32


def flood(loss: Tensor, level: float) -> Tensor:
    """|loss - level| + level: the loss itself above the level, its mirror image below it.

    Args:
        loss: A mean loss, a scalar.
        level: The flood level, in the loss's unit.

    Returns:
        A float32 (or float64) scalar >= level. Below the level its gradient is minus that of the loss, at the level 0.

    Example:
        >>> import torch
        >>> [flood(torch.tensor(loss), 0.25).item() for loss in (1.0, 0.25, 0.125)]
        [1.0, 0.25, 0.375]
    """
    return (at_least_float32(loss) - level).abs() + level
