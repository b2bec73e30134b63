"""Per-step scalars that cost microseconds: collected on the device, handed over at the Trainer's logging steps.

``self.log`` costs about 220 us a key and step on a CPU even when no logger takes the value. A technique's term is
wanted at the logging steps and as a mean over the epoch, so that is all that is computed here.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed


class TermLog:
    """Scalars of one training epoch: the last value of each and its running sum."""

    def __init__(self) -> None:
        self._last: dict[str, Tensor] = {}
        self._sum: dict[str, Tensor] = {}
        self._count: dict[str, float | Tensor] = {}
        self._on_progress_bar: set[str] = set()

    def add(self, name: str, value: Tensor, prog_bar: bool = False, count: Tensor | None = None) -> None:
        """Record a value; ``count`` is how many things it is the mean of, if that changes from batch to batch."""
        value = value.detach().float()  # float32: a bf16 sum stops growing after a few hundred terms
        weight: float | Tensor = 1.0
        if count is None:
            self._last[name] = value
        else:
            weight = count.detach().float()
            self._last[name] = torch.where(weight > 0, value, torch.nan)  # a mean of nothing
            value = torch.where(weight > 0, value * weight, 0.0)
        if name in self._sum:
            self._sum[name] = self._sum[name] + value
            self._count[name] = self._count[name] + weight
        else:
            self._sum[name], self._count[name] = value, weight
        if prog_bar:
            self._on_progress_bar.add(name)

    def hand_over_step(self, module: LightningModule) -> None:
        """Give the last values to the loggers if this is a logging step. Call it in ``on_train_batch_end``."""
        trainer = module.trainer
        connector = trainer._logger_connector
        if not self._last or not connector.should_update_logs or trainer.fit_loop._should_accumulate():
            return
        for name in self._on_progress_bar & self._last.keys():
            module.log(name, self._last.pop(name), prog_bar=True, on_step=True, on_epoch=False)
        # Past self.log, whose result collection would be walked in every later step as well.
        connector.log_metrics(self._last)
        self._last.clear()

    def hand_over_epoch(self, module: LightningModule) -> None:
        """Log each term's mean over the epoch as ``<name>_epoch``. Call it in ``on_train_epoch_end``."""
        for name, mean in self._means(module).items():
            # A term may be a CPU scalar (mixup's share); NCCL reduces on the device alone.
            module.log(f"{name}_epoch", mean.to(module.device), sync_dist=True)
        self.clear()

    def _means(self, module: LightningModule) -> dict[str, Tensor]:
        """Each term's mean over the batches, of all ranks, that recorded it; the same names in one order on each rank.
        A mean of nothing is left out.

        Ranks record different terms where each draws whether it mixes a batch, and `self.log` would average what comes
        first on one rank with what comes first on another.
        """
        if not (distributed.is_available() and distributed.is_initialized()) or module.trainer.world_size == 1:
            counted = {name: float(count) for name, count in self._count.items()}
            return {name: self._sum[name] / count for name, count in counted.items() if count}
        ranks: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(
            ranks, {name: (v.item(), float(self._count[name])) for name, v in self._sum.items()}
        )
        means = {}
        for name in sorted({name for sums in ranks for name in sums}):
            totals, counts = zip(*(sums[name] for sums in ranks if name in sums), strict=True)
            if sum(counts):
                means[name] = torch.tensor(sum(totals) / sum(counts))
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch so far, on this rank."""
        return {
            name: (value.cpu(), torch.as_tensor(self._count[name], dtype=torch.float32).cpu())
            for name, value in self._sum.items()
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from them."""
        for name, (value, count) in state.items():
            self._sum[name], self._count[name] = value.to(device), count.to(device)

    def clear(self) -> None:
        """Forget the epoch. Call it in ``on_fit_start``: an earlier fit may have been interrupted within one."""
        for collected in (self._last, self._sum, self._count):
            collected.clear()


def term_log(module: LightningModule) -> TermLog:
    """The module's one :class:`TermLog`, made at first use (never part of its state)."""
    log = module.__dict__.get("_term_log")
    if log is None:
        log = module.__dict__["_term_log"] = TermLog()
    return log
