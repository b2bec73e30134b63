"""What the callbacks share that refuse a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import LBFGS

from lightning_tuning.errors import DivergenceError, check_choice, check_count, check_range, check_used

from ._bad_batches import FILE, blame, note_bad_batches
from ._diagnosis import diagnose
from ._gradients import holds_whole_gradients
from ._pictures import run_folder
from ._rewind import put_back, take_snapshot
from ._step_gate import SeenBatch, StepGate, StepValues


class Guard(Callback):
    """Base of the callbacks that refuse a step, and act when they have refused too many.

    A guard says what is wrong with a step in :meth:`objection`. All guards of a Trainer share one :class:`StepGate`.
    """

    stem: ClassVar[str]
    actions: ClassVar[tuple[str, ...]] = ("stop", "reduce_lr", "rewind")

    def __init__(self, patience: int, action: str, lr_factor: float, rewind_every: int, max_total: int | None) -> None:
        super().__init__()
        check_count("patience", patience, 1)
        check_choice("action", action, self.actions)
        check_range("lr_factor", lr_factor, 0, 1, open_low=True, open_high=True)
        check_count("rewind_every", rewind_every, 1)
        check_count("max_total", max_total, 1, optional=True)
        check_used("lr_factor", lr_factor, 0.5, "action: reduce_lr", action == "reduce_lr")
        check_used("rewind_every", rewind_every, 100, "action: rewind", action == "rewind")
        self.patience = patience
        self.action: str = action
        self.lr_factor = lr_factor
        self.rewind_every = rewind_every
        self.max_total = max_total
        self._gate: StepGate | None = None
        self._reset()

    def _reset(self) -> None:
        self.rate = 1.0
        self._in_a_row = self._total = self._let_through = 0
        self._acted = False
        self._snapshot: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:  # a later fit of the same Trainer goes on
            self._reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self).__name__
        if not holds_whole_gradients(trainer.strategy):
            raise MisconfigurationException(
                f"{name} cannot work under {type(trainer.strategy).__name__}: no process holds whole gradients there. "
                "Train on a single device or with DDP (preset:ddp), or remove the callback."
            )
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"{name} needs automatic optimization, but {type(pl_module).__name__} sets "
                "self.automatic_optimization = False: nobody but its training_step knows which loss belongs to which "
                "step. Check the loss there, or remove the callback."
            )
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise MisconfigurationException(
                f"{name} cannot work with LBFGS, which moves the weights between its looks at the loss. Take another "
                "optimizer, or remove the callback."
            )
        self._leave()
        self._gate = StepGate.of(trainer)
        self._gate.guards.append(self)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._gate is not None and self._gate.guards[0] is self:
            self._gate.begin(batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._gate is not None and self._gate.guards[0] is self:
            self._gate.note(outputs)

    # What the gate asks and tells.

    def objection(self, values: StepValues) -> str | None:
        """What is wrong with a step, as a sentence goes on behind "the update was not made: "; None for nothing."""
        raise NotImplementedError

    def on_let_through(self, trainer: Trainer, values: StepValues) -> None:
        """No guard objects; the step is about to be made."""
        self._in_a_row, self._acted = 0, False
        if self.action == "rewind":
            if self._let_through % self.rewind_every == 0:
                self._snapshot = take_snapshot(trainer)
            self._let_through += 1

    def on_refused(self, trainer: Trainer, batches: Sequence[SeenBatch], values: StepValues, reason: str) -> None:
        """This guard objected first."""
        self._in_a_row += 1
        self._total += 1
        name = type(self).__name__
        rows = note_bad_batches(trainer, name, batches, values, reason)
        trainer._logger_connector.log_metrics({f"train/{self.stem}": self._total})  # type: ignore[dict-item]
        if self._total & (self._total - 1) == 0:  # the first, second, fourth, eighth ...
            diagnose(trainer, f"{name}: the update was not made: {reason}. {blame(rows)} ({self._total} so far)")
        if self.max_total is not None and self._total >= self.max_total:
            raise self._stopped(trainer, reason, f"{self._total} steps were refused in all (max_total)")
        if self._in_a_row >= self.patience:
            self._act(trainer, reason)

    def _act(self, trainer: Trainer, reason: str) -> None:
        row = f"{self._in_a_row} steps in a row were refused" if self._in_a_row > 1 else "a step was refused"
        if self.action == "stop":
            raise self._stopped(trainer, reason, row)
        if self._acted:
            raise self._stopped(trainer, reason, f"{row} again after action: {self.action}, and none was made since")
        if self.action == "rewind" and self._snapshot is None:
            raise self._stopped(
                trainer, reason, f"{row}, and no earlier one was good, so there is nothing to rewind to"
            )
        self._acted, self._in_a_row = True, 0
        diagnose(trainer, f"{type(self).__name__}: {row}; {self._acts(trainer)}")

    def _acts(self, trainer: Trainer) -> str:
        """Carry the action out; what was done, as a sentence goes on."""
        if self.action == "reduce_lr":
            self.rate *= self.lr_factor
            return f"from now on the steps are made with {self.rate:g} of the scheduled learning rate."
        assert self._snapshot is not None  # or the training would have been stopped
        put_back(self._snapshot, trainer)
        return (
            f"weights, buffers and the optimizer's state are those of step {self._snapshot['step']} again. The data, "
            "the schedule and the random numbers go on."
        )

    def _stopped(self, trainer: Trainer, reason: str, why: str) -> DivergenceError:
        self._in_a_row = 0  # a run that is resumed from here has all its patience again
        return DivergenceError(
            f"{type(self).__name__} stopped the training at step {trainer.global_step}, epoch {trainer.current_epoch}: "
            f"{why}. The last one: {reason}. {run_folder(trainer) / FILE} lists the batches. Look at their samples, "
            "lower the learning rate or clip gradients (trainer.gradient_clip_val). To go on in spite of them give the "
            "callback a larger patience or another action."
        )

    # State.

    def state_dict(self) -> dict[str, Any]:
        counts = {"in_a_row": self._in_a_row, "total": self._total, "let_through": self._let_through}
        return {**counts, "acted": self._acted, "rate": self.rate, "snapshot": self._snapshot}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._in_a_row, self._total = state_dict["in_a_row"], state_dict["total"]
        self._let_through, self._acted = state_dict["let_through"], state_dict["acted"]
        self.rate, self._snapshot = state_dict["rate"], state_dict["snapshot"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._gate is not None:
            self._gate.leave(self)
        self._gate = None
