"""Bounds on weight matrices: on the norm of each row, and on the largest singular value."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import at_least_float32, at_least_float32_dtype


@torch.no_grad()
def max_norm_(weights: list[Tensor], bound: float) -> None:
    """In place, scale each unit's weights back to norm ``bound`` where they exceed it (Srivastava et al., 2014, section
    5.1). Units within the bound stay bitwise as they are.

    Args:
        weights: Tensors ``[units, ...]`` of two or more dimensions.
        bound: The largest norm, > 0.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> max_norm_([weight], 1.0)
        >>> weight
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    for weight in weights:
        norms = torch.linalg.vector_norm(
            weight, dim=list(range(1, weight.ndim)), keepdim=True, dtype=at_least_float32_dtype(weight)
        )
        weight.mul_((bound / norms).clamp_max_(1))


def spectral_norm(matrix: Tensor, u: Tensor) -> Tensor:
    """The largest singular value of a matrix, given its left singular vector ``u`` (Miyato et al., 2018, equation 6).

    It is ``||W^T u||`` with ``u`` normalised. That is ``u^T W v`` for ``v = W^T u / ||W^T u||``, and its gradient is
    ``u v^T``. For another ``u`` it is too small, never too large.

    Args:
        matrix: W, ``[rows, columns]``.
        u: A vector ``[rows]`` that is not 0.

    Returns:
        A float32 (or float64) scalar, differentiable with respect to ``matrix``.

    Example:
        >>> spectral_norm(torch.diag(torch.tensor([3.0, 2.0])), torch.tensor([1.0, 0.0]))
        tensor(3.)
    """
    return torch.linalg.vector_norm(at_least_float32(matrix).T @ _unit(u))


@torch.no_grad()
def power_iteration(matrix: Tensor, u: Tensor, iterations: int = 1) -> Tensor:
    """``u`` moved towards the left singular vector of the largest singular value (Miyato et al., 2018, algorithm 1).

    Args:
        matrix: W, ``[rows, columns]``.
        u: A vector ``[rows]`` that is not 0.
        iterations: How often ``W W^T`` is applied, at least 1.

    Returns:
        A vector ``[rows]`` of norm 1, of the dtype of ``u``.

    Example:
        >>> power_iteration(torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([1.0, 1.0]), 10)
        tensor([1.0000e+00, 2.8680e-10])
    """
    wide, moved = at_least_float32(matrix), _unit(u)
    for _ in range(iterations):
        moved = _unit(wide @ _unit(wide.T @ moved))
    return moved.to(u.dtype)


def _unit(vector: Tensor) -> Tensor:
    return torch.nn.functional.normalize(at_least_float32(vector), dim=0, eps=1e-30)
