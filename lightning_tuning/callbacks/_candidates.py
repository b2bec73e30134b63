"""Choosing weights by their validation at a run's end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_tuning.checkpoint_file import read_checkpoint
from lightning_tuning.errors import InvalidValueError, did_you_mean

from ._pictures import run_folder
from ._raw_validation import unseen
from ._training_batches import recalibrate_on_training_data
from .early_stop import EarlyStop


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """What a validation of the module as it is logs, within ``fit``, as its mean over the ranks.

    Callbacks and loggers do not see it. Every rank has to call it.
    """
    found: dict[str, Any] = {}
    stage, loop = trainer.state.stage, trainer.fit_loop.epoch_loop.val_loop
    with unseen(trainer):
        trainer.validating, loop.restarting = True, False  # after a resume it would go on with an earlier validation
        try:
            for logged in loop.run():
                found.update(logged)
        finally:
            trainer.state.stage = stage
    # A module may log without sync_dist, but all ranks have to decide alike.
    device = trainer.strategy.root_device
    values = {name: torch.as_tensor(value, device=device) for name, value in found.items()}
    return {name: float(trainer.strategy.reduce(value, reduce_op="mean")) for name, value in values.items()}


def refuse_restoring(trainer: Trainer, owner: str) -> None:
    """Raise :class:`MisconfigurationException` if an ``EarlyStop`` puts other weights in the place of ``owner``'s."""
    if any(isinstance(c, EarlyStop) and c.restore_best for c in trainer.callbacks):  # type: ignore[attr-defined]
        raise MisconfigurationException(
            f"{owner} and EarlyStop(restore_best=True) both choose the weights that the module has after the fit, and "
            "EarlyStop's would win. Write restore_best: false."
        )


def metric_of(metrics: Mapping[str, float], monitor: str, owner: str) -> float:
    """The metric that candidates are compared by.

    Raises:
        InvalidValueError: Validation does not log it.
    """
    if monitor not in metrics:
        logs = f"It logs: {', '.join(sorted(metrics))}." if metrics else "It logs nothing."
        raise InvalidValueError(
            f"{owner} compares by {monitor!r}, which validation does not log{did_you_mean(monitor, metrics)} {logs}"
        )
    return metrics[monitor]


def take_on(trainer: Trainer, pl_module: LightningModule, state: Mapping[str, Tensor], recalibrate: bool) -> None:
    """Load a state into the module and compute batch norm's statistics for it."""
    pl_module.load_state_dict(state)
    if recalibrate:
        recalibrate_on_training_data(trainer, pl_module)


def save_checkpoint(trainer: Trainer, name: str, weights_only: bool = False) -> Path:
    """Write ``<run folder>/checkpoints/<name>.ckpt`` with the module as it is. Every rank has to call it."""
    path = run_folder(trainer) / "checkpoints" / f"{name}.ckpt"
    trainer.save_checkpoint(path, weights_only=weights_only)
    return path


def load_weights(path: Path | str, owner: str) -> dict[str, Tensor]:
    """The module's state in a checkpoint of Lightning's, on the CPU.

    Raises:
        InvalidValueError: There is no such file, or it is no checkpoint of a module.
    """
    if not Path(path).is_file():
        raise InvalidValueError(f"{owner}: there is no checkpoint {path}.")
    try:
        checkpoint = read_checkpoint(path)
    except Exception as error:
        raise InvalidValueError(f"{owner}: {path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise InvalidValueError(f"{owner}: {path} is no checkpoint of a LightningModule: it has no state_dict.")
    return checkpoint["state_dict"]


def check_alike(
    first: tuple[str, Mapping[str, Tensor]], others: Iterable[tuple[str, Mapping[str, Tensor]]], owner: str
) -> None:
    """Raise :class:`InvalidValueError` unless all states have the same names and shapes.

    Args:
        first: A name, such as of a file, and its state, which the others are compared with.
        others: Their names and states.
        owner: Who asks.
    """
    expected = {key: list(value.shape) for key, value in first[1].items()}
    for name, state in others:
        found = {key: list(value.shape) for key, value in state.items()}
        if found == expected:
            continue
        key = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))[0]
        why = (
            f"it has no {key}"
            if key not in found
            else f"it has {key} besides"
            if key not in expected
            else (f"{key} is {found[key]} instead of {expected[key]}")
        )
        raise InvalidValueError(f"{owner}: {name} is not of the model that {first[0]} is of: {why}.")
