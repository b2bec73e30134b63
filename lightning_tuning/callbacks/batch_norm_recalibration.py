"""BatchNormRecalibration: batch norm's statistics of the weights that are evaluated, not of those that led there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tuning.errors import NoEffectError, check_count

from ._averaging import AveragingCallback
from ._gradients import holds_whole_gradients
from ._training_batches import TRAIN_LOADER, hand_out_buffers, recalibrate_on_training_data


class BatchNormRecalibration(Callback):
    """Before each validation and at the end of each epoch, gives the batch norm layers the statistics that their inputs
    have under the present weights (Wu & Johnson, 2021).

    In training batch norm keeps moving averages, which are noisy and belong to the weights of the last hundred steps.
    This callback runs training batches through the network and takes the mean and the variance over all of their
    samples and ranks. What is validated, saved and delivered then has these statistics; with a callback that averages
    weights they are the average's. Layers that somebody put into evaluation mode for the training are frozen and keep
    theirs.

    Only batch norm is in training mode in these passes: dropout is off, as it is in evaluation. Random generators,
    ``training`` flags and the position of the data loader stay as they are. Training goes on with the moving averages,
    which travel in the callback's own state, so a run is the same wherever it was stopped and resumed.

    Args:
        batches: Batches of each rank that are taken, at least 1; 200 give the variance to about 1 % with 32 samples
            each. Null takes a whole epoch.
        validates: Whether validations during the training see these statistics too; False: only the end of the last
            epoch does, which is cheaper.
        dataloader: Name of the method of the datamodule, or else of the module, that returns the loader of these
            batches. With ``train_dataloader`` they are augmented as in training, and are read from a copy of the loader
            that trains. The package's image datamodules have ``plain_train_dataloader`` without augmentation.

    Raises:
        InvalidValueError: The number of batches is below 1, or there is no such method.
        NoEffectError: When training starts, if the module has no batch norm with running statistics.
        MisconfigurationException: When training starts, under a strategy that splits the weights, if the data loader is
            endless and ``batches`` is null, or if a callback that averages weights stands behind this one.

    Source: Wu & Johnson, 2021, "Rethinking 'batch' in BatchNorm", section 3.

    Example:
        >>> trainer = Trainer(callbacks=[BatchNormRecalibration(batches=50)], logger=False, accelerator="cpu")
    """

    def __init__(self, batches: int | None = 200, validates: bool = True, dataloader: str = TRAIN_LOADER) -> None:
        super().__init__()
        check_count("batches", batches, 1, optional=True)
        self.batches = batches
        self.validates = validates
        self.dataloader = dataloader
        self._done_at = -1
        """The optimizer step whose weights the statistics are of."""
        self._moving: dict[str, Tensor] = {}
        """The moving averages that training goes on with, by the buffers' names; empty while the module has them."""
        self._exact: dict[str, Tensor] = {}
        """The statistics that the module has in their place."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._done_at, self._moving, self._exact = -1, {}, {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not holds_whole_gradients(trainer.strategy):
            raise MisconfigurationException(
                f"BatchNormRecalibration cannot run the module under {type(trainer.strategy).__name__}: no process "
                "holds all weights there. Train on a single device or with DDP, or remove the callback."
            )
        if not any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in pl_module.modules()):
            raise NoEffectError(
                f"BatchNormRecalibration would do nothing: {type(pl_module).__name__} has no batch norm layer with "
                "running statistics. Remove the callback."
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for other in callbacks[callbacks.index(self) :]:
            if isinstance(other, AveragingCallback) and other.buffers != "recompute":
                name = type(other).__name__
                raise MisconfigurationException(
                    f"BatchNormRecalibration stands before {name}, so the statistics would be those of the weights and "
                    f"not of their average, which is what is evaluated. Put it behind {name} in the list of callbacks."
                )
        if self.batches is None and self.dataloader == TRAIN_LOADER and trainer.num_training_batches == float("inf"):
            raise MisconfigurationException(
                "BatchNormRecalibration(batches=None) takes a whole epoch, but the training data loader is endless. "
                "Give a number of batches."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validates and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._recalibrate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validates or _ends_here(trainer):
            self._recalibrate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recalibrate(trainer, pl_module)  # where a later callback stopped the run in the same hook

    def _recalibrate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._done_at == trainer.global_step:
            return
        with _as_evaluated(trainer, pl_module):
            before = _copies(_statistics(pl_module))
            recalibrate_on_training_data(trainer, pl_module, self.batches, self.dataloader)
            self._exact = _copies(_statistics(pl_module))
        self._moving = self._moving or before
        self._done_at = trainer.global_step

    # Back to training. Not before: a checkpoint of the validation or the epoch's end has what was validated.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._moving:
            return
        with _as_evaluated(trainer, pl_module), torch.no_grad():
            statistics = _statistics(pl_module)
            exact = {name: value.to(statistics[name]) for name, value in self._exact.items() if name in statistics}
            # Other weights may have been loaded since: a checkpoint's, or the best ones.
            if statistics.keys() == exact.keys() and all(map(torch.equal, statistics.values(), exact.values())):
                for name, value in self._moving.items():
                    statistics[name].copy_(value)
        hand_out_buffers(trainer)
        self._done_at, self._moving, self._exact = -1, {}, {}

    def state_dict(self) -> dict[str, Any]:
        return {"moving": self._moving, "exact": self._exact}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._moving, self._exact = state_dict["moving"], state_dict["exact"]


def _as_evaluated(trainer: Trainer, pl_module: LightningModule) -> AbstractContextManager[None]:
    """Within it the module carries the average of its weights, if a callback keeps one: that is evaluated."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    average = next((other for other in callbacks if isinstance(other, AveragingCallback)), None)
    return nullcontext() if average is None else average.averaged(pl_module)


def _statistics(pl_module: LightningModule) -> dict[str, Tensor]:
    return {n: b for n, b in pl_module.named_buffers() if n.rpartition(".")[2] in ("running_mean", "running_var")}


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _ends_here(trainer: Trainer) -> bool:
    """Whether the epoch that ends is the last one, as far as that is known."""
    loop: Any = trainer.fit_loop
    steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    epochs = trainer.max_epochs not in (None, -1) and loop.epoch_progress.current.processed >= trainer.max_epochs
    return steps or epochs or (trainer.should_stop and loop._can_stop_early)
