"""Batch norm's running statistics as exact statistics of given inputs, in place of moving averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .modes import evaluating
from .precision import at_least_float32
from .rng import get_rng_state, set_rng_state


def tracking_batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers of ``module`` that keep running statistics.

    Example:
        >>> len(tracking_batch_norms(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))))
        1
    """
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def is_batch_norm(module: nn.Module) -> bool:
    """Whether what a layer makes of a sample depends, in training, on the rest of the batch.

    Example:
        >>> is_batch_norm(nn.BatchNorm2d(3)), is_batch_norm(nn.GroupNorm(1, 3))
        (True, False)
    """
    # Others' batch norms need not inherit from torch's.
    return isinstance(module, _BatchNorm) or "BatchNorm" in type(module).__name__


class _Moments:
    """A forward pre-hook that counts a layer's inputs: number, mean and sum of squared deviations of each channel."""

    def __init__(self) -> None:
        self.count, self.mean, self.spread = 0, torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        x = at_least_float32(args[0])
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        self.merge(count, mean, variance * count)

    def merge(self, count: int, mean: Tensor, spread: Tensor) -> None:
        """Add the moments of ``count`` more values a channel (Chan, Golub & LeVeque, 1979)."""
        total = self.count + count
        if self.count == 0:
            self.count, self.mean, self.spread = count, mean, spread
        elif count:
            change = mean - self.mean
            self.mean = self.mean + change * (count / total)
            self.spread = self.spread + spread + change.square() * (self.count * count / total)
            self.count = total


@contextmanager
def population_statistics(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Within it, each batch norm layer normalises an input by the input's own statistics, as in training; afterwards
    its running statistics are the mean and the variance of all the values that it has seen, of all ranks.

    Every value counts the same, whatever batch it was in, and the variance includes that between the batches: it is
    ``E[x^2] - E[x]^2`` over all values, with torch's correction ``n / (n - 1)``. ``training``, ``momentum`` and the
    number of batches stay as they are. A layer that sees no input keeps its statistics, and so do all if the block
    raises.

    Args:
        layers: Layers that keep running statistics, on every rank the same ones in the same order.

    Source: Wu & Johnson, 2021, "Rethinking 'batch' in BatchNorm", section 3.

    Example:
        >>> norm, x = nn.BatchNorm1d(1).eval(), torch.tensor([[1.0], [2.0], [6.0]])
        >>> with population_statistics([norm]):
        ...     _ = norm(x[:2]), norm(x[[2, 2]])
        >>> norm.running_mean.item(), round(norm.running_var.item(), 4), norm.training
        (3.75, 6.9167, False)
    """
    layers = list(layers)
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    moments = [_Moments() for _ in layers]
    hooks = [layer.register_forward_pre_hook(seen) for layer, seen in zip(layers, moments, strict=True)]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, (training, tracks) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracks
    for layer, seen in zip(layers, _over_ranks(layers, moments), strict=True):
        if seen.count > 1 and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(seen.mean)
            layer.running_var.copy_(seen.spread / (seen.count - 1))


def _over_ranks(layers: list[_BatchNorm], moments: list[_Moments]) -> list[_Moments]:
    """The moments of all ranks' values together."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return moments
    rows = []
    for layer, seen in zip(layers, moments, strict=True):
        like = torch.zeros(layer.num_features, dtype=torch.float64, device=layer.running_mean.device)  # type: ignore[union-attr]
        count = like.new_full((1,), seen.count)
        rows += [count, like + seen.mean.to(like.device), like + seen.spread.to(like.device)]
    mine = torch.cat(rows) if rows else torch.zeros(0)
    ranks = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(ranks, mine)
    merged = [_Moments() for _ in layers]
    for row in ranks:
        parts = row.split([size for layer in layers for size in (1, layer.num_features, layer.num_features)])
        for i, seen in enumerate(merged):
            count, mean, spread = parts[3 * i : 3 * i + 3]
            seen.merge(int(count), mean, spread)
    return merged


@torch.no_grad()
def recalibrate_batch_norm(
    module: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
    layers: Iterable[_BatchNorm] | None = None,
) -> int:
    """Give batch norm layers the statistics of the module's present weights over ``batches``.

    To be called after weights were averaged, for the running statistics belong to other weights then. Only these layers
    are in training mode meanwhile: dropout and the like are off, as in the evaluation that the statistics are for. The
    random generators and every ``training`` flag are put back.

    Args:
        module: The module whose ``forward`` runs.
        batches: Inputs, each at least two values a channel, on the module's device.
        forward: What runs on each batch. None: ``module(batch)``, or ``module(batch[0])`` of a tuple or list.
        layers: The layers. None: all that keep running statistics.

    Returns:
        The number of batches.

    Example:
        >>> net, data = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)), torch.arange(8.0)[:, None]
        >>> recalibrate_batch_norm(net, data.split(4))
        2
        >>> torch.allclose(net[1].running_mean, net[0](data).mean(0))
        True
    """
    layers = tracking_batch_norms(module) if layers is None else list(layers)
    first = next(module.parameters(), None)
    rng = get_rng_state(torch.device("cpu") if first is None else first.device)
    number = 0
    try:
        with evaluating(module), population_statistics(layers):
            for number, batch in enumerate(batches, 1):  # noqa: B007
                x = batch[0] if forward is None and isinstance(batch, (tuple, list)) else batch
                (forward or module)(x)
    finally:
        set_rng_state(rng)
    return number
