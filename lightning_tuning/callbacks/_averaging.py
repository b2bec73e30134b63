"""What the callbacks share that average weights and evaluate the average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.distributed.tensor import DTensor
from torchmetrics import Metric

from lightning_tuning.errors import NoEffectError, check_choice
from lightning_tuning.functional import Trained, WeightAverage, assign_, parts_named, reshard, trained_parts
from lightning_tuning.timing.durations import check_duration, duration_of

from ._counted_steps import CountedSteps
from ._gradients import holds_whole_gradients
from ._raw_validation import RawValidation
from ._training_batches import hand_out_buffers, recalibrate_on_training_data

BufferPolicy = Literal["average", "copy", "recompute"]


def averaged_parts(pl_module: nn.Module, statistics: bool = True) -> Trained:
    """What of a module is averaged: what it trains, without metrics, and batch norm's running statistics."""
    parts = trained_parts(pl_module, lambda part: isinstance(part, Metric))
    return parts if statistics else Trained(parts.parameters, {})


class AveragingCallback(CountedSteps):
    """Base of the callbacks that keep an average of the weights and have it evaluated.

    A subclass says how (:meth:`_decay`) and when (:meth:`_is_due`) the average moves. The base does the rest: the
    average begins when ``start`` is over; validations of the fit see it; checkpoints hold it as the module's state and
    the weights to train on as the callback's; after the fit the module carries it. Until it begins, all that is so of
    the weights themselves.
    """

    changes: ClassVar[tuple[str, ...]] = ("evaluation",)

    def __init__(
        self,
        start: str = "0st",
        buffers: BufferPolicy = "average",
        offload: bool = False,
        validate_raw: bool = False,
        final: Literal["average", "raw"] = "average",
    ) -> None:
        super().__init__()
        check_duration("start", start, positive=False)
        check_choice("buffers", buffers, ("average", "copy", "recompute"))
        check_choice("final", final, ("average", "raw"))
        self.start = start
        self.buffers = buffers
        self.offload = offload
        self.validate_raw = validate_raw
        self.final = final
        self._start_steps = 0
        self._updates = 0
        self._average: WeightAverage | None = None
        self._trained: list[bool] = []
        self._recomputed = -1
        """The update whose batch norm statistics were computed anew."""
        self._recomputed_by_plan: int | None = None
        """The same for a checkpoint, where the run ended within an epoch: a longer run computes nothing there."""
        self._versions: list[int] | None = None
        self._raw_validation: RawValidation | None = None

    def _decay(self, update: int) -> float:
        """The share of the average that stays at its ``update``-th update, counted from 1."""
        raise NotImplementedError

    def _begins(self, trainer: Trainer) -> bool:
        """Whether the average begins with the weights as they are now."""
        return self._steps >= self._start_steps

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the average moves after this step, the ``self._steps``-th of the run."""
        return True

    # The fit.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._check_surroundings(trainer)
        if _state_of(trainer.strategy) is not self:  # not a fit that an earlier one of this Trainer goes on with
            self._average, self._steps, self._updates = None, 0, 0
        self._swap_out(pl_module)
        self._versions, self._recomputed_by_plan = None, None
        trainer.strategy.lightning_module_state_dict = AveragedState(trainer.strategy, self)  # type: ignore[method-assign]

    def _check_surroundings(self, trainer: Trainer) -> None:
        name, strategy = type(self).__name__, trainer.strategy
        rivals = (AveragingCallback, WeightAveraging, StochasticWeightAveraging)
        others = [type(c).__name__ for c in trainer.callbacks if isinstance(c, rivals) and c is not self]  # type: ignore[attr-defined]
        if others:
            raise MisconfigurationException(
                f"{name} and {others[0]} both put averaged weights in the module's place. Keep one of them."
            )
        if not (holds_whole_gradients(strategy) or isinstance(strategy, ModelParallelStrategy)):
            raise MisconfigurationException(
                f"{name} cannot work under {type(strategy).__name__}, which keeps the weights in tensors of its own. "
                "Train on a single device, with DDP (preset:ddp) or with ModelParallelStrategy (FSDP 2), or remove the "
                "callback."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name, host = type(self).__name__, type(pl_module).__name__
        if self._average is None and not averaged_parts(pl_module).parameters:
            raise NoEffectError(f"{name} would do nothing: {host} has no trained parameter. Remove the callback.")
        if self.buffers == "recompute" and pl_module._device_mesh is not None and averaged_parts(pl_module).statistics:
            raise MisconfigurationException(
                f"{name} cannot recompute batch norm's statistics under {type(trainer.strategy).__name__}, where no "
                "process holds all weights. Write buffers: average."
            )
        if getattr(pl_module, "ema_teacher_evaluates", False) and "ema_teacher" in pl_module._modules:
            rank_zero_warn(
                f"{name}: EMATeacherMixin answers in evaluation mode, so validations measure its teacher and not this "
                "average. Set ema_teacher_evaluates: false, or remove one of the two."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._start_steps = math.ceil(duration_of(self.start).steps(trainer))
        self._trained = _trained(trainer)
        if self.validate_raw:
            self._raw_validation = RawValidation(trainer)
        if self._average is not None:
            self._average.add(self._parts(pl_module))
            self._average.place()
        elif self._begins(trainer):
            self._begin(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trained = _trained(trainer)
        if trained != self._trained:
            self._trained = trained  # what was added or unfrozen did not change so far, so nor did its average
            if self._average is not None:
                self._average.add(self._parts(pl_module))

    def _after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average is None:
            if self._begins(trainer):
                self._begin(pl_module)
        elif self._is_due(trainer):
            self._updates += 1
            self._average.update(self._decay(self._updates))

    def _begin(self, pl_module: LightningModule) -> None:
        self._updates, self._recomputed = 0, -1
        self._average = WeightAverage(self._parts(pl_module), self.buffers == "recompute", self.offload)

    def _parts(self, pl_module: LightningModule) -> Trained:
        _reshard(pl_module)
        return averaged_parts(pl_module, statistics=self.buffers != "copy")

    # Evaluation.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._evaluate_average(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_out(pl_module)
            hand_out_buffers(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._raw_validation is not None and not trainer.sanity_checking:
            for name, value in self._raw_validation.metrics.items():
                base, loader, index = name.partition("/dataloader_idx_")
                pl_module.log(f"{base}_raw{loader}{index}", value, sync_dist=True, add_dataloader_idx=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.buffers == "recompute" and self._average is not None:  # for the checkpoint of an epoch's end
            self._evaluate_average(trainer, pl_module)
            self._swap_out(pl_module)
            hand_out_buffers(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.final == "average":
            self._evaluate_average(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.final == "average":  # a resumed run that had nothing left to train had no end of training
            self._swap_in(pl_module)
        if self._average is not None:
            self._versions = self._average.versions()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_out(pl_module)

    def _release(self) -> None:
        super()._release()
        if self._raw_validation is not None:
            self._raw_validation.remove()
            self._raw_validation = None

    def _evaluate_average(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)
        if self.buffers == "recompute" and self._average is not None and self._recomputed != self._updates:
            if not trainer.validating and not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
                self._recomputed_by_plan = self._recomputed
            self._recomputed = self._updates
            recalibrate_on_training_data(trainer, pl_module)

    def _swap_in(self, pl_module: LightningModule) -> None:
        if self._average is not None:
            _reshard(pl_module)
            self._average.swap_in()

    def _swap_out(self, pl_module: LightningModule) -> None:
        self._drop_if_outdated()
        if self._average is not None:
            _reshard(pl_module)
            self._average.swap_out()

    def _drop_if_outdated(self) -> None:
        """After the fit somebody may load other weights: then nothing is left to exchange them for."""
        if self._average is not None and self._versions not in (None, self._average.versions()):
            self._average = None

    @contextmanager
    def averaged(self, pl_module: LightningModule | None) -> Iterator[None]:
        """Within it the module carries the average, if there is one."""
        self._drop_if_outdated()
        if pl_module is None or self._average is None or self._average.is_in:
            yield
            return
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out(pl_module)

    # A guard's rewind.

    def _averages(self) -> list[WeightAverage]:
        """All that are kept."""
        return [] if self._average is None else [self._average]

    def rewind_state(self) -> dict[str, Any]:
        """What a guard that rewinds keeps beside the weights."""
        return {"updates": self._updates, "averages": [average.values() for average in self._averages()]}

    def rewind(self, state: dict[str, Any]) -> None:
        """A guard has put the weights back: the averages go back too. One that had not begun begins anew."""
        self._updates, self._recomputed = state["updates"], -1
        if not state["averages"]:
            self._average = None
        for average, values in zip(self._averages(), state["averages"], strict=True):
            average.load(values)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        recomputed = self._recomputed if self._recomputed_by_plan is None else self._recomputed_by_plan
        return {"steps": self._steps, "updates": self._updates, "recomputed": recomputed}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._drop_if_outdated()
        if self._average is not None:
            state = checkpoint["callbacks"][self.state_key]
            state["raw"], state["finer"] = self._average.raw(), self._average.finer()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        name = type(self).__name__
        state = checkpoint["callbacks"].get(self.state_key)
        self._average, self._updates, self._recomputed = None, 0, -1
        if state is None:
            self._steps = checkpoint["global_step"]
            rank_zero_info(f"The checkpoint was written without {name}: the average begins with its weights.")
            return
        self._steps, self._updates, self._recomputed = state["steps"], state["updates"], state["recomputed"]
        raw = state.pop("raw", None)  # Lightning would copy it once more
        if raw is not None:
            parts = parts_named(pl_module, raw)
            averaged = parts if self.buffers != "copy" else Trained(parts.parameters, {})
            self._average = WeightAverage(averaged, self.buffers == "recompute", self.offload)
            self._average.load(state.pop("finer"))
            assign_(parts, raw)


class AveragedState:
    """Stands in for a strategy's ``lightning_module_state_dict``, of which every checkpoint is made: the average is the
    module's state, also in a checkpoint of the weights only and in one that is written within a validation."""

    def __init__(self, strategy: Strategy, callback: AveragingCallback) -> None:
        self.strategy, self.callback = strategy, callback

    def __call__(self) -> dict[str, Any]:
        with self.callback.averaged(self.strategy.lightning_module):
            state = type(self.strategy).lightning_module_state_dict(self.strategy)
            # Shards are exchanged by copies, so what is in them now has to be kept.
            return {name: value.clone() if isinstance(value, DTensor) else value for name, value in state.items()}


def _state_of(strategy: Strategy) -> AveragingCallback | None:
    installed = vars(strategy).get("lightning_module_state_dict")
    return installed.callback if isinstance(installed, AveragedState) else None


def _trained(trainer: Trainer) -> list[bool]:
    return [p.requires_grad for o in trainer.optimizers for group in o.param_groups for p in group["params"]]


def _reshard(pl_module: LightningModule) -> None:
    if pl_module._device_mesh is not None:
        reshard(pl_module)
