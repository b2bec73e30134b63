"""Convex combinations of the samples of one batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_beta(alpha: float) -> float:
    """One draw of Beta(alpha, alpha) from torch's default CPU generator.

    Args:
        alpha: Both parameters of the Beta distribution, > 0. Small values give mixtures near 0 or 1, 1.0 gives the
            uniform distribution.

    Returns:
        A number in ``[0, 1]``.
    """
    concentration = torch.tensor([alpha, alpha], dtype=torch.float64)
    return torch.distributions.Dirichlet(concentration, validate_args=False).sample()[0].item()


def mix(values: Tensor, index: Tensor, share: float) -> Tensor:
    """``share * values + (1 - share) * values[index]`` (Zhang et al., 2018, equation 1).

    Args:
        values: ``[N, ...]``, floating.
        index: The partner of each sample, ``[N]`` integers in ``[0, N)``.
        share: Weight of the sample itself, in ``[0, 1]``.

    Returns:
        ``[N, ...]``.

    Example:
        >>> mix(torch.tensor([[0.0], [4.0]]), torch.tensor([1, 0]), 0.75)
        tensor([[1.],
                [3.]])
    """
    return torch.lerp(values[index], values, share)
