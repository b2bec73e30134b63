"""Schedule: a number of the run as a function of how far the run has come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_tuning.errors import (
    CompositionError,
    InvalidValueError,
    check_choice,
    check_count,
    check_range,
    check_used,
)
from lightning_tuning.functional import step_was_skipped
from lightning_tuning.timing.curves import Curve
from lightning_tuning.timing.durations import samples_per_batch
from lightning_tuning.timing.progress import accumulation_in
from lightning_tuning.timing.run_clock import RunClock
from lightning_tuning.timing.shapes import OnPlateau

from ._gradients import is_logging_step
from ._layer_rates import split_by_layer
from ._plateau import PlateauWatch
from ._scheduled import AccumulationTarget, GroupTarget, ModuleTarget, Target, find_target, overlap

_LOOKS = 1000
"""At how many points of the run its values are checked before it begins."""


class Schedule(Callback):
    """Sets the learning rate, or any other number that each step reads, as a function of how far the run has come.

    The value of a step is known before it: a pure function of the optimizer steps that counted and of the run's length.
    So it is the same in a resumed run and for all batches of an accumulation window, and a step that fp16's scaler
    skips does not move it. It ends with the run under ``max_steps``, ``max_epochs``, ``max_time`` and a
    ``GradientAccumulationScheduler``. Several schedules may be given, one for each target. The learning rates are
    logged by ``LearningRateMonitor``; other values are logged as ``schedule/<target>`` at the Trainer's logging steps.

    Args:
        target: What is set. ``lr``, ``weight_decay`` or ``momentum`` (the first beta of Adam) of all the optimizer's
            groups; ``<group>.lr`` and so on of one, by its name or its number from 0; ``accumulation``, which changes
            between epochs; or the name of a number of the module: an argument of a technique that is on, such as
            ``sam_rho``, or an attribute of your own.
        shape: How it goes on after the warm-up, with settings in brackets: ``constant``, ``step(30ep, gamma=0.1)``,
            ``multi_step(30ep, 60ep, gamma=0.1)``, ``exponential(end=1%)``, ``linear(end=0)``,
            ``polynomial(power=2, end=0)``, ``cosine(end=0)``, ``cosine_restarts(10ep, growth=1, end=0)``,
            ``one_cycle(rise=30%, start=4%, end=0.0004%)``, ``wsd(decay=20%, form=linear, end=0)``,
            ``inverse_sqrt(scale=500st)``, ``plateau(val/loss, mode=min, patience=10, gamma=0.1, threshold=1e-4,
            cooldown=0, end=0)``. Ends and starts are numbers or shares of the full value (``1%``); to an end above the
            full value it rises.
        warmup: Length of the rise before, with its form in front if it is not linear: ``5ep``, ``500st``, ``0.05dur``
            (of the run), ``1e6smp``, ``sigmoid 40%``, ``cosine 5ep``. Null: none.
        warmup_from: Where the rise begins: a number, or a share of the full value. The first step is made above it.
        until: The point of the run where the shape ends; the value then stays. Null: the run's end.
        value: The full value, in which the warm-up ends. Null: what the optimizer's group, the module or the Trainer is
            configured with.
        layer_decay: For learning rates: the rate of each layer is that of the next one times this, in (0, 1]. Null or
            1: the same for all.
        reference_batch: For learning rates: the batch size for which the full value is meant, at least 1. It is
            scaled to the samples of an optimizer step: batch size x devices x accumulation at the run's start. Null:
            it is not scaled.
        batch_rule: How it is scaled: ``linear``, or ``sqrt`` for Adam and its like.

    Raises:
        InvalidValueError: An argument is not allowed; when training starts, if the target does not exist, is read once
            only, or would get a value that it may not have.
        CompositionError: When training starts, if something else sets the target: another schedule, a scheduler of
            ``configure_optimizers``, a ``GradientAccumulationScheduler``.
        MisconfigurationException: When training starts, in manual optimization, or if nobody knows the run's length.

    Source: the shapes' papers are named on the card.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> schedules = [Schedule(warmup="0.05dur"), Schedule("weight_decay", "cosine(end=0.4)")]
        >>> trainer = Trainer(callbacks=schedules, logger=False, accelerator="cpu")
        >>> values = preview(schedules, total_steps=4, full={"lr": 0.1, "weight_decay": 0.04})
        >>> [round(value, 3) for value in values["weight_decay"]]
        [0.04, 0.093, 0.22, 0.347]
    """

    def __init__(
        self,
        target: str = "lr",
        shape: str = "cosine",
        warmup: str | None = None,
        warmup_from: float | str = 0.0,
        until: str | None = None,
        value: float | None = None,
        layer_decay: float | None = None,
        reference_batch: int | None = None,
        batch_rule: Literal["linear", "sqrt"] = "linear",
    ) -> None:
        super().__init__()
        if not isinstance(target, str) or not target:
            raise InvalidValueError(f"target is {target!r}; write what is scheduled, such as 'lr' or 'sam_rho'.")
        if value is not None:
            check_range("value", value, open_low=True)
        if layer_decay is not None:
            check_range("layer_decay", layer_decay, 0, 1, open_low=True)
        check_count("reference_batch", reference_batch, 1, optional=True)
        check_choice("batch_rule", batch_rule, ("linear", "sqrt"))
        check_used("warmup_from", warmup_from, 0.0, "a warmup", warmup is not None)
        check_used("batch_rule", batch_rule, "linear", "a reference_batch", reference_batch is not None)
        self.target = target
        for name, given in {"layer_decay": layer_decay, "reference_batch": reference_batch}.items():
            if given is not None and not self.sets_lr:
                raise InvalidValueError(f"{name} is {given!r}, but it is for learning rates, and target is {target!r}.")
        self.curve = Curve(shape, warmup, warmup_from, until)
        self.value = value
        self.layer_decay = layer_decay
        self.reference_batch = reference_batch
        self.batch_rule = batch_rule
        self._reset()
        self._found: Target | None = None
        self._clock: RunClock | None = None
        self._handles: list[RemovableHandle] = []
        if target == "accumulation" and value is not None and value < 1:
            raise InvalidValueError(f"value is {value!r}; an optimizer step takes at least 1 batch.")
        units = {duration.unit for duration in self.curve.durations()}
        if target == "accumulation" and (self.monitor is not None or units - {"ep", "dur"}):
            raise InvalidValueError(
                "Schedule: the accumulation changes between epochs. Write its durations in epochs (ep) or shares of "
                "the run (dur), and no plateau."
            )

    def _reset(self) -> None:
        self._steps = 0
        self._skipped: list[int] = []
        shape = self.curve.shape
        self._plateau = PlateauWatch(shape) if isinstance(shape, OnPlateau) else None
        self._batch_factor = 1.0
        self._saved_value: float | None = None
        self._now = 0.0
        self._stepped = self._is_loaded = False
        self._attempted = self._counted = 0
        """The Trainer's count of steps now, and after the last one that counted here."""

    @property
    def monitor(self) -> str | None:
        """The metric of a plateau shape, for ``MonitorCheck``."""
        return None if self._plateau is None else self._plateau.shape.monitor

    @property
    def sets_lr(self) -> bool:
        """Whether it is learning rates that it sets."""
        return self.target.rpartition(".")[2] == "lr"

    @property
    def state_key(self) -> str:
        """One for each target."""
        return self._generate_state_key(target=self.target)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:  # a later fit of the same Trainer goes on
            self._reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"Schedule needs automatic optimization, but {type(pl_module).__name__} sets "
                "self.automatic_optimization = False. Step a ScheduleLR there instead."
            )
        self._release()
        self._found = found = find_target(trainer, pl_module, self.target)
        others = [c for c in trainer.callbacks if isinstance(c, Schedule) and c is not self]  # type: ignore[attr-defined]
        for other in others:
            if overlap(found, other._found):
                raise CompositionError(f"Two schedules set {self.target}: {other.target!r} sets it too. Leave one out.")
        if isinstance(found, AccumulationTarget):
            found.begin(self.value, keep=False)  # others ask for it, also those before it in the list
        if isinstance(found, GroupTarget) and self.layer_decay not in (None, 1):
            layers = split_by_layer(pl_module, found, self.layer_decay or 1.0)
            rank_zero_info(
                f"Schedule: layer decay over {layers} layers; the first one's learning rate is times "
                f"{(self.layer_decay or 1.0) ** (layers - 1):.3g}."
            )
        self._handles = [o.register_step_post_hook(self._note_step) for o in trainer.optimizers]

    def _note_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not step_was_skipped(optimizer):
            self._stepped = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resumes, attempted = trainer.ckpt_path is not None, trainer.global_step
        missing = attempted - self._steps - len(self._skipped)
        if self._is_loaded:
            self._skipped += range(attempted - missing, attempted)
        else:  # the checkpoint is of a run without this schedule
            self._steps += missing
        self._clock = RunClock(trainer, self._skipped)
        self._target.begin(self.value, keep=resumes and self.value == self._saved_value)
        self._saved_value, self._is_loaded = self.value, False
        if isinstance(self._target, GroupTarget) and self.reference_batch is not None:
            factor = self._batch_scale(trainer, self.reference_batch)
            self._target.scale(factor / (self._batch_factor if resumes else 1.0))
            self._batch_factor = factor
        self._check_values(pl_module)
        self._check_points(trainer)
        self._attempted, self._stepped = attempted, False
        self._set(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.target == "accumulation":
            self._set(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._attempted:  # within an accumulation window
            return
        if not self.sets_lr and is_logging_step(trainer):
            values: dict[str, Any] = {f"schedule/{self.target}": self._now}
            trainer._logger_connector.log_metrics(values)
        if self._stepped:
            self._steps += 1
            self._counted = trainer.global_step
        else:
            self._skipped.append(self._attempted)
        self._attempted, self._stepped = trainer.global_step, False
        if self.target != "accumulation":
            self._set(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._plateau is not None:
            self._plateau.on_validation_start(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._plateau is not None and self._plateau.on_validation_end(trainer):
            self._set(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._plateau is not None and self._plateau.on_train_epoch_end(trainer):
            self._set(trainer)

    @property
    def _target(self) -> Target:
        if self._found is None:
            raise RuntimeError("Schedule acts during fit alone.")
        return self._found

    def _set(self, trainer: Trainer) -> None:
        """Set the value of the next optimizer step."""
        if self._clock is None:
            return
        self._clock.look(self._steps)
        if isinstance(self._target, AccumulationTarget):
            self._now = self._target.set(trainer.current_epoch, self.curve)
        else:
            clock, drops = self._clock, self._plateau.state.drops if self._plateau else 0
            self._now = self._target.set(lambda full: self.curve.value(full, self._steps, clock, drops))

    def get_accumulate_grad_batches(self, epoch: int) -> int | None:
        """How many batches an optimizer step takes in an epoch; None where another target is scheduled."""
        return self._found.count(epoch, self.curve) if isinstance(self._found, AccumulationTarget) else None

    def _batch_scale(self, trainer: Trainer, reference: int) -> float:
        size = samples_per_batch(trainer)
        if size is None:
            raise MisconfigurationException(
                f"Schedule: reference_batch is {reference}, but the data loader does not tell its batch size. Scale "
                "the learning rate yourself and leave reference_batch out."
            )
        ratio = size * accumulation_in(trainer, 0) / reference
        return ratio if self.batch_rule == "linear" else math.sqrt(ratio)

    def _check_values(self, module: LightningModule) -> None:
        """Refuse values that the target may not have before one of them comes."""
        if self._clock is None:
            return
        found = self._target
        clock = found.clock if isinstance(found, AccumulationTarget) else self._clock
        values = [v for full in {*found.full_values()} if full for v in self.curve.values(full, clock, _LOOKS)]
        for value in {min(values), max(values)} if values else ():
            if isinstance(found, GroupTarget) and found.value == "momentum":
                check_range(f"The schedule's {self.target}", value, 0, 1, open_high=True)
            elif isinstance(found, ModuleTarget) and found.of_technique:
                module.check_adjusted(self.target, value)  # type: ignore[operator]

    def _check_points(self, trainer: Trainer) -> None:
        """Warn of points that the run will not reach."""
        found = self._target
        clock = found.clock if isinstance(found, AccumulationTarget) else self._clock
        try:
            short = trainer.fast_dev_run  # type: ignore[attr-defined]
            unreached = [] if clock is None or short else self.curve.unreached(clock)
        except MisconfigurationException:  # a run without an end
            return
        if unreached:
            rank_zero_warn(
                f"Schedule of {self.target}: the run ends before {' and '.join(unreached)}. Make the run longer, or "
                "write the lengths as shares of it, as in 10%."
            )

    def state_dict(self) -> dict[str, Any]:
        # Steps skipped since the last one that counted are known from the Trainer's count.
        skipped = [step for step in self._skipped if step < self._counted]
        return {
            "steps": self._steps,
            "skipped": skipped,
            "batch_factor": self._batch_factor,
            "value": self.value,
            **(self._plateau.state_dict() if self._plateau else {}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._skipped = state_dict["steps"], [*state_dict["skipped"]]
        self._counted = self._steps + len(self._skipped)
        if self._plateau is not None and "plateau" in state_dict:  # else the shape was another
            self._plateau.load_state_dict(state_dict)
        self._batch_factor, self._saved_value = state_dict["batch_factor"], state_dict["value"]
        self._is_loaded = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        """Give module and Trainer their configured values back."""
        while self._handles:
            self._handles.pop().remove()
        if self._found is not None:
            self._found.restore()
        self._found = self._clock = None


def preview(
    callbacks: Callback | Iterable[Callback],
    total_steps: int,
    full: Mapping[str, float] | None = None,
    steps_per_epoch: float | None = None,
    samples_per_step: float | None = None,
) -> dict[str, list[float]]:
    """The values of each step of a run, by target. A plateau does not come in it, and rates are not scaled by layer or
    batch.

    Args:
        callbacks: A schedule, or callbacks of which the schedules are taken.
        total_steps: Optimizer steps of the run.
        full: The full values, by target; for one that is missing the schedule's ``value``, else 1.
        steps_per_epoch: For durations in epochs.
        samples_per_step: For durations in samples.

    Raises:
        InvalidValueError: A schedule has a duration in a unit whose length was not given.

    Example:
        >>> preview(Schedule(shape="linear"), total_steps=4)
        {'lr': [1.0, 0.75, 0.5, 0.25]}
    """
    given = [callbacks] if isinstance(callbacks, Callback) else callbacks
    return {
        schedule.target: schedule.curve.preview(
            total_steps, schedule.value or (full or {}).get(schedule.target, 1.0), steps_per_epoch, samples_per_step
        )
        for schedule in given
        if isinstance(schedule, Schedule)
    }
