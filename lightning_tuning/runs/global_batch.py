"""GlobalBatch: the samples that one optimizer step is made of, told at the start, and kept on any number of devices."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_tuning.callbacks import Schedule
from lightning_tuning.data_ranks import data_ranks
from lightning_tuning.errors import InvalidValueError, check_count
from lightning_tuning.timing.durations import batch_size_of, samples_per_batch
from lightning_tuning.timing.progress import accumulation_in

_STATE_KEY = "global_batch"


class GlobalBatch(Callback):
    """Tells at the start of ``fit`` how many samples an optimizer step takes, and can keep that number.

    The rule: a run is the same on any number of devices if its global batch is the same: the samples of a process's
    batch, times the accumulated batches, times the processes. The learning rate belongs to the global batch and is
    never scaled. With ``size``, the Trainer accumulates as many batches as it takes, in place of its
    ``accumulate_grad_batches``; the batch of each process stays, and with it what batch norm and batch-coupled
    techniques see. A run that is resumed with another global batch than its checkpoint's warns, and so does one that is
    resumed within an epoch with another number of processes.

    Args:
        size: Samples of each optimizer step over all processes, labelled ones where there are streams: a multiple of
            the batch size times the number of processes. None: whatever it comes to. Off: None.

    Raises:
        InvalidValueError: ``size`` is not a positive integer; at the start of ``fit``, it is no multiple,
            ``accumulate_grad_batches`` or a schedule says something else, or the module steps by itself.

    Example:
        >>> trainer = Trainer(callbacks=[GlobalBatch(256)], logger=False, accelerator="cpu")
    """

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        check_count("global_batch_size", size, 1, optional=True)
        self.size = size
        self._set: int | None = None
        """What an earlier fit has made the Trainer accumulate."""
        self._now: int | None = None
        self._resumed: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before the schedules are made, whose length depends on it.
        if stage == "fit" and self.size is not None:
            trainer.accumulate_grad_batches = self._set = self._accumulation(trainer, pl_module)

    def _accumulation(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """How many batches are accumulated for ``size``."""
        told, batch_size = f"global_batch_size is {self.size}", batch_size_of(trainer.fit_loop._data_source.instance)
        if batch_size is None:
            raise InvalidValueError(
                f"{told}, but the data do not tell the batch size of a process: neither the datamodule nor the loader "
                "has a batch_size. Write accumulate_grad_batches instead."
            )
        if changing := _changing_accumulation(trainer):
            raise InvalidValueError(f"{told}, but {changing} changes it. Leave one of them out.")
        world = data_ranks(trainer)[0]
        together = f"{batch_size} x {_ranks(world)}"
        accumulated, rest = divmod(self.size or 0, batch_size * world)
        if rest or not accumulated:
            raise InvalidValueError(f"{told}, which is no multiple of {together}. {self._advice(batch_size, world)}")
        if trainer.accumulate_grad_batches not in (1, accumulated, self._set):
            raise InvalidValueError(
                f"{told} = {together} x {accumulated} accumulated, but accumulate_grad_batches is "
                f"{trainer.accumulate_grad_batches}. Leave that out."
            )
        if accumulated > 1 and not pl_module.automatic_optimization:
            raise InvalidValueError(
                f"{told} = {together} x {accumulated} accumulated, but {type(pl_module).__name__} sets "
                "self.automatic_optimization = False, and the Trainer cannot accumulate for it. Leave it out, or "
                f"write {batch_size * world}."
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
        world, accumulated = data_ranks(trainer)[0], accumulation_in(trainer, 0)
        size = batch * accumulated
        if self.size not in (None, size):
            raise InvalidValueError(
                f"global_batch_size is {self.size}, but the loader's batches make {size} = {batch // world} x "
                f"{_ranks(world)} x {accumulated} accumulated: the batch_size of the datamodule is not the loader's."
            )
        factors = [str(batch // world), *([f"{accumulated} accumulated"] if accumulated > 1 else []), _ranks(world)]
        first = " in the first epoch" if _changing_accumulation(trainer) else ""
        rank_zero_info(f"Global batch {size} = {' x '.join(factors)}{first}; the learning rate is not scaled by it.")
        self._now = size
        self._compare(trainer, size, world)

    def _compare(self, trainer: Trainer, size: int, world: int) -> None:
        """Warn where a resumed run is another one than its checkpoint's."""
        resumed, self._resumed = self._resumed, {}
        before, ranks, batches = resumed.get("size"), resumed.get("ranks", world), resumed.get("batches")
        if before not in (None, size):
            rank_zero_warn(
                f"The checkpoint's run had a global batch of {before}, this one has {size}, at the same learning rate. "
                f"To go on as before write GlobalBatch({before}), or on the command line "
                f"--run.global_batch_size={before}."
            )
        if batches and ranks != world:
            rank_zero_warn(
                f"The checkpoint was written within an epoch, behind {batches} batches of {_ranks(ranks)}, and this "
                f"run goes on behind {batches} batches of {_ranks(world)}, so the epoch "
                f"{'repeats' if world < ranks else 'leaves out'} samples. Resume with as many ranks as before, or from "
                "a checkpoint of an epoch's end."
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        batches = 0 if progress.is_last_batch else progress.current.ready
        checkpoint[_STATE_KEY] = {"size": self._now, "ranks": data_ranks(trainer)[0], "batches": batches}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get(_STATE_KEY, {})


def _changing_accumulation(trainer: Trainer) -> str | None:
    """What lets the accumulation differ between the epochs."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return "GradientAccumulationScheduler"
        if isinstance(callback, Schedule) and callback.target == "accumulation":
            return "Schedule(target='accumulation')"
    return None


def _ranks(world: int) -> str:
    return f"{world} rank{'s' if world > 1 else ''}"
