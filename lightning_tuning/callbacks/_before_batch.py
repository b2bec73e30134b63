"""What a batch's first try finds, and a second one has to find again."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from lightning_tuning.functional import TermWatch, get_rng_state, set_rng_state

from ._buffer_copies import BufferCopies

_METRIC_CACHES = ("_update_count", "_computed", "_forward_cache")


class BeforeBatch:
    """The random generators, the module's buffers and its metrics before a batch.

    Args:
        module: The module.
        device: What it computes on.
    """

    def __init__(self, module: LightningModule, device: torch.device) -> None:
        self._module, self._device = module, device
        self._buffers = BufferCopies(module)
        self._metrics: list[Metric] = []

    def look_up(self) -> None:
        """Walk the module anew: layers may have been exchanged."""
        self._buffers.look_up()
        self._metrics = [m for m in self._module.modules() if isinstance(m, Metric)]

    def take(self) -> None:
        """A batch begins."""
        self._random = get_rng_state(self._device)
        self._states = [_state(metric) if metric.update_called else None for metric in self._metrics]
        self._buffers.take()

    def restore(self) -> None:
        """Put back what was there at the last :meth:`take`."""
        set_rng_state(self._random)
        self._buffers.put_back()
        for metric, state in zip(self._metrics, self._states, strict=True):
            if state is None and metric.update_called:
                metric.reset()
            for name, value in (state or {}).items():
                setattr(metric, name, _copied(value))
        if "_term_watch" in vars(self._module):  # it holds the graph of the step that failed
            vars(self._module)["_term_watch"] = TermWatch()


def _state(metric: Metric) -> dict[str, Any]:
    state = {name: _copied(value) for name, value in metric.metric_state.items()}
    return {**state, **{name: getattr(metric, name) for name in _METRIC_CACHES}}


def _copied(value: Any) -> Any:
    if isinstance(value, list):  # it grows by appending, so its tensors need no copy
        return [*value]
    return value.clone() if isinstance(value, Tensor) else value
