"""Noise on gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .precision import at_least_float32_dtype

_AT_ONCE = 1 << 20


def noise_std(step: int, eta: float, gamma: float) -> float:
    """Standard deviation of the annealed noise, ``sqrt(eta / (1 + step)^gamma)`` (Neelakantan et al., 2015).

    Args:
        step: Optimizer steps made so far, from 0.
        eta: The variance at step 0.
        gamma: How fast it falls.

    Example:
        >>> noise_std(3, eta=0.04, gamma=1.0)
        0.1
    """
    return (eta / (1 + step) ** gamma) ** 0.5


def add_noise_(gradients: list[Tensor], std: float, generator: torch.Generator, scale: Tensor | None = None) -> None:
    """Add independent normal noise to every number of the gradients, in place.

    Args:
        gradients: One tensor a parameter, on the generator's device. Which noise a tensor gets depends on those before
            it, and on the device.
        std: Its standard deviation, >= 0.
        generator: Where the noise comes from; torch's default generators are left alone.
        scale: The factor that the gradients still carry, and the noise gets too; None for none.

    Example:
        >>> gradients = [torch.zeros(2), torch.ones(1)]
        >>> add_noise_(gradients, 0.0, torch.Generator())
        >>> gradients
        [tensor([0., 0.]), tensor([1.])]
    """
    for lot in _lots(gradients):
        sizes = [g.numel() for g in lot]
        dtype = at_least_float32_dtype(lot[0])
        noise = torch.randn(sum(sizes), generator=generator, device=generator.device, dtype=dtype)
        if scale is not None:
            noise *= scale
        parts = [part.view(g.shape) for part, g in zip(noise.split(sizes), lot, strict=True)]
        torch._foreach_add_(lot, parts, alpha=std)


def _lots(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Divide a list into lots to draw at once: some kernels instead of one a parameter, and little memory.

    On a CPU, fresh memory for the noise of a whole ResNet-18 takes as long as the noise itself.
    """
    lot: list[Tensor] = []
    total = 0
    for tensor in tensors:
        if lot and total + tensor.numel() > _AT_ONCE:
            yield lot
            lot, total = [], 0
        lot.append(tensor)
        total += tensor.numel()
    if lot:
        yield lot
