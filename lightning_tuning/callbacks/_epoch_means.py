"""The running sums behind an epoch's means: Lightning's and the techniques'. Lightning's checkpoints leave them out."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import distributed

_FIELDS = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph"),
    *("add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)
_REDUCTIONS: dict[str, Any] = {"mean": torch.mean, "sum": torch.sum, "max": torch.max, "min": torch.min}


def sums_of_ranks(trainer: Trainer, module: LightningModule) -> list[dict[str, Any]]:
    """What each rank has gathered in the epoch so far; every rank asks."""
    terms = vars(module).get("_term_log")
    own = {"logged": _logged(trainer), "terms": terms.state_dict() if terms is not None else {}}
    if trainer.world_size == 1:
        return [own]
    ranks: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(ranks, own)
    return ranks


def restore_sums(trainer: Trainer, module: LightningModule, ranks: list[dict[str, Any]]) -> None:
    """Go on from them. With another number of ranks they are of other batches, and left alone."""
    if len(ranks) != trainer.world_size:
        return
    own = ranks[trainer.global_rank]
    terms = vars(module).get("_term_log")
    if terms is not None:
        terms.load_state_dict(own["terms"], module.device)
    trainer._logger_connector._first_loop_iter = True  # or the first call of `log` in the epoch clears them
    results = trainer.fit_loop.epoch_loop._results
    for key, (fields, reduction, sync, state) in own["logged"].items():
        meta = _Metadata(**fields, reduce_fx=_REDUCTIONS[reduction])
        should, rank_zero_only = sync
        meta.sync = _Sync(fn=trainer.strategy.reduce, _should=should, rank_zero_only=rank_zero_only)
        metric = _ResultMetric(meta, is_tensor=True)
        for name, value in state.items():
            setattr(metric, name, value.to(module.device))
        metric._update_count = 1
        results[key] = metric.to(module.device)


def _logged(trainer: Trainer) -> dict[str, Any]:
    """Of each value of ``self.log(..., on_epoch=True)``: how it was logged, and its sum."""
    found = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        meta = metric.meta
        reduction = next((name for name, fx in _REDUCTIONS.items() if meta.reduce_fx is fx), None)
        if not (metric.is_tensor and meta.on_epoch and reduction and not metric.has_reset and meta.sync._group is None):
            continue  # a torchmetrics object keeps its state itself
        state = {name: getattr(metric, name).detach().cpu() for name in metric._defaults}
        fields = {name: getattr(meta, name) for name in _FIELDS}
        found[key] = (fields, reduction, (meta.sync.should, meta.sync.rank_zero_only), state)
    return found
