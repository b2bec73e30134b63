"""WeightSWA: the plain mean of weights from late in the run."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning.errors import NoEffectError, check_range, check_used
from lightning_tuning.timing.durations import check_duration, duration_of
from lightning_tuning.timing.progress import total_steps

from ._averaging import AveragingCallback, BufferPolicy
from ._lr_owners import refuse_other_schedules


class WeightSWA(AveragingCallback):
    """Validates, saves and finally keeps the plain mean of the weights at the end of each of the last epochs (Izmailov
    et al., 2018), while training goes on with the weights.

    The run is as long as without it, and keeps its learning rate unless ``lr`` is given. Batch norm's statistics are
    computed anew, from an epoch's training batches, for each mean that is validated or saved at an epoch's end, so a
    validation measures what the run would deliver. The weights to train on travel in the callback's own state, so that
    a resumed run is bitwise the straight one. Until the mean begins all that holds of the weights themselves.

    Args:
        start: Duration after which weights are taken into the mean. The paper's runs begin at 75 %.
        every: Time between two of them, counted from the run's start: ``1ep`` takes the end of each epoch, ``100st``
            each hundredth optimizer step.
        lr: Learning rate that training moves to from ``start`` on, > 0, whatever the schedule says; groups keep their
            proportions. A rate that is high for the end of a run, such as a tenth to a half of the highest, lets the
            weights move around the minimum that the mean lies in. Null: the schedule goes on.
        anneal: Duration of that move, along a cosine; ``0st`` moves at once. For ``lr`` alone.
        buffers: ``recompute`` batch norm's running statistics, as said; ``average`` them like weights; ``copy`` uses
            those of the weights.
        offload: Whether the mean is kept in the CPU's memory, for a copy of the weights at each update.
        validate_raw: Whether each validation of the fit is run with the weights too, and its metrics logged with
            ``_raw`` behind their names.
        final: What the module carries after the fit: the ``average``, or the ``raw`` weights.

    Raises:
        InvalidValueError: An argument is not allowed.
        MisconfigurationException: When training starts, if another callback averages weights too, if ``lr`` is given
            and a ``Schedule`` or ``SnapshotEnsemble`` sets the rate, or under strategies that keep the weights in
            tensors of their own (FSDP 1, DeepSpeed).
        NoEffectError: When training starts, if nothing is trained, or the run ends before a second of the weights is
            taken into the mean.

    Source: Izmailov, Podoprikhin, Garipov, Vetrov & Wilson, 2018, "Averaging weights leads to wider optima and better
    generalization", algorithm 1. The paper's cyclical rate is a matter of the schedule.

    Example:
        >>> trainer = Trainer(callbacks=[WeightSWA(start="0.5dur", lr=0.01)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        start: str = "0.75dur",
        every: str = "1ep",
        lr: float | None = None,
        anneal: str = "0.05dur",
        buffers: BufferPolicy = "recompute",
        offload: bool = False,
        validate_raw: bool = False,
        final: Literal["average", "raw"] = "average",
    ) -> None:
        super().__init__(start, buffers, offload, validate_raw, final)
        check_duration("every", every)
        if lr is not None:
            check_range("lr", lr, open_low=True)
        check_duration("anneal", anneal, positive=False)
        check_used("anneal", anneal, "0.05dur", "an lr", lr is not None)
        self.every = every
        self.lr = lr
        self.anneal = anneal
        self._every_steps = 1.0
        self._anneal_steps = 0.0
        self._rates: list[list[float]] = []
        """The learning rate of each optimizer's groups when the mean began."""
        self._looked = 0
        """Where the run was after the last step that counted."""

    @property
    def sets_lr(self) -> bool:
        """Whether it sets the learning rate."""
        return self.lr is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._steps == 0:
            self._rates, self._looked = [], 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.sets_lr:
            refuse_other_schedules(
                trainer, self, "WeightSWA(lr=...)", "lr: null and give the schedule the end you want"
            )
        self._every_steps = max(duration_of(self.every).steps(trainer), 1.0)
        self._anneal_steps = duration_of(self.anneal).steps(trainer) if self.lr is not None else 0.0
        super().on_train_start(trainer, pl_module)
        self._check_length(trainer)

    def _check_length(self, trainer: Trainer) -> None:
        try:
            length = total_steps(trainer)
        except MisconfigurationException:  # a run without an end
            return
        first = math.ceil(max(self._start_steps, 1) / self._every_steps)
        number = math.floor(length / self._every_steps) - first + 1
        if number < 2:
            raise NoEffectError(
                f"WeightSWA would do nothing: with start={self.start!r} and every={self.every!r} it takes the weights "
                f"{max(number, 0)} times in this run of {length} optimizer steps. Write an earlier start or a shorter "
                "every, such as every='10st'."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.lr is not None and self._position(trainer) >= self._start_steps:
            self._set_rates(trainer, self.lr)

    def _set_rates(self, trainer: Trainer, lr: float) -> None:
        if not self._rates:
            self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        passed = self._position(trainer) - self._start_steps
        share = 1.0 if passed >= self._anneal_steps else (1 - math.cos(math.pi * passed / self._anneal_steps)) / 2
        for optimizer, rates in zip(trainer.optimizers, self._rates, strict=True):
            highest = max(rates)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                wanted = lr * rate / highest if highest else lr
                group["lr"] = rate + share * (wanted - rate)

    def _after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super()._after_step(trainer, pl_module)
        self._looked = self._position(trainer)

    def _position(self, trainer: Trainer) -> int:
        """Steps of the run with those that were skipped, for the ends of epochs are counted so."""
        return trainer.global_step if trainer.lightning_module.automatic_optimization else self._steps

    def _begins(self, trainer: Trainer) -> bool:
        return self._position(trainer) >= self._start_steps and self._is_due(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        return self._position(trainer) // self._every_steps > self._looked // self._every_steps

    def _decay(self, update: int) -> float:
        return update / (update + 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rates": self._rates, "looked": self._looked}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        state = checkpoint["callbacks"].get(self.state_key, {})
        self._rates, self._looked = state.get("rates", []), state.get("looked", max(self._steps - 1, 0))
