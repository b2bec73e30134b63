"""Clipping of gradients: unit by unit, and of the whole to a percentile of its past norms."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort

import torch
from torch import Tensor

from .precision import at_least_float32_dtype


def unit_norms(tensors: list[Tensor]) -> list[Tensor]:
    """Euclidean norm of each unit of each tensor, in float32 or wider.

    A unit is one index of the first dimension (the weights into one output); a tensor of no or one dimension is one
    unit.

    Returns:
        For ``[U, ...]`` norms of shape ``[U, 1, ...]``, else scalars.

    Example:
        >>> unit_norms([torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([6.0, 8.0])])
        [tensor([[5.],
                [1.]]), tensor(10.)]
    """
    vectors = [t for t in tensors if t.ndim < 2]
    whole = iter(torch._foreach_norm(vectors, 2, at_least_float32_dtype(vectors[0])) if vectors else ())
    return [
        next(whole)
        if t.ndim < 2
        else torch.linalg.vector_norm(t, 2, tuple(range(1, t.ndim)), keepdim=True, dtype=at_least_float32_dtype(t))
        for t in tensors
    ]


def adaptive_clip_(
    gradients: list[Tensor], weights: list[Tensor], clip: float, eps: float, scale: Tensor | None = None
) -> list[Tensor]:
    """Adaptive gradient clipping, in place (Brock et al., 2021, equation 3).

    ``g <- g clip max(||w||, eps) / ||g||`` for each unit in which that is smaller.

    Args:
        gradients: One tensor a parameter.
        weights: The parameters, in the same order.
        clip: Largest ratio of a unit's gradient to its weights, > 0.
        eps: Least norm that a unit's weights count with, > 0, so that units at zero can move.
        scale: The factor that the gradients still carry; None for none.

    Returns:
        The factors that the units were multiplied by, shaped as :func:`unit_norms` does; 1 where nothing was clipped.

    Example:
        >>> gradient, weight = torch.tensor([[3.0, 4.0], [0.0, 0.01]]), torch.tensor([[6.0, 8.0], [1.0, 0.0]])
        >>> _ = adaptive_clip_([gradient], [weight], clip=0.1, eps=1e-3)
        >>> gradient
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0100]])
    """
    factors = torch._foreach_clamp_min(unit_norms(weights), eps)
    torch._foreach_mul_(factors, clip if scale is None else clip * scale)
    torch._foreach_div_(factors, unit_norms(gradients))
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(gradients, factors)
    return list(factors)


class NormHistory:
    """Past gradient norms, with the percentile of them and one more that is still on the device.

    Args:
        window: How many norms are kept; None keeps all, 16 bytes each.

    Example:
        >>> history = NormHistory()
        >>> for norm in (3.0, 1.0, 2.0):
        ...     history.add(norm)
        >>> history.percentile_with(torch.tensor(10.0), 50)  # of 1, 2, 3 and 10
        tensor(2.5000)
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self._by_time = array("d")
        self._by_size = array("d")

    def __len__(self) -> int:
        return len(self._by_time)

    def add(self, norm: float) -> None:
        """Note a norm, forgetting the oldest if the window is full. One that is not finite is left out."""
        if not math.isfinite(norm):
            return
        self._by_time.append(norm)
        insort(self._by_size, norm)
        if self.window is not None and len(self) > self.window:
            del self._by_size[bisect_left(self._by_size, self._by_time.pop(0))]

    def percentile_with(self, norm: Tensor, percentile: float) -> Tensor:
        """Percentile of the history and ``norm`` together, interpolated linearly; a scalar beside ``norm``.

        The k-th smallest of a sorted list and one more value is that value, clamped to two neighbours of the list. So
        nothing has to wait for the device.

        Args:
            norm: A scalar tensor.
            percentile: 0 (the smallest) to 100 (the largest).
        """
        rank = len(self) * percentile / 100
        below, share = math.floor(rank), rank % 1
        value = norm.clamp(self._sorted(below - 1), self._sorted(below))
        if share == 0:
            return value
        return value.lerp(norm.clamp(self._sorted(below), self._sorted(below + 1)), share)

    def _sorted(self, index: int) -> float:
        if index < 0:
            return -math.inf
        return self._by_size[index] if index < len(self) else math.inf

    def state(self) -> Tensor:
        """The norms in the order of time, ``[len]`` of float64."""
        return torch.tensor(self._by_time, dtype=torch.float64)

    def load(self, norms: Tensor) -> None:
        """Take over what :meth:`state` gave."""
        self.__init__(self.window)  # type: ignore[misc]
        for norm in norms.tolist():
            self.add(norm)
