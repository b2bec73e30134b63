"""What a schedule sets: values of an optimizer's groups, numbers of the module, the accumulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from lightning_tuning.errors import CompositionError, InvalidValueError, did_you_mean
from lightning_tuning.timing.curves import Curve
from lightning_tuning.timing.moments import PlainClock

GROUP_VALUES = ("lr", "weight_decay", "momentum")
SCALE = "lr_scale"
"""The key of a group's factor on its learning rate: layer decay times batch scaling."""
ORIGIN = "split_from"
"""The key under which a part of a split group keeps the number and name of the group it was part of."""
ValueOf = Callable[[float], float]
"""The value now, from the full value."""


class GroupTarget:
    """A value of all groups of an optimizer, or of one.

    The full value of a group is kept in it as ``initial_<value>``, torch's own name for the learning rate's. So it is
    in checkpoints, and what scales it is respected. Groups that are added later are taken as they come.

    Args:
        optimizer: The optimizer.
        value: ``lr``, ``weight_decay`` or ``momentum``.
        group: A group's name or number; None: all groups.
    """

    def __init__(self, optimizer: Optimizer, value: str, group: str | None) -> None:
        self.optimizer, self.value, self.group = optimizer, value, group
        self._key = "betas" if value == "momentum" and "betas" in optimizer.defaults else value

    def groups(self) -> list[dict[str, Any]]:
        """The groups that it sets."""
        groups = self.optimizer.param_groups
        if self.group is None:
            return groups
        return [group for number, group in enumerate(groups) if self.group in group_names(number, group)]

    def begin(self, full: float | None, keep: bool) -> None:
        """Note the full values.

        Args:
            full: The full value, but for groups where it is 0; None: each group's own.
            keep: Whether to leave those alone that a checkpoint has brought.
        """
        for group in self.groups():
            name = f"initial_{self.value}"
            if not keep or name not in group:
                own = group.get(name, self._read(group))
                group[name] = own if full is None or own == 0 else full * group.get(SCALE, 1.0)

    def scale(self, factor: float) -> None:
        """Multiply the full values."""
        for group in self.groups():
            group[f"initial_{self.value}"] *= factor
            group[SCALE] = group.get(SCALE, 1.0) * factor

    def full_values(self) -> list[float]:
        return [group[f"initial_{self.value}"] for group in self.groups()]

    def set(self, value_of: ValueOf) -> float:
        """Set the value of each group; return that of the first group where it is not switched off."""
        values = []
        for group in self.groups():
            full = group.setdefault(f"initial_{self.value}", self._read(group))
            scale = group.get(SCALE, 1.0) if self.value == "lr" else 1.0
            values.append(scale * value_of(full / scale) if full else 0.0)
            self._write(group, values[-1])
        return next(filter(None, values), 0.0)

    def restore(self) -> None:
        """The last value stays: it belongs to the optimizer's state."""

    def _read(self, group: dict[str, Any]) -> float:
        value = group[self._key]
        return float(value[0] if self._key == "betas" else value)

    def _write(self, group: dict[str, Any], value: float) -> None:
        old = group[self._key]
        if isinstance(old, Tensor):  # a captured or compiled step holds on to it
            old.fill_(value)
        else:
            group[self._key] = (value, *old[1:]) if self._key == "betas" else value


class ModuleTarget:
    """A number of the module: an argument of a technique, or an attribute of the user's own that each step reads."""

    def __init__(self, module: LightningModule, name: str, of_technique: bool) -> None:
        self.module, self.name, self.of_technique = module, name, of_technique
        self._configured: dict[str, Any] = module.__dict__.setdefault("_configured", {})
        self._full: float = float(getattr(module, name))

    def begin(self, full: float | None, keep: bool) -> None:
        self._configured[self.name] = getattr(self.module, self.name)
        self._full = self._full if full is None else full

    def full_values(self) -> list[float]:
        return [self._full]

    def set(self, value_of: ValueOf) -> float:
        value = value_of(self._full)
        setattr(self.module, self.name, value)
        return value

    def restore(self) -> None:
        if self.name in self._configured:
            setattr(self.module, self.name, self._configured.pop(self.name))


class AccumulationTarget:
    """The number of batches that an optimizer step takes; it changes between epochs."""

    def __init__(self, trainer: Trainer) -> None:
        if any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise CompositionError(
                "Schedule sets the accumulation, and so does GradientAccumulationScheduler. Remove one of the two."
            )
        if (trainer.max_epochs or -1) < 1:
            raise MisconfigurationException("Schedule: the accumulation's schedule needs trainer.max_epochs.")
        self.trainer, self._configured = trainer, trainer.accumulate_grad_batches
        self._full = float(self._configured)
        self.clock = PlainClock(float(trainer.max_epochs or 1), steps_per_epoch=1.0)

    def begin(self, full: float | None, keep: bool) -> None:
        self._full = self._full if full is None else full

    def full_values(self) -> list[float]:
        return [self._full]

    def count(self, epoch: int, curve: Curve) -> int:
        return max(math.floor(curve.value(self._full, epoch, self.clock) + 0.5), 1)

    def set(self, epoch: int, curve: Curve) -> float:
        self.trainer.accumulate_grad_batches = self.count(epoch, curve)
        return self.trainer.accumulate_grad_batches

    def restore(self) -> None:
        self.trainer.accumulate_grad_batches = self._configured


Target = GroupTarget | ModuleTarget | AccumulationTarget


def overlap(one: Target, other: Target | None) -> bool:
    """Whether both set the same value of a group."""
    if not (isinstance(one, GroupTarget) and isinstance(other, GroupTarget) and one.value == other.value):
        return False
    return bool({id(group) for group in one.groups()} & {id(group) for group in other.groups()})


def group_names(number: int, group: dict[str, Any]) -> set[str]:
    """What a target may call a group: its number or its name, also of the group that it was split from."""
    number, name = group.get(ORIGIN, (number, group.get("name")))
    return {str(number), *filter(None, (name, group.get("name")))}


def find_target(trainer: Trainer, module: LightningModule, target: str) -> Target:
    """What ``target`` names in this run.

    Raises:
        InvalidValueError: It names nothing that a step reads.
        CompositionError: A scheduler of ``configure_optimizers`` sets it too.
    """
    if target == "accumulation":
        return AccumulationTarget(trainer)
    group, _, value = target.rpartition(".")
    if value not in GROUP_VALUES:
        return _module_target(module, target)
    optimizer = trainer.optimizers[0]
    found = GroupTarget(optimizer, value, group or None)
    if not found.groups():
        names = [name for number, g in enumerate(optimizer.param_groups) for name in sorted(group_names(number, g))]
        raise InvalidValueError(
            f"Schedule: target is {target!r}, but the optimizer has no group {group!r}{did_you_mean(group, names)} It "
            f"has: {', '.join(dict.fromkeys(names))}."
        )
    if value != "lr" and found._key not in optimizer.defaults:
        raise InvalidValueError(f"Schedule: target is {target!r}, but {type(optimizer).__name__} has no {value}.")
    _refuse_a_second_scheduler(trainer, module, found, target)
    if value != "lr" and not any(found._read(group) for group in found.groups()):
        raise InvalidValueError(
            f"Schedule: target is {target!r}, which is 0 in all groups of {type(optimizer).__name__}: nothing would "
            "change. Give the optimizer the full value."
        )
    return found


def _refuse_a_second_scheduler(trainer: Trainer, module: LightningModule, found: GroupTarget, target: str) -> None:
    cycled = found.value == "momentum" and any("max_momentum" in group for group in found.groups())
    if trainer.lr_scheduler_configs and (found.value == "lr" or cycled):
        other = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        raise CompositionError(
            f"Schedule sets {target}, and so does the {other} that {type(module).__name__}.configure_optimizers "
            "returns. Remove one of the two: of a ready host with schedule: constant and warmup_steps: 0."
        )


def _module_target(module: LightningModule, target: str) -> ModuleTarget:
    tuned: Any = module if hasattr(module, "adjustable") else None  # a module with mixins
    techniques = tuned.adjustable() if tuned else {}
    if target in techniques:
        return ModuleTarget(module, target, of_technique=True)
    if tuned and (why := tuned.why_fixed(target)):
        raise InvalidValueError(f"Schedule: target is {target!r}, but {why}")
    value = getattr(module, target, None)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return ModuleTarget(module, target, of_technique=False)
    names = [*GROUP_VALUES, "accumulation", *techniques]
    raise InvalidValueError(
        f"Schedule: target is {target!r}{did_you_mean(target, names)} It must be {', '.join(names)}, '<group>.lr', or "
        f"the name of another number that each step reads from {type(module).__name__}. A technique has to be on."
    )
