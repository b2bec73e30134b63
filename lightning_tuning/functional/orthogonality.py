"""How far weight matrices are from having orthonormal rows or columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .precision import at_least_float32_dtype


def orthogonality(weights: list[Tensor]) -> Tensor:
    """Soft orthogonality ``sum ||W W^T - I||_F^2`` (Bansal et al., 2018, SO), on each weight's smaller Gram matrix.

    A weight of more than two dimensions is the matrix ``[out, in * kh * kw]``. With fewer columns than rows it is
    ``||W^T W - I||_F^2``: the two differ by the constant ``|rows - columns|``, and only the smaller can be 0.

    Args:
        weights: Tensors of two or more dimensions on one device, at least one. They may be of half precision.

    Returns:
        A float32 (or float64) scalar, differentiable.

    Example:
        >>> orthogonality([torch.eye(2, 3), torch.tensor([[2.0], [0.0]])])
        tensor(9.)
    """
    return _Orthogonality.apply(*weights)


class _Orthogonality(torch.autograd.Function):
    """With the gradient ``4 (W W^T - I) W`` written out: one product where autograd would make two."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        with _float32(weights[0]):
            gaps = [_gap(_wide(weight)) for weight in weights]
        ctx.save_for_backward(*weights, *gaps)
        return torch.stack(torch._foreach_norm(gaps, 2)).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 2
        weights, gaps = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        with _float32(weights[0]):
            if torch.is_grad_enabled():  # the gradient will be differentiated: what forward kept has no graph
                gaps = [_gap(_wide(weight)) for weight in weights]
            return tuple(_gradient(w, gap * (4 * gradient)) for w, gap in zip(weights, gaps, strict=True))


def _float32(like: Tensor) -> torch.autocast:
    """Autocast would make the products in half precision."""
    return torch.autocast(like.device.type, enabled=False)


def _wide(weight: Tensor) -> Tensor:
    """The weight as a matrix with at least as many columns as rows, in float32 or float64."""
    matrix = weight.flatten(1).to(at_least_float32_dtype(weight))
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _gap(matrix: Tensor) -> Tensor:
    gram = matrix @ matrix.T
    gram.diagonal().sub_(1)
    return gram


def _gradient(weight: Tensor, gap: Tensor) -> Tensor:
    wide = _wide(weight)
    product = gap @ wide
    rows = weight.shape[0]
    matrix = product if rows <= weight[0].numel() else product.T
    return matrix.reshape(weight.shape).to(weight.dtype)
