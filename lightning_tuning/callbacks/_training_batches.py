"""Passes over training batches beside the training: batch norm's statistics for weights that were not trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _process_dataloader
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import labeled_part, recalibrate_batch_norm, tracking_batch_norms

TRAIN_LOADER = "train_dataloader"


def recalibrate_on_training_data(
    trainer: Trainer, pl_module: LightningModule, batches: int | None = None, dataloader: str = TRAIN_LOADER
) -> int:
    """Give the module's batch norm layers the statistics of its present weights over training batches.

    A layer that is in evaluation mode in training was frozen by somebody, and keeps its statistics. Random generators,
    ``training`` flags and the position of the data loader stay as they are. Every rank has to call it.

    Args:
        trainer: The Trainer, within ``fit``.
        pl_module: The module; what answers in evaluation is what is recalibrated, an EMA teacher too.
        batches: Batches of each rank, from the loader's start; None: all.
        dataloader: The method of the datamodule or the module that gives them. For the loader that trains, its copy
            is read.

    Returns:
        The number of batches that a rank took; 0 if there is nothing to recalibrate.
    """
    layers = [m for m in trained_batch_norms(trainer, pl_module) if m.running_mean is not None]
    if not layers:
        return 0
    with _as_in_training(trainer):
        return recalibrate_batch_norm(
            pl_module,
            _inputs(trainer, pl_module, batches, dataloader),
            forward=lambda x: pl_module(x),
            layers=layers,
        )


def trained_batch_norms(trainer: Trainer, pl_module: LightningModule) -> list[_BatchNorm]:
    """The batch norm layers that training does not run in evaluation mode, and those of the EMA teacher, which is in
    evaluation mode always."""
    teacher = getattr(pl_module, "ema_teacher", None)
    teachers = set(teacher.modules()) if isinstance(teacher, nn.Module) else set()
    modes = trainer.fit_loop.epoch_loop.val_loop._module_mode.mode if trainer.validating else {}
    named = {name: m for name, m in pl_module.named_modules() if isinstance(m, _BatchNorm)}
    kept = [m for name, m in named.items() if modes.get(name, m.training) or m in teachers]
    return [m for m in tracking_batch_norms(pl_module) if m in kept]


def hand_out_buffers(trainer: Trainer) -> None:
    """Let DDP give rank 0's buffers to all ranks in the next forward pass; those that it gave last were exchanged."""
    model = trainer.strategy.model
    if isinstance(model, DistributedDataParallel):
        model.require_forward_param_sync = True


@contextmanager
def _as_in_training(trainer: Trainer) -> Iterator[None]:
    """Hooks that look at the Trainer's stage, such as augmentations on the device, do what they do in training."""
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.TRAINING
    try:
        with trainer.precision_plugin.train_step_context():
            yield
    finally:
        trainer.state.stage = stage


def _inputs(trainer: Trainer, pl_module: LightningModule, limit: int | None, dataloader: str) -> Iterator[Any]:
    loader, limit = _loader(trainer, pl_module, dataloader), _limit(trainer, limit, dataloader)
    kept, taken = _generators(loader), 0
    try:
        for _ in range(1 if limit is None else 2):  # a loader that keeps its place may begin where training stands
            for batch, _, _ in islice(iter(loader), None if limit is None else limit - taken):
                taken += 1
                batch = trainer.precision_plugin.convert_input(batch)
                batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
                yield _input(pl_module, trainer.strategy.batch_to_device(batch, dataloader_idx=0))
    finally:
        for generator, state in kept:
            generator.set_state(state)


def _input(pl_module: LightningModule, batch: Any) -> Any:
    batch = labeled_part(batch)
    unpack = getattr(pl_module, "unpack_batch", None)
    if unpack is not None:
        return unpack(batch)[0]
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def _limit(trainer: Trainer, limit: int | None, dataloader: str) -> int | None:
    """At most as many batches as an epoch has: the copy of an endless loader would never end."""
    if dataloader != TRAIN_LOADER or trainer.num_training_batches == float("inf"):
        return limit
    return min(limit or int(trainer.num_training_batches), int(trainer.num_training_batches))


def _loader(trainer: Trainer, pl_module: LightningModule, dataloader: str) -> CombinedLoader:
    if dataloader == TRAIN_LOADER:
        trains = trainer.fit_loop._combined_loader
        if trains is None:
            raise InvalidValueError("There is no training data loader to take batches from outside of fit.")
        combined = copy.copy(trains)
        combined.flattened = [_apart(loader) for loader in trains.flattened]
        return combined
    owners = [owner for owner in (trainer.datamodule, pl_module) if hasattr(owner, dataloader)]  # type: ignore[attr-defined]
    if not owners:
        raise InvalidValueError(
            f"dataloader is {dataloader!r}, but neither the datamodule nor {type(pl_module).__name__} has a method of "
            f"that name. Write one that returns a DataLoader, or use {TRAIN_LOADER!r}."
        )
    combined = CombinedLoader(getattr(owners[0], dataloader)(), "max_size_cycle")
    combined.flattened = [
        _process_dataloader(trainer, TrainerFn.FITTING, RunningStage.VALIDATING, loader)
        for loader in combined.flattened
    ]
    return combined


def _apart(loader: Any) -> Any:
    """A loader of the same batches that shares no iterator with the one that is being read: persistent workers would
    start the epoch again."""
    apart = copy.copy(loader)
    if hasattr(apart, "_iterator"):
        apart._iterator = None
    return apart


def _generators(combined: CombinedLoader) -> list[tuple[torch.Generator, torch.Tensor]]:
    """The loaders' own random generators and their states."""
    found = {}
    for loader in combined.flattened:
        samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
        samplers.append(getattr(samplers[1], "sampler", None))
        for owner in (loader, *samplers):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator, generator.get_state()
    return list(found.values())
