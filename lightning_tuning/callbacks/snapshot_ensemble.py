"""SnapshotEnsemble: several networks from one run, and what they predict together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_count, check_used
from lightning_tuning.functional import cycle_factor, cycle_length
from lightning_tuning.timing.progress import total_steps

from ._buffer_copies import rank_zero_buffers
from ._candidates import check_alike, load_weights, save_checkpoint
from ._ensemble import Ensemble
from ._gradients import holds_whole_gradients
from ._learning_rates import set_rates
from ._lr_owners import refuse_other_schedules

_FILE = "ensemble"


class SnapshotEnsemble(Callback):
    """Trains in cycles in which the learning rate falls to nearly 0 along a cosine, keeps the weights at each cycle's
    end, and has these members answer together in ``validate``, ``test`` and ``predict`` (Huang et al., 2017).

    The mean of the members' probabilities takes the place of what the module predicts, so its own metrics are the
    ensemble's. Of classes it also logs the ``accuracy``, ``nll``, ``brier`` and ``calibration_error`` (15 bins) of each
    member, ``test/member_1_accuracy`` and so on, and of the ensemble, ``test/ensemble_accuracy``. Validations within
    ``fit`` measure the weights that are trained.

    Members travel in the callback's part of each checkpoint; the whole ensemble is written to
    ``checkpoints/ensemble.ckpt`` in the run's folder, and the command line tests that. With ``checkpoints`` the members
    are given files, of runs with different seeds for instance (a deep ensemble), and nothing is trained.

    Args:
        cycles: Number of cycles in the run, at least 1. The paper's runs have 5 or 6.
        members: How many of the last cycles answer, from 1 to ``cycles``. Null: all.
        sets_lr: Whether the callback sets the learning rate: that of the optimizer, 0.1 to 0.2 in the paper for SGD,
            times the cycle's factor. False leaves it to the run's own schedule.
        checkpoints: Files whose weights are the members, for a Trainer that evaluates. Null: those of the run.

    Raises:
        InvalidValueError: An argument is not allowed, a file is not of this model, or the module's step does not call
            ``self(x)``.
        MisconfigurationException: When training starts, if a scheduler of the module or another callback would set the
            learning rate too, with several optimizers, under a strategy that splits the weights, or with
            ``checkpoints``.

    Source: Huang et al., 2017, "Snapshot ensembles: train 1, get M for free", section 3. Lakshminarayanan, Pritzel &
    Blundell, 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles", section 2.4.

    Example:
        >>> trainer = Trainer(callbacks=[SnapshotEnsemble(cycles=5, members=3)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        cycles: int = 5,
        members: int | None = None,
        sets_lr: bool = True,
        checkpoints: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_count("cycles", cycles, 1)
        check_count("members", members, 1, optional=True)
        if members is not None and members > cycles:
            raise InvalidValueError(f"members is {members}; it must be at most cycles, {cycles}.")
        if isinstance(checkpoints, str) or checkpoints == []:
            raise InvalidValueError(f"checkpoints is {checkpoints!r}; it must be a list of files, or None.")
        for name, value, default in (("cycles", cycles, 5), ("members", members, None), ("sets_lr", sets_lr, True)):
            check_used(name, value, default, "checkpoints: null", checkpoints is None)
        self.cycles = cycles
        self.members = members
        self.sets_lr = sets_lr
        self.checkpoints = checkpoints
        self.made_checkpoint: Path | None = None
        """After the fit, the file with all members."""
        self._members: list[dict[str, Tensor]] = []
        self._taken_at = 0
        """The optimizer step after which the last member was taken."""
        self._total = 1
        self._ensemble: Ensemble | None = None

    # The fit.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._check_surroundings(trainer)
            if trainer.global_step == 0:
                self._members, self._taken_at = [], 0

    def _check_surroundings(self, trainer: Trainer) -> None:
        if self.checkpoints is not None:
            raise MisconfigurationException(
                "SnapshotEnsemble(checkpoints=...) has given members and takes none from a fit. Leave checkpoints out, "
                "or evaluate them: Trainer(callbacks=[SnapshotEnsemble(checkpoints=...)]).test(model, data)."
            )
        if not holds_whole_gradients(trainer.strategy):
            raise MisconfigurationException(
                f"SnapshotEnsemble cannot keep weights under {type(trainer.strategy).__name__}: no process holds all "
                "of them. Train on a single device or with DDP (preset:ddp), or remove the callback."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) > 1:
            raise MisconfigurationException(
                f"SnapshotEnsemble counts the steps of one optimizer, but {type(pl_module).__name__} has "
                f"{len(trainer.optimizers)}. Save its weights at the cycles' ends yourself, and evaluate them with "
                "SnapshotEnsemble(checkpoints=...)."
            )
        self._total = total_steps(trainer, "SnapshotEnsemble", "no SnapshotEnsemble")
        if cycle_length(self._total, self.cycles) < 2 and self._total > 1:
            raise InvalidValueError(
                f"cycles is {self.cycles}, but the run has {self._total} optimizer steps, and a cycle of one step lets "
                f"no learning rate fall. Write at most {self._total // 2}, better far fewer."
            )
        if self.sets_lr and trainer.lr_scheduler_configs:
            scheduler = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            raise MisconfigurationException(
                f"SnapshotEnsemble sets the learning rate, and so does the module's {scheduler}. Train without it (in "
                "the ready hosts schedule: constant and warmup_steps: 0), or write sets_lr: false."
            )
        if self.sets_lr:
            refuse_other_schedules(trainer, self, "SnapshotEnsemble", "sets_lr: false")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.sets_lr:
            return
        factor = cycle_factor(trainer.global_step, self._total, self.cycles)
        optimizer = trainer.optimizers[0]
        # Kept in the groups: LRRangeTest scales it there, and checkpoints hold it.
        full = [group.setdefault("initial_lr", float(group["lr"])) for group in optimizer.param_groups]
        set_rates(optimizer, [rate * factor for rate in full])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        ends = step % cycle_length(self._total, self.cycles) == 0 or step == self._total
        if not ends or step == self._taken_at:
            return
        self._taken_at = step
        member = {name: value.detach().to("cpu", copy=True) for name, value in pl_module.state_dict().items()}
        self._members = [*self._members, member | rank_zero_buffers(trainer, member)][-(self.members or self.cycles) :]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.made_checkpoint = save_checkpoint(trainer, _FILE) if self._members else None

    def state_dict(self) -> dict[str, Any]:
        return {"members": self._members, "taken_at": self._taken_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.checkpoints is None:
            self._members = state_dict["members"][-(self.members or self.cycles) :]
            self._taken_at = state_dict["taken_at"]

    # Evaluation.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._answer(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._answer(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._answer(pl_module)

    def _answer(self, pl_module: LightningModule) -> None:
        self._release()
        members = self._members
        if self.checkpoints is not None:
            members = [load_weights(path, "SnapshotEnsemble") for path in self.checkpoints]
            named = zip(self.checkpoints, members, strict=True)
            check_alike((type(pl_module).__name__, pl_module.state_dict()), named, "SnapshotEnsemble")
        if not members:
            rank_zero_warn(
                "SnapshotEnsemble has no members, so the module answers alone. Evaluate a checkpoint of a run with "
                "this callback, or give checkpoints."
            )
            return
        self._ensemble = Ensemble(pl_module, members)

    def on_validation_batch_start(self, *args: Any) -> None:
        self._begin_batch()

    def on_test_batch_start(self, *args: Any) -> None:
        self._begin_batch()

    def _begin_batch(self) -> None:
        if self._ensemble is not None:
            self._ensemble.begin_batch()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        if self._ensemble is not None:
            self._ensemble.measure(batch, loader)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        if self._ensemble is not None:
            self._ensemble.measure(batch, loader)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ensemble is not None:
            self._ensemble.log(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ensemble is not None:
            self._ensemble.log(trainer, "test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        if self._ensemble is not None:
            self._ensemble.remove()
            self._ensemble = None
