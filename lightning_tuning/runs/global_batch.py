"""GlobalBatch: the samples that one optimizer step is made of, told at the start, and kept on any number of devices."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_tuning.errors import InvalidValueError, check_count
from lightning_tuning.timing.durations import samples_per_batch

_STATE_KEY = "global_batch"


class GlobalBatch(Callback):
    """Tells at the start of ``fit`` how many samples an optimizer step takes, and can keep that number.

    The rule: a run is the same on any number of devices if its global batch is the same: the samples of a process's
    batch, times the accumulated batches, times the processes. The learning rate belongs to the global batch and is
    never scaled. With ``size``, the Trainer accumulates as many batches as it takes, in place of its
    ``accumulate_grad_batches``; the batch of each process stays, and with it what batch norm and batch-coupled
    techniques see. A run that is resumed with another global batch than its checkpoint's warns.

    Args:
        size: Samples of each optimizer step over all processes, labelled ones where there are streams: a multiple of
            the batch size times the number of processes. None: whatever it comes to. Off: None.

    Raises:
        InvalidValueError: ``size`` is not a positive integer; at the start of ``fit``, it is no multiple, or
            ``accumulate_grad_batches`` says something else.

    Example:
        >>> trainer = Trainer(callbacks=[GlobalBatch(256)], logger=False, accelerator="cpu")
    """

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        check_count("global_batch_size", size, 1, optional=True)
        self.size = size
        self._now: int | None = None
        self._of_checkpoint: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before the schedules are made, whose length depends on it.
        if stage == "fit" and self.size is not None:
            trainer.accumulate_grad_batches = self._accumulation(trainer, _promised_batch_size(trainer))

    def _accumulation(self, trainer: Trainer, batch_size: int | None) -> int:
        """How many batches are accumulated for ``size``, of each process's batch size."""
        told = f"global_batch_size is {self.size}"
        if batch_size is None:
            raise InvalidValueError(
                f"{told}, but the data do not tell the batch size of a process: neither the datamodule nor the loader "
                "has a batch_size. Write accumulate_grad_batches instead."
            )
        if any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise InvalidValueError(f"{told}, but GradientAccumulationScheduler changes it. Leave one of them out.")
        world = trainer.world_size
        together = f"{batch_size} x {_ranks(world)}"
        accumulated, rest = divmod(self.size or 0, batch_size * world)
        if rest or not accumulated:
            raise InvalidValueError(f"{told}, which is no multiple of {together}. {self._advice(batch_size, world)}")
        if trainer.accumulate_grad_batches not in (1, accumulated):
            raise InvalidValueError(
                f"{told} = {together} x {accumulated} accumulated, but accumulate_grad_batches is "
                f"{trainer.accumulate_grad_batches}. Leave that out."
            )
        return accumulated

    def _advice(self, batch_size: int, world: int) -> str:
        share, rest = divmod(self.size or 0, world)
        if rest or not share:
            return f"Write a multiple of {world}, the number of ranks."
        fitting = max(b for b in range(1, min(share, batch_size) + 1) if share % b == 0)
        return f"Write a batch_size of {fitting}, or another global batch."

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batch = samples_per_batch(trainer)
        if batch is None:
            rank_zero_info("Global batch: unknown, as the loader does not tell its batch size.")
            return
        world, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        size = batch * accumulated
        if self.size not in (None, size):
            raise InvalidValueError(
                f"global_batch_size is {self.size}, but the loader's batches make {size} = {batch // world} x "
                f"{_ranks(world)} x {accumulated} accumulated: the batch_size of the datamodule is not the loader's."
            )
        factors = [str(batch // world), *([f"{accumulated} accumulated"] if accumulated > 1 else []), _ranks(world)]
        rank_zero_info(f"Global batch {size} = {' x '.join(factors)}; the learning rate is not scaled by it.")
        if self._of_checkpoint not in (None, size):
            rank_zero_warn(
                f"The checkpoint's run had a global batch of {self._of_checkpoint}, this one has {size}, at the same "
                f"learning rate. To go on as before write GlobalBatch({self._of_checkpoint}), or on the command line "
                f"--run.global_batch_size={self._of_checkpoint}."
            )
        self._now = size

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_STATE_KEY] = self._now

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._of_checkpoint = checkpoint.get(_STATE_KEY)


def _promised_batch_size(trainer: Trainer) -> int | None:
    """The samples of a process's batch, before there is a loader."""
    source = trainer.fit_loop._data_source.instance
    for owner in (source, getattr(source, "sampler", None)):
        size = getattr(owner, "batch_size", None)
        if isinstance(size, int):
            return size
    return None


def _ranks(world: int) -> str:
    return f"{world} rank{'s' if world > 1 else ''}"
