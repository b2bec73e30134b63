"""Averages of weights over training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def ema_decay(update: int, decay: float, warmup: bool = True, power: float = 1.0) -> float:
    """Decay of the ``update``-th update of an exponential moving average.

    With warm-up it is ``min(1 - (1 + update) ** -power, decay)``. With ``power=1`` (Tarvainen & Valpola, 2017) that is
    a running mean of all weights so far, until that mean would reach further back than the decay allows; so with
    ``decay=1`` it is the mean of all. A lower power forgets the first weights sooner.

    Args:
        update: Number of the update, counted from 1.
        decay: Final decay, in ``[0, 1]``.
        warmup: Whether early updates use a smaller decay.
        power: Of the warm-up, in ``(0, 1]``.

    Returns:
        The decay to use, in ``[0, decay]``.

    Example:
        >>> [round(ema_decay(t, 0.9), 3) for t in (1, 2, 9, 100)]
        [0.5, 0.667, 0.9, 0.9]
    """
    return min(1.0 - (1.0 + update) ** -power, decay) if warmup else decay


def half_life_decay(half_life: float) -> float:
    """The decay at which an update's share in an exponential moving average falls by half in ``half_life`` updates.

    Args:
        half_life: Number of updates, > 0.

    Example:
        >>> round(half_life_decay(1), 3), round(half_life_decay(693), 3)
        (0.5, 0.999)
    """
    return 0.5 ** (1.0 / half_life)


@torch.no_grad()
def ema_update_(average: list[Tensor], current: list[Tensor], decay: float) -> None:
    """In place ``average = decay * average + (1 - decay) * current``, all tensors in one foreach pass.

    Args:
        average: The averages, floating tensors.
        current: The current values, in the same order and of the same shapes.
        decay: Share of the old average that stays, in ``[0, 1]``.

    Example:
        >>> a = [torch.tensor([1.0])]
        >>> ema_update_(a, [torch.tensor([3.0])], decay=0.75)
        >>> a
        [tensor([1.5000])]
    """
    torch._foreach_lerp_(average, current, 1.0 - decay)


class ModuleAverage:
    """Moves the tensors of one module towards those of another, which has the same ones and maybe more.

    The modules are walked once: that costs more than the update.

    Args:
        average: The module that is moved. Integer tensors become copies.
        current: The module that is followed.
        average_buffers: Whether floating buffers (batch norm's running statistics) are averaged like weights; otherwise
            they become copies.
        keeps: Tells of a submodule of ``average`` whether it keeps its buffers as they are; None: none does.

    Raises:
        KeyError: ``average`` has a weight or a submodule that ``current`` has not.

    Example:
        >>> ours, theirs = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        >>> _ = ours.weight.data.fill_(1.0), theirs.weight.data.fill_(3.0)
        >>> ModuleAverage(ours, theirs).update(decay=0.75)
        >>> ours.weight.item()
        1.5
    """

    def __init__(
        self,
        average: nn.Module,
        current: nn.Module,
        average_buffers: bool = True,
        keeps: Callable[[nn.Module], bool] | None = None,
    ) -> None:
        weights, followed = dict(average.named_parameters()), dict(current.named_parameters())
        self._weights = list(weights.values()), [followed[name] for name in weights]
        modules = dict(current.named_modules())
        # By name, for a module may exchange its buffers instead of changing them; one that two modules share, once.
        owners = dict(average.named_modules())
        paths = [path.rpartition(".") for path, _ in average.named_buffers()]
        self._buffers = [
            (owners[path], modules[path], name) for path, _, name in paths if not (keeps and keeps(owners[path]))
        ]
        self._average_buffers = average_buffers

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """One step of :func:`ema_update_`; ``decay=0`` copies."""
        mine: list[Tensor] = [*self._weights[0]]
        theirs: list[Tensor] = [*self._weights[1]]
        for average, current, name in self._buffers:
            buffer, followed = getattr(average, name), getattr(current, name)
            if self._average_buffers and buffer.is_floating_point():
                mine.append(buffer)
                theirs.append(followed)
            else:
                buffer.copy_(followed)
        ema_update_(mine, theirs, decay)
