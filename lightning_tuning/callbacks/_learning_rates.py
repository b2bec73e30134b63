"""The learning rates of a run: an optimizer's groups and the schedulers that set them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

_OF_GROUPS = ("initial_lr", "max_lr", "min_lr")
_OF_SCHEDULERS = ("base_lrs", "max_lrs", "_last_lr")


def full_rates(trainer: Trainer, optimizer: Optimizer) -> list[float]:
    """The learning rate of each group that its schedule starts from, or for OneCycleLR and CyclicLR rises to: without
    a warm-up's factor."""
    rates = [float(g.get("max_lr", g.get("initial_lr", g["lr"]))) for g in optimizer.param_groups]
    for scheduler in _schedulers(trainer, optimizer):
        rates = [float(rate) for rate in getattr(scheduler, "max_lrs", rates)]
    return rates


def set_rates(optimizer: Optimizer, rates: Iterable[float]) -> None:
    """Give each group its learning rate, for now."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def scale_rates(trainer: Trainer, optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rates of all groups, and those that schedulers compute theirs from."""
    set_rates(optimizer, [float(group["lr"]) * factor for group in optimizer.param_groups])
    for group in optimizer.param_groups:
        group.update({name: group[name] * factor for name in _OF_GROUPS if name in group})
    for scheduler in _schedulers(trainer, optimizer):
        for name in _OF_SCHEDULERS:
            if hasattr(scheduler, name):
                setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])


def _schedulers(trainer: Trainer, optimizer: Optimizer) -> Iterator[Any]:
    """Those of the optimizer, also within SequentialLR and ChainedScheduler."""
    waiting = [config.scheduler for config in trainer.lr_scheduler_configs]
    while waiting:
        scheduler: Any = waiting.pop()
        waiting.extend(getattr(scheduler, "_schedulers", []))
        if scheduler.optimizer is optimizer:
            yield scheduler
