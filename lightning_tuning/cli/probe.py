"""A configured run as it is right before its first step, on one process and without a step being made."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lightning_tuning.callbacks import Schedule
from lightning_tuning.runs.global_batch import GlobalBatch

_OF_THE_LENGTH = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches", "overfit_batches"),
    *("accumulate_grad_batches", "use_distributed_sampler"),
)
"""The Trainer's settings that say how long a run is."""
_Answer = TypeVar("_Answer")


def before_first_step(
    read: Callable[[Trainer, LightningModule], _Answer],
    model: LightningModule,
    datamodule: LightningDataModule | None,
    trainer: Mapping[str, Any],
    callbacks: Sequence[Callback],
    batches_per_epoch: int | None = None,
) -> _Answer:
    """What ``read`` answers when all hooks before a run's first step have been called.

    Data, optimizers and schedules are set up as ``fit`` does it, on the CPU, without loggers and checkpoints.

    Args:
        read: Is given the Trainer and its module.
        model: The module.
        datamodule: Its data.
        trainer: The Trainer's settings; those that do not bear on the run's length are passed over.
        callbacks: The Trainer's callbacks; those that schedule something are taken.
        batches_per_epoch: Of each process; the data are then not looked at. None: as many as the data have.
    """
    probe = _Probe(read, world_size(trainer))
    acting = [c for c in callbacks if isinstance(c, (GlobalBatch, Schedule, GradientAccumulationScheduler, Timer))]
    strategy = SingleDeviceStrategy("cpu")
    strategy.world_size = probe.world_size  # what data and schedules ask the Trainer for
    data: dict[str, Any] = {"datamodule": datamodule}
    if batches_per_epoch is not None:
        data = {"train_dataloaders": DataLoader(range(batches_per_epoch), batch_size=None)}  # type: ignore[arg-type]
        probe.world_size = 1
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                **{name: trainer[name] for name in _OF_THE_LENGTH if name in trainer},
                accelerator="cpu",
                strategy=strategy,
                callbacks=[probe, *acting],
                logger=False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            ).fit(model, **data)
    except _Enough:
        return probe.answer
    finally:
        logging.disable(logging.NOTSET)
    raise RuntimeError("The run has no step.")


def world_size(trainer: Mapping[str, Any]) -> int:
    """The number of processes that the settings name; 1 where they leave it to the machine."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, str) and devices.isdecimal():
        devices = int(devices)
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    return max(count, 1) * (trainer.get("num_nodes") or 1)


class _Enough(Exception):
    """Ends the run before its first step."""


class _Probe(Callback, Generic[_Answer]):
    answer: _Answer

    def __init__(self, read: Callable[[Trainer, LightningModule], _Answer], world_size: int) -> None:
        self.read, self.world_size = read, world_size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give this process the share of the data that each of several would get."""
        combined = trainer.fit_loop._combined_loader
        if self.world_size == 1 or combined is None or combined._iterator is None:
            return
        limits = [self._batches(trainer, loader) for loader in combined.flattened]
        combined.limits = combined._iterator.limits = limits
        length = sized_len(combined)
        trainer.fit_loop.max_batches = math.inf if length is None else length

    def _batches(self, trainer: Trainer, loader: Any) -> int | float:
        length = sized_len(loader)
        samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
        is_shared_out = any(isinstance(sampler, DistributedSampler) for sampler in samplers)
        streams = isinstance(getattr(loader, "dataset", None), IterableDataset)
        if length is not None and not is_shared_out and not streams and isinstance(loader, DataLoader):
            length = math.ceil(length / self.world_size)
        size = math.inf if length is None else length
        return _parse_num_batches(RunningStage.TRAINING, size, trainer.limit_train_batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.answer = self.read(trainer, pl_module)
        raise _Enough
