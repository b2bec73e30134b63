"""Weights to start from, and the gain that keeps a signal's size through an activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .precision import at_least_float32_dtype

INIT_METHODS = (
    *("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal", "truncated_normal"),
)
"""What :func:`init_weight_` knows."""

# The standard deviation of a standard normal variable that is cut off at two on both sides.
_TRUNCATED_STD = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def activation_gain(activation: Callable[[Tensor], Tensor]) -> float:
    """The factor on a layer's weights that makes up for the activation behind it.

    ``1 / sqrt(E f(z)^2)`` for a standard normal ``z``, integrated numerically (trapezoids of width 0.001 from -10 to
    10, float64): what He et al. derive for ReLU, which it gives exactly. For tanh and sigmoid it is what
    ``torch.nn.init.calculate_gain`` returns, 5/3 and 1, which is custom. For SELU it is 1, as its authors ask for;
    torch's 3/4 is for other purposes.

    Args:
        activation: An activation layer or a function of one tensor.

    Source: He et al., 2015, "Delving deep into rectifiers", equation 10; Klambauer et al., 2017, "Self-normalizing
    neural networks", section 2.

    Example:
        >>> round(activation_gain(torch.nn.ReLU()), 4), round(activation_gain(torch.nn.GELU()), 4)
        (1.4142, 1.5335)
    """
    if isinstance(activation, nn.Tanh) or activation is torch.tanh:
        return nn.init.calculate_gain("tanh")
    if isinstance(activation, nn.Sigmoid) or activation is torch.sigmoid:
        return nn.init.calculate_gain("sigmoid")
    if isinstance(activation, nn.ReLU):
        return nn.init.calculate_gain("relu")
    if isinstance(activation, nn.LeakyReLU):
        return nn.init.calculate_gain("leaky_relu", activation.negative_slope)
    if isinstance(activation, nn.PReLU):
        return nn.init.calculate_gain("leaky_relu", float(activation.weight.detach().mean()))
    if isinstance(activation, nn.RReLU):
        return nn.init.calculate_gain("leaky_relu", (activation.lower + activation.upper) / 2)
    z = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return 1 / math.sqrt(float((activation(z.clone()).square() * density).sum() * 0.001))


def init_weight_(weight: Tensor, method: str, gain: float = 1.0, transposed: bool = False, groups: int = 1) -> Tensor:
    """Draw the weights of a linear or convolutional layer anew, in place, from torch's default generator.

    ``fan_in`` is the number of inputs of an output, ``fan_out`` that of channels times positions of the kernel; strides
    are not counted. The standard deviation is ``gain * sqrt(2 / (fan_in + fan_out))`` for the xavier methods and
    ``gain / sqrt(fan_in)`` for the kaiming ones and ``truncated_normal``, which is cut off at two standard deviations
    and widened so that the deviation is right afterwards. ``orthogonal`` makes rows (or columns, if there are fewer)
    orthogonal with length ``gain``.

    Args:
        weight: ``[out, in / groups, ...]``; of a transposed convolution ``[in, out / groups, ...]``.
        method: One of ``INIT_METHODS``.
        gain: Factor, above 0.
        transposed: Whether it is a transposed convolution's.
        groups: Groups of the convolution.

    Returns:
        ``weight``.

    Example:
        >>> w = init_weight_(torch.empty(3, 5), "orthogonal")
        >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
        True
    """
    # Drawn in float32 at least and without strides: QR knows no half precision.
    shape = _forward_layout(weight.detach(), transposed, groups).shape
    drawn = torch.empty(shape, dtype=at_least_float32_dtype(weight), device=weight.device)
    std = gain / math.sqrt(drawn[0].numel())
    if method == "xavier_uniform":
        nn.init.xavier_uniform_(drawn, gain)
    elif method == "xavier_normal":
        nn.init.xavier_normal_(drawn, gain)
    elif method == "kaiming_uniform":
        nn.init.uniform_(drawn, -math.sqrt(3.0) * std, math.sqrt(3.0) * std)
    elif method == "kaiming_normal":
        nn.init.normal_(drawn, 0.0, std)
    elif method == "orthogonal":
        nn.init.orthogonal_(drawn, gain)
    elif method == "truncated_normal":
        wide = std / _TRUNCATED_STD
        nn.init.trunc_normal_(drawn, 0.0, wide, -2 * wide, 2 * wide)
    else:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(INIT_METHODS)}.")
    with torch.no_grad():
        return weight.copy_(_swapped(drawn, groups) if transposed else drawn)


def is_orthonormal(weight: Tensor, transposed: bool = False, groups: int = 1, tolerance: float = 0.05) -> bool:
    """Whether the rows of a layer's weight (or its columns, if there are fewer) are orthogonal and of length 1.

    Args:
        weight: As for :func:`init_weight_`.
        transposed: Whether it is a transposed convolution's.
        groups: Groups of the convolution.
        tolerance: Largest deviation of a scalar product; the default bears rounding to bfloat16.

    Example:
        >>> is_orthonormal(torch.eye(4)[:2]), is_orthonormal(2 * torch.eye(4))
        (True, False)
    """
    matrix = _forward_layout(weight.detach(), transposed, groups).flatten(1).float()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return bool((gram - torch.eye(len(gram), device=gram.device)).abs().max() <= tolerance)


def _forward_layout(weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """``[out, in / groups, ...]``."""
    return _swapped(weight, groups) if transposed else weight


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """``[a, b / groups, ...]`` as ``[b, a / groups, ...]``."""
    parts: Any = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return parts.transpose(1, 2).flatten(0, 1)
