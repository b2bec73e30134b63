"""What a training step logs, held back until the whole batch has passed: one value a batch, none of a failed try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._batch_parts import weighted_mean

_TERMS = "_term_log"
"""Where a module with mixins keeps what ``log_term`` collects."""


@dataclass
class _Logged:
    """The calls with which the parts of a batch logged one value."""

    arguments: tuple[Any, ...]
    values: list[Any] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)


class HeldLogs:
    """Takes the calls of ``self.log`` and ``self.log_term`` within :meth:`held`, and makes one of each on
    :meth:`hand_over`.

    A value is the mean over the parts, weighted by their samples; a value that is logged as a sum, a maximum or a
    minimum is that of the parts. A torchmetrics metric counts every sample by itself; what it shows for the step is the
    mean over the parts.

    Args:
        trainer: The Trainer, within a training step.
        pl_module: Its module.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._results: Any = trainer._results
        self._module = vars(pl_module)
        self._term_log: Any = self._module.get(_TERMS)
        self._share = 1.0
        self._logged: dict[Any, _Logged] = {}
        self._terms: dict[Any, _Logged] = {}
        self._times: dict[Any, int] = {}

    @contextmanager
    def held(self, share: float) -> Iterator[None]:
        """Hold back what a part logs.

        Args:
            share: The part's share of the batch's samples.
        """
        self._share, self._times = share, {}
        vars(self._results)["log"] = self._log
        if self._term_log is not None:
            self._module[_TERMS] = self
        try:
            yield
        finally:
            del vars(self._results)["log"]
            if self._term_log is not None:
                self._module[_TERMS] = self._term_log

    def _log(self, fx: str, name: str, value: Any, batch_size: int | None = None, **settings: Any) -> None:
        logged = self._note(self._logged, (fx, name), (fx, name, value, settings))
        logged.values.append(value.detach() if isinstance(value, Tensor) else value._forward_cache)
        logged.sizes.append(batch_size)

    def add(self, name: str, value: Tensor, prog_bar: bool = False, count: Tensor | None = None) -> None:
        """What ``log_term`` calls."""
        logged = self._note(self._terms, name, (name, prog_bar))
        logged.values.append(value.detach())
        logged.sizes.append(None if count is None else count.detach())

    def _note(self, place: dict[Any, _Logged], key: Any, arguments: tuple[Any, ...]) -> _Logged:
        # A step may log a name twice: the first time is one thing in all parts, and the second.
        times = self._times[key] = self._times.get(key, 0) + 1
        logged = place.setdefault((key, times), _Logged(arguments))
        logged.shares.append(self._share)
        return logged

    def hand_over(self) -> None:
        """The batch has passed: log one value for each that its parts have logged."""
        for logged in self._logged.values():
            fx, name, value, settings = logged.arguments
            sized = None not in logged.sizes
            weights = logged.sizes if sized and sum(logged.sizes) else logged.shares
            combined = _combined(logged.values, weights, settings.get("reduce_fx"))
            if isinstance(value, Tensor):
                value = combined
            else:
                value._forward_cache = combined
            self._results.log(fx, name, value, batch_size=sum(logged.sizes) if sized else None, **settings)
        for term in self._terms.values():
            name, prog_bar = term.arguments
            if term.sizes[0] is None:
                self._term_log.add(name, weighted_mean(term.values, term.shares), prog_bar)
            else:
                value, count = _mean_of_counted(term.values, term.sizes)
                self._term_log.add(name, value, prog_bar, count)


def _combined(values: list[Any], weights: list[float], reduce_fx: Any) -> Any:
    if len(values) == 1 or not all(isinstance(value, Tensor) for value in values):
        return values[-1]
    kind = getattr(reduce_fx, "__name__", reduce_fx)
    if kind in ("sum", "max", "min"):
        stacked = torch.stack(values)
        return stacked.sum(0) if kind == "sum" else getattr(stacked, f"a{kind}")(0)
    return weighted_mean(values, weights)


def _mean_of_counted(values: list[Tensor], counts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of means over some things each, and over how many things it is; a mean of nothing counts nothing."""
    if len(values) == 1:
        return values[0], counts[0]
    sums = [torch.where(count > 0, value * count, 0.0) for value, count in zip(values, counts, strict=True)]
    count = torch.stack(counts).sum(0)
    return torch.stack(sums).sum(0) / count.clamp(min=1), count
