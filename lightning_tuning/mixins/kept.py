"""What a second pass over a batch must leave as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric


@contextmanager
def metrics_kept(module: nn.Module) -> Iterator[None]:
    """Undo what happens to the torchmetrics inside: a second pass would count every sample twice."""
    # The first pass has updated what the second will: the others, such as validation's, need no copy.
    metrics = [m for m in module.modules() if isinstance(m, Metric) and m.update_called]
    kept = [{**_copied_state(m), **{name: getattr(m, name) for name in _METRIC_CACHES}} for m in metrics]
    try:
        yield
    finally:
        for metric, state in zip(metrics, kept, strict=True):
            for name, value in state.items():
                setattr(metric, name, value)


def _copied_state(metric: Metric) -> dict[str, Any]:
    # A list of tensors grows by appending, so its tensors need no copy.
    return {name: v.clone() if isinstance(v, Tensor) else list(v) for name, v in metric.metric_state.items()}


_METRIC_CACHES = ("_update_count", "_computed", "_forward_cache")
