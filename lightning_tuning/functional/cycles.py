"""Learning rates that fall and begin again."""

from __future__ import annotations

import math


def cycle_factor(step: int, total: int, cycles: int) -> float:
    """Factor on the learning rate in a run of equal cosine cycles.

    ``1/2 (cos(pi ((t - 1) mod n) / n) + 1)`` for step t, counted from 1, and cycles of ``n = ceil(total / cycles)``
    steps: 1 at the beginning of each cycle, nearly 0 at its end.

    Args:
        step: Steps done, t - 1.
        total: Steps of the run.
        cycles: Number of cycles, at least 1.

    Source: Huang et al., 2017, "Snapshot ensembles: train 1, get M for free", equation 2.

    Example:
        >>> [round(cycle_factor(step, 8, 2), 2) for step in range(8)]
        [1.0, 0.85, 0.5, 0.15, 1.0, 0.85, 0.5, 0.15]
    """
    length = cycle_length(total, cycles)
    return (math.cos(math.pi * (step % length) / length) + 1) / 2


def cycle_length(total: int, cycles: int) -> int:
    """Steps of a cycle; the last one may be shorter."""
    return max(1, math.ceil(total / cycles))
