"""Power-function averages of weights, and any of them after the fact from stored ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGEST_SIGMA_REL = math.sqrt(1 / 12)
"""That of the plain mean over all steps, gamma 0."""


def power_decay(update: int, gamma: float) -> float:
    """Decay of the ``update``-th update of a power-function average, ``(1 - 1 / update) ** (gamma + 1)``.

    The weights of step i then have in the average after t steps the share that ``(gamma + 1) tau ** gamma / t **
    (gamma + 1)`` has between i - 1 and i: the profile keeps its shape as the run gets longer.

    Args:
        update: Number of the update, counted from 1; the first forgets what was there before.
        gamma: Exponent of the profile, at least 0; 0 is the plain mean.

    Source: Karras et al., 2024, "Analyzing and improving the training dynamics of diffusion models",
    section 3 and appendix C.

    Example:
        >>> [round(power_decay(t, gamma=1.0), 4) for t in (1, 2, 10)]
        [0.0, 0.25, 0.81]
    """
    return (1.0 - 1.0 / update) ** (gamma + 1.0)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile whose standard deviation is ``sigma_rel`` of the run so far.

    Args:
        sigma_rel: In (0, 0.2886]: ``sigma_rel ** 2 = (gamma + 1) / ((gamma + 2) ** 2 (gamma + 3))``; the largest is
            that of gamma 0.

    Source: Karras et al., 2024, algorithm 2.

    Example:
        >>> round(gamma_of(0.05), 3), round(gamma_of(0.10), 3)
        (16.972, 6.937)
    """
    square = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - square, 12.0 - square])
    return max(0.0, float(roots.real.max()))


def sigma_rel_of(gamma: float) -> float:
    """The standard deviation of the profile of exponent ``gamma``, as a share of the run so far.

    Example:
        >>> round(sigma_rel_of(6.937), 4), round(sigma_rel_of(0.0), 4)
        (0.1, 0.2887)
    """
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def power_shares(stored: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> Tensor:
    """The factors with which stored power-function averages add up to one of another profile, as nearly as they can.

    They make the squared difference of the two profiles, as functions of time, smallest.

    Args:
        stored: For each stored average the time it was taken at, > 0, and its gamma, >= 0.
        wanted: Time and gamma of the wanted average; the time may not be later than the last stored one.

    Returns:
        A factor for each stored average, float64 ``[number of stored]``; they may be negative and add up to nearly 1.

    Source: Karras et al., 2024, algorithm 3. Solved by least squares, so that an average that is stored twice does no
    harm.

    Example:
        >>> power_shares([(100, 6.94), (100, 16.97)], (100, 6.94)).round(decimals=6).abs()
        tensor([1., 0.], dtype=torch.float64)
    """
    times, gammas = torch.tensor(list(stored), dtype=torch.float64).T
    time, gamma = (torch.tensor([value], dtype=torch.float64) for value in wanted)
    products = _product(times[:, None], gammas[:, None], times, gammas)
    with_wanted = _product(times[:, None], gammas[:, None], time, gamma)
    return torch.linalg.lstsq(products, with_wanted, driver="gelsd").solution[:, 0]


def _product(t_a: Tensor, gamma_a: Tensor, t_b: Tensor, gamma_b: Tensor) -> Tensor:
    """The integral of the product of two profiles ``(gamma + 1) tau ** gamma / t ** (gamma + 1)`` on ``[0, t]``."""
    both = torch.minimum(t_a, t_b)
    height = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return height * (both / t_a) ** gamma_a * (both / t_b) ** gamma_b * both / (t_a * t_b)
