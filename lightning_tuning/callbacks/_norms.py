"""Norms of gradients and of what a step changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype, _has_foreach_support

from lightning_tuning.functional.precision import at_least_float32


class Norms:
    """2-norms of the gradients of one step, computed in one foreach pass just as ``clip_grad_norm_`` does.

    Args:
        parameters: Those without a gradient are left out.
        widen: Whether half-precision gradients are summed up in float32, which clipping does not do.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> Norms([weight]).total.item()
        5.0
    """

    def __init__(self, parameters: Iterable[nn.Parameter], widen: bool = False) -> None:
        with_grad = [p for p in parameters if p.grad is not None]
        grads = [stored(cast(Tensor, p.grad)) for p in with_grad]
        self.parameters: list[nn.Parameter] = []
        norms: list[Tensor] = []
        # The order of the norms decides the last bit of the total, so tensors are grouped as clipping groups them.
        for (device, dtype), ((tensors,), indices) in _grouped(grads).items():
            wide = torch.float32 if widen and dtype in (torch.float16, torch.bfloat16) else None
            if _has_foreach_support(tensors, device):
                norms.extend(torch._foreach_norm(tensors, 2.0, dtype=wide))
            else:
                norms.extend(torch.linalg.vector_norm(grad, 2.0, dtype=wide) for grad in tensors)
            self.parameters.extend(with_grad[i] for i in indices)
        self.each = torch.stack([norm.to(grads[0].device) for norm in norms]) if norms else torch.zeros(0)
        self.total = torch.linalg.vector_norm(self.each, 2.0)


def stored(gradient: Tensor) -> Tensor:
    """The elements of a gradient: of a sparse one those that it has, the rest being zero."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _grouped(grads: list[Tensor]) -> dict[Any, Any]:
    return _group_tensors_by_device_and_dtype([grads], with_indices=True) if grads else {}  # type: ignore[list-item]


class UpdateRatio:
    """How far one step moves each parameter, relative to its norm before the step.

    Args:
        parameters: As they are before the step; they are copied.

    Example:
        >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> ratio = UpdateRatio([weight])
        >>> _ = weight.data.add_(torch.tensor([0.0, 0.5]))
        >>> ratio.norms()
        ([0.5], [5.0])
        >>> ratio.by_group({weight: "head"})
        {'total': 0.1}
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self._before = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def norms(self) -> tuple[list[float], list[float]]:
        """The norms of each parameter's update and of what it was before, in float32 at least."""
        before = [at_least_float32(p) for p in self._before]
        moved = torch._foreach_sub([at_least_float32(p.detach()) for p in self.parameters], before)
        return _lengths(moved), _lengths(before)

    def by_group(self, names: dict[nn.Parameter, str]) -> dict[str, float]:
        """Update-to-weight ratios, ``total`` and each group, if there are several; none where all weights were zero."""
        moved, weights = (_by_group(self.parameters, each, names) for each in self.norms())
        total = {"total": math.hypot(*moved.values())}, {"total": math.hypot(*weights.values())}
        moved, weights = total[0] | _if_several(moved), total[1] | _if_several(weights)
        return {name: moved[name] / weights[name] for name in moved if weights[name]}


def _lengths(tensors: Iterable[Tensor]) -> list[float]:
    return [float(norm) for norm in torch._foreach_norm(list(tensors), 2.0)]


@dataclass
class Look:
    """What one optimizer step leaves for the logging."""

    before: Norms
    scale: float
    """The factor that the gradients still carried."""
    max_norm: float | None = None
    """What the norm is clipped to after it was taken."""
    after: Norms | None = None

    def groups(self, names: dict[nn.Parameter, str]) -> dict[str, float]:
        """The norm of each group before clipping."""
        groups = _by_group(self.before.parameters, self.before.each.tolist(), names)
        return {name: norm / self.scale for name, norm in groups.items()}

    def norms(self, names: dict[nn.Parameter, str]) -> dict[str, float]:
        """``total`` and each group, if there are several: before clipping, and as ``<name>_clipped`` after it."""
        values = {"total": self.before.total.item() / self.scale} | _if_several(self.groups(names))
        if self.max_norm is not None:
            factor = min(self.max_norm / (self.before.total.item() + 1e-6), 1.0)
            values |= {f"{name}_clipped": value * factor for name, value in values.items()}
        elif self.after is not None:
            after = Look(self.after, self.scale).norms(names)
            values |= {f"{name}_clipped": value for name, value in after.items()}
        return values


def _by_group(
    parameters: list[nn.Parameter], each: Iterable[float], names: dict[nn.Parameter, str]
) -> dict[str, float]:
    """The norm of each group from those of its parameters."""
    squares: dict[str, float] = {}
    for parameter, norm in zip(parameters, each, strict=True):
        squares[names[parameter]] = squares.get(names[parameter], 0.0) + norm * norm
    return {name: math.sqrt(square) for name, square in squares.items()}


def _if_several(groups: dict[str, float]) -> dict[str, float]:
    return groups if len(groups) > 1 else {}
