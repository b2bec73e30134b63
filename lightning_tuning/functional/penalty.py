"""Penalties on parameters, without a Python loop over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .precision import at_least_float32_dtype


def l1_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Sum of the absolute values of all parameters; its gradient is sign(w), and 0 at w = 0.

    Args:
        parameters: Tensors of any shapes on one device, at least one. They may be of half precision.

    Returns:
        A float32 (or float64) scalar, differentiable.

    Example:
        >>> l1_norm([torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])])
        tensor(6.)
    """
    return torch.stack(torch._foreach_norm(list(parameters), 1, at_least_float32_dtype(parameters[0]))).sum()
