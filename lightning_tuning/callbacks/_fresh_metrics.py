"""Metrics that were logged anew since one looked last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer


@dataclass
class FreshMetrics:
    """Tells logged values from those that are left of an earlier validation or epoch.

    Lightning keeps the last value of each metric for ever. A value that is logged again is another tensor.
    """

    before: dict[str, Any] | None = None
    """What was logged before; None if nobody looked."""

    def begin(self, trainer: Trainer) -> None:
        """Look for what is logged from here on."""
        self.before = dict(trainer._logger_connector._callback_metrics)

    def take(self, trainer: Trainer, names: Iterable[str]) -> dict[str, float]:
        """Those of the metrics that were logged since :meth:`begin`: each the mean over the ranks that logged it.

        All ranks have to ask, with the same names, and get the same answer.
        """
        before, names = self.before or {}, [*names]
        logged = trainer.callback_metrics if self.before is not None else {}
        values = {n: float(logged[n]) for n in names if n in logged and logged[n] is not before.get(n)}
        if trainer.world_size == 1:
            return values
        numbers = torch.tensor([[values.get(n, 0.0), n in values] for n in names], dtype=torch.float64)
        gathered = trainer.strategy.all_gather(numbers.to(trainer.strategy.root_device))
        sums = gathered.reshape(-1, len(names), 2).sum(0).tolist()
        return {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
