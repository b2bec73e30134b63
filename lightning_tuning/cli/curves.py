"""The scheduled values of a run, step by step, before it is run."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_tuning.callbacks import Schedule
from lightning_tuning.callbacks._scheduled import GROUP_VALUES, SCALE, GroupTarget
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.mixins import TuningMixin
from lightning_tuning.mixins.composition import own_arguments
from lightning_tuning.mixins.ramps import parse_ramp
from lightning_tuning.timing.progress import accumulation_in, total_steps
from lightning_tuning.timing.run_clock import RunClock

_MOST_STEPS = 10_000_000


class Line(NamedTuple):
    """A value over the optimizer steps of a run."""

    name: str
    values: list[float]
    panel: str
    """Lines of one panel are of one kind."""

    @property
    def warmup_ends(self) -> int | None:
        """The first step at the height of the rise that the line begins with; None if it begins with none, or rises
        to the run's end."""
        rises = []
        for step, (now, then) in enumerate(itertools.pairwise(self.values), start=1):
            if then < now:
                break
            if then > now:
                rises.append(step)
        is_one = rises and (rises[0] == 1 or len(rises) > 1) and rises[-1] < len(self.values) - 1
        return rises[-1] if is_one else None


class Schedules(NamedTuple):
    """All scheduled values of a run."""

    lines: list[Line]
    steps: int
    epoch_ends: list[int]
    """The steps done at the end of each epoch; empty if nobody knows how long one is."""
    notes: list[str]


def read_schedules(trainer: Trainer, module: LightningModule) -> Schedules:
    """The schedules of a run whose first step is about to be made.

    Raises:
        MisconfigurationException: Nobody knows how long the run is.
        InvalidValueError: The run is too long to be drawn step by step, or the module steps its schedulers itself.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise InvalidValueError(f"{name} steps its optimizers and schedulers itself: nobody knows beforehand how.")
    steps = math.ceil(total_steps(trainer, "The picture", "--trainer.max_steps"))
    if steps > _MOST_STEPS:
        raise InvalidValueError(f"The run has {steps} steps, too many to draw: give --trainer.max_steps.")
    epochs = list(_epochs(trainer, steps))
    schedules = [c for c in trainer.callbacks if isinstance(c, Schedule)]  # type: ignore[attr-defined]
    notes: list[str] = []
    lines = [*_rates(trainer, schedules, epochs, notes)]
    clock = RunClock(trainer, [])
    for schedule in schedules:
        if schedule.target.rpartition(".")[2] != "lr":
            lines += _scheduled(trainer, module, schedule, clock, steps, epochs)
        if schedule.monitor is not None:
            notes.append(f"{schedule.target} falls when {schedule.monitor} stops to improve, which is not drawn.")
    lines += list(_ramps(module, lines, steps))
    ends = list(itertools.accumulate(epoch.steps for epoch in epochs))
    return Schedules(lines, steps, ends if trainer.num_training_batches != math.inf else [], notes)


class _Epoch(NamedTuple):
    """How many optimizer steps of the run an epoch has, and what one of them takes."""

    steps: int
    accumulate: int
    batches: float


def _epochs(trainer: Trainer, steps: int) -> Iterator[_Epoch]:
    batches = trainer.num_training_batches
    for epoch in itertools.count():
        accumulate = accumulation_in(trainer, epoch)
        here = min(math.ceil(batches / accumulate), steps) if batches != math.inf else steps
        yield _Epoch(here, accumulate, batches)
        steps -= here
        if steps <= 0:
            return


def _rates(trainer: Trainer, schedules: list[Schedule], epochs: list[_Epoch], notes: list[str]) -> Iterator[Line]:
    """The learning rates of all groups, equal ones as one line."""
    if not trainer.optimizers:
        return
    optimizer = trainer.optimizers[0]
    rates = _stepped(trainer, optimizer, epochs, notes)
    for schedule in schedules:
        _replace(trainer, optimizer, schedule, rates)
    left = {
        str(group.get("name", number)): of_group for number, (group, of_group) in enumerate(_pairs(optimizer, rates))
    }
    while left:
        values = next(iter(left.values()))
        names = [name for name in left if left[name] == values]
        if len(names) == len(rates):
            label = "lr"
        else:
            label = f"{names[0]}.lr" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        yield Line(label, values, "learning rate")
        left = {name: values for name, values in left.items() if name not in names}


def _pairs(optimizer: Optimizer, rates: list[list[float]]) -> Iterator[tuple[dict[str, Any], list[float]]]:
    return zip(optimizer.param_groups, rates, strict=True)


def _stepped(trainer: Trainer, optimizer: Optimizer, epochs: list[_Epoch], notes: list[str]) -> list[list[float]]:
    """The learning rates of each group as the schedulers of ``configure_optimizers`` set them."""
    configs = trainer.lr_scheduler_configs
    waiting = [config.monitor for config in configs if config.reduce_on_plateau]
    notes += [f"The learning rate falls when {monitor} stops to improve, which is not drawn." for monitor in waiting]
    by_step, by_epoch = (
        [(c.frequency, cast(LRScheduler, c.scheduler)) for c in configs if c.interval == i and not c.reduce_on_plateau]
        for i in ("step", "epoch")
    )
    rates: list[list[float]] = [[] for _ in optimizer.param_groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's own steps
        for number, epoch in enumerate(epochs, start=1):
            for step in range(1, epoch.steps + 1):
                for group, of_group in _pairs(optimizer, rates):
                    of_group.append(float(group["lr"]))
                batch = min(step * epoch.accumulate, epoch.batches)
                for frequency, scheduler in by_step:
                    if batch % frequency == 0:
                        scheduler.step()
            for frequency, scheduler in by_epoch:
                if number % frequency == 0:
                    scheduler.step()
    return rates


def _replace(trainer: Trainer, optimizer: Optimizer, schedule: Schedule, rates: list[list[float]]) -> None:
    """Exchange the values of the groups that a schedule of learning rates sets."""
    group_name, _, kind = schedule.target.rpartition(".")
    if kind != "lr":
        return
    clock = RunClock(trainer, [])
    chosen = {id(group) for group in GroupTarget(optimizer, "lr", group_name or None).groups()}
    for group, of_group in _pairs(optimizer, rates):
        if id(group) in chosen:
            full, scale = group["initial_lr"], group.get(SCALE, 1.0)
            steps = range(len(of_group))
            of_group[:] = [scale * schedule.curve.value(full / scale, step, clock) if full else 0.0 for step in steps]


def _scheduled(
    trainer: Trainer, module: LightningModule, schedule: Schedule, clock: RunClock, steps: int, epochs: list[_Epoch]
) -> Iterator[Line]:
    """What a schedule sets besides learning rates."""
    target = schedule.target
    group, _, kind = target.rpartition(".")
    if target == "accumulation":
        values = [float(epoch.accumulate) for epoch in epochs for _ in range(epoch.steps)]
    else:
        if kind in GROUP_VALUES:
            found = GroupTarget(trainer.optimizers[0], kind, group or None)
            full = next((value for value in found.full_values() if value), 0.0)
        else:
            full = schedule.value or module.__dict__["_configured"][target]
        values = [schedule.curve.value(full, step, clock) for step in range(steps)]
    yield Line(target, values, target)


def _ramps(module: LightningModule, lines: list[Line], steps: int) -> Iterator[Line]:
    """The ramped weights of the techniques that are on; those that are scheduled too are in ``lines``."""
    if not isinstance(module, TuningMixin):
        return
    for technique in module.active_techniques():
        ramp = parse_ramp(getattr(module, f"{technique.stem}_ramp", None) or "")
        if ramp is None:
            continue
        name = next(a for a in own_arguments(technique) if a.endswith(("_weight", "_alpha")))
        length = module.steps_in(ramp.length)
        scheduled = next((line.values for line in lines if line.name == name), [getattr(module, name)] * steps)
        values = [full * ramp.factor(step, length) for step, full in enumerate(scheduled)]
        yield Line(f"{name}, ramped", values, name)
