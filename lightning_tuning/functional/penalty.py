"""Penalties on parameters, without a Python loop over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .precision import at_least_float32_dtype


def l1_norm(parameters: list[Tensor]) -> Tensor:
    """Sum of the absolute values of all parameters; its gradient is sign(w), and 0 at w = 0.

    Args:
        parameters: Tensors of any shapes on one device, at least one. They may be of half precision.

    Returns:
        A float32 (or float64) scalar, differentiable.

    Example:
        >>> l1_norm([torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])])
        tensor(6.)
    """
    return _L1Norm.apply(*parameters)


def half_squared_norm(parameters: list[Tensor]) -> Tensor:
    """Half the sum of the squares of all parameters; its gradient is w.

    Args:
        parameters: Tensors of any shapes on one device, at least one. They may be of half precision.

    Returns:
        A float32 (or float64) scalar, differentiable.

    Example:
        >>> half_squared_norm([torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])])
        tensor(7.)
    """
    return _HalfSquaredNorm.apply(*parameters)


def half_squared_distance(parameters: list[Tensor], others: list[Tensor]) -> Tensor:
    """Half the sum of the squared differences; its gradient with respect to the parameters is w - w'.

    Args:
        parameters: Tensors of any shapes on one device, at least one. They may be of half precision.
        others: As many tensors of the same shapes on the same device.

    Returns:
        A float32 (or float64) scalar, differentiable.

    Example:
        >>> half_squared_distance([torch.tensor([1.0, -2.0])], [torch.tensor([1.0, 2.0])])
        tensor(8.)
    """
    return half_squared_norm(list(torch._foreach_sub(parameters, others)))


class _L1Norm(torch.autograd.Function):
    """Autograd's gradient of a norm goes over the parameters several times more than this one."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return _norms(parameters, 1).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        signs = torch._foreach_sign(ctx.saved_tensors)
        torch._foreach_mul_(signs, gradient)
        return tuple(signs)


class _HalfSquaredNorm(torch.autograd.Function):
    """As above; and at 0, where a norm has no gradient, a square has one."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return 0.5 * _norms(parameters, 2).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():  # the gradient will be differentiated, which torch cannot do with the foreach form
            return tuple(parameter * gradient for parameter in ctx.saved_tensors)
        return tuple(torch._foreach_mul(ctx.saved_tensors, gradient))


def _norms(parameters: tuple[Tensor, ...], order: int) -> Tensor:
    return torch.stack(torch._foreach_norm(parameters, order, at_least_float32_dtype(parameters[0])))
