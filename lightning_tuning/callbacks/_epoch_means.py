"""The running sums behind an epoch's means: Lightning's and the techniques'. Lightning's checkpoints leave them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import distributed
from torch.utils._pytree import tree_map
from torchmetrics import Metric

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
        metric = _ResultMetric(meta, is_tensor=meta.metric_attribute is None)
        if meta.metric_attribute is None:
            _load(metric, state, module.device)
        else:
            metric.value = module.get_submodule(meta.metric_attribute)
            for name, part in _metrics_in(metric.value):
                _load(part, state[name], module.device)
        metric._update_count = 1
        results[key] = metric.to(module.device)


def finished_metrics(trainer: Trainer, within_epoch: bool) -> list[str]:
    """The names of the logged torchmetrics objects that are reset before they are used again: those of validation, and
    behind the epoch's end those of training."""
    loop = trainer.fit_loop.epoch_loop
    collections = [loop.val_loop._results, *([] if within_epoch else [loop._results])]
    metas = [metric.meta for results in collections for metric in results.values() if not metric.is_tensor]
    return sorted({meta.metric_attribute for meta in metas if meta.metric_attribute})


def reset_metrics(module: LightningModule, names: list[str]) -> None:
    """Reset torchmetrics objects of a module, as Lightning had not yet done when the checkpoint was written."""
    for name in names:
        for _, metric in _metrics_in(module.get_submodule(name)):
            metric.reset()


def _logged(trainer: Trainer) -> dict[str, Any]:
    """Of each value of ``self.log(..., on_epoch=True)``: how it was logged, and its sum."""
    found = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        meta = metric.meta
        reduction = next((name for name, fx in _REDUCTIONS.items() if meta.reduce_fx is fx), None)
        if not (meta.on_epoch and reduction and not metric.has_reset and meta.sync._group is None):
            continue
        state = _state(metric) if metric.is_tensor else {name: _state(part) for name, part in _metrics_in(metric.value)}
        fields = {name: getattr(meta, name) for name in _FIELDS}
        found[key] = (fields, reduction, (meta.sync.should, meta.sync.rank_zero_only), state)
    return found


def _metrics_in(metric: Any) -> Iterator[tuple[str, Metric]]:
    """A torchmetrics object and those that it is made of, by name."""
    return ((name, part) for name, part in metric.named_modules() if isinstance(part, Metric))


def _state(metric: Metric) -> dict[str, Any]:
    return {name: tree_map(lambda leaf: leaf.detach().cpu(), getattr(metric, name)) for name in metric._defaults}


def _load(metric: Metric, state: dict[str, Any], device: torch.device) -> None:
    for name, value in state.items():
        setattr(metric, name, tree_map(lambda leaf: leaf.to(device), value))
    metric._computed, metric._update_count = None, 1
