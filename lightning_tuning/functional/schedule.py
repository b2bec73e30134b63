"""How a scheduled value goes over a run: numbers in, numbers out.

Each shape gives the *height* at a moment, mostly 1 where the value is full and 0 where it has reached its end;
:func:`between` makes the value of it. Positions and lengths are in steps and may have fractions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .ramp import ramp_factor


def between(full: float, end: float, height: float) -> float:
    """The value at a height between its end (0) and its full size (1); exactly those at 0 and 1.

    Example:
        >>> between(0.4, 0.04, 0.5)
        0.22
    """
    return full * height + end * (1.0 - height)


def warmup_height(shape: str, step: float, length: float) -> float:
    """Height before step ``step``, counted from 0, of a rise over ``length`` steps.

    The step is counted as done, so that none is made at height 0 and the last one of the rise is at 1.

    Args:
        shape: ``linear``, ``sigmoid`` or ``cosine``, see :func:`~lightning_tuning.functional.ramp_factor`.
        step: Steps done.
        length: Of the rise, > 0.

    Example:
        >>> [warmup_height("linear", step, 4) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return ramp_factor(shape, (step + 1.0) / length)


def cosine_height(share: float) -> float:
    """``(1 + cos(pi p)) / 2`` at a share ``p`` of the way (Loshchilov & Hutter, 2017, eq. 5).

    Example:
        >>> [round(cosine_height(p), 3) for p in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.854, 0.5, 0.0]
    """
    return (1.0 + math.cos(math.pi * share)) / 2


def polynomial_height(share: float, power: float) -> float:
    """``(1 - p)^power`` at a share ``p`` of the way; a power of 1 is a line.

    Example:
        >>> [polynomial_height(p, 2) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.25, 0.0]
    """
    return (1.0 - share) ** power


def drops_factor(drops: int, gamma: float) -> float:
    """``gamma`` to the power of the number of drops.

    Example:
        >>> [drops_factor(drops, 0.1) for drops in range(3)]
        [1.0, 0.1, 0.01]
        >>> drops_factor(1, 0.0)
        0.0
    """
    if gamma == 0:
        return 0.0 if drops else 1.0
    return 1.0 / (1.0 / gamma) ** drops  # so that a tenth of a tenth is 0.01


def place_in_cycle(position: float, first: float, growth: float) -> float:
    """The share of its cycle that is done at ``position``, in [0, 1), where cycle ``i`` is ``first * growth^i`` long.

    Args:
        position: Steps since the first cycle began, >= 0.
        first: Length of the first cycle, > 0.
        growth: At least 1.

    Example:
        >>> [place_in_cycle(t, 2, 2) for t in range(7)]  # cycles of 2, 4, ... steps
        [0.0, 0.5, 0.0, 0.25, 0.5, 0.75, 0.0]
    """
    if growth == 1:
        return position % first / first
    cycle = max(int(math.log(position / first * (growth - 1) + 1, growth)), 0)
    for number in (cycle + 1, cycle, cycle - 1):  # the logarithm may err by a little at a cycle's edge
        begin, length = first * (growth**number - 1) / (growth - 1), first * growth**number
        if begin <= position:
            break
    return (position - begin) / length


def one_cycle_heights(position: float, length: float, rise: float) -> tuple[bool, float]:
    """Whether the one cycle still rises, and the height above the start or, later, above the end.

    As in torch's ``OneCycleLR`` the highest value comes at position ``rise - 1`` and the end at ``length - 1``.

    Args:
        position: Steps since the beginning.
        length: Of the whole cycle, in steps.
        rise: Of the rise, in steps.

    Example:
        >>> one_cycle_heights(0, 10, 3), one_cycle_heights(2, 10, 3), one_cycle_heights(9, 10, 3)
        ((True, 0.0), (True, 1.0), (False, 0.0))
    """
    top = max(rise - 1.0, 0.0)
    if position <= top and top > 0:
        return True, 1.0 - cosine_height(position / top)
    return False, cosine_height(min((position - top) / max(length - 1.0 - top, 1.0), 1.0))


def stable_decay_height(form: str, left: float, decay: float) -> float:
    """1 until ``decay`` steps are left, then down to 0 (Hägele et al., 2024, with ``form="sqrt"``).

    Args:
        form: ``linear``: ``1 - q`` at a share ``q`` of the decay; ``sqrt``: ``1 - sqrt(q)``; ``cosine``.
        left: Steps that are left.
        decay: Length of the decay in steps, > 0.

    Example:
        >>> [stable_decay_height("sqrt", left, 4) for left in (8, 4, 3, 0)]
        [1.0, 1.0, 0.5, 0.0]
    """
    share = min(max(1.0 - left / decay, 0.0), 1.0)
    if form == "cosine":
        return cosine_height(share)
    return 1.0 - (math.sqrt(share) if form == "sqrt" else share)


def inverse_sqrt_factor(position: float, scale: float) -> float:
    """``sqrt(scale / (scale + position))``: Vaswani et al., 2017, eq. 3, after a warm-up of ``scale`` steps.

    Example:
        >>> inverse_sqrt_factor(0, 100), inverse_sqrt_factor(300, 100)
        (1.0, 0.5)
    """
    return math.sqrt(scale / (scale + position))


class Plateau(NamedTuple):
    """How often a metric has stopped to improve, as in torch's ``ReduceLROnPlateau``.

    Example:
        >>> state = Plateau()
        >>> for loss in (1.0, 0.9, 0.95, 0.95):
        ...     state = state.after(loss, patience=1)
        >>> state.drops, state.best
        (1, 0.9)
    """

    drops: int = 0
    best: float | None = None
    waited: int = 0
    """Measurements since the metric improved last."""
    cooling: int = 0
    """Measurements of the cooldown that are left."""

    def after(
        self, metric: float, patience: int, threshold: float = 1e-4, cooldown: int = 0, mode: str = "min"
    ) -> Plateau:
        """The state after one more measurement.

        Args:
            metric: What was measured. NaN is no improvement.
            patience: Measurements without improvement that are waited for.
            threshold: What counts as an improvement: better by more than this share of the best.
            cooldown: Measurements after a drop that are not waited for.
            mode: ``min`` or ``max``.
        """
        best, sign = self.best, 1.0 if mode == "min" else -1.0
        improved = best is None or sign * metric < sign * best - threshold * abs(best)
        if math.isnan(metric):
            improved = False
        waited = 0 if improved else self.waited + 1
        cooling = self.cooling
        if cooling > 0:
            cooling, waited = cooling - 1, 0
        drops = self.drops
        if waited > patience:
            drops, cooling, waited = drops + 1, cooldown, 0
        return Plateau(drops, metric if improved else best, waited, cooling)
