"""What the Trainer of a run of the command line gets besides what the user lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins import CheckpointIO

from lightning_tuning import callbacks
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs.changed_arguments import ChangedArguments
from lightning_tuning.runs.checkpoint_io import SafeCheckpointIO
from lightning_tuning.runs.checkpoints import default_checkpoints
from lightning_tuning.runs.config import RunConfig
from lightning_tuning.runs.facts import LogFacts, settings_to_log
from lightning_tuning.runs.global_batch import GlobalBatch
from lightning_tuning.runs.wandb_logger import ResilientWandbLogger


def all_callbacks(
    trainer: Any,
    run: RunConfig,
    presets: Sequence[str],
    changed: Mapping[str, tuple[Any, Any]],
    settings: Mapping[str, Any],
    *,
    trains: bool = False,
) -> list[Callback]:
    """The user's callbacks, and those that a run has unless the user lists one of the same class.

    Args:
        trainer: The Trainer's settings.
        run: The run's settings.
        presets: The presets in use, to be noted.
        changed: The model's arguments that are not those of its checkpoint, to be told.
        settings: The command's configuration.
        trains: Whether the command is one that writes checkpoints.

    Raises:
        InvalidValueError: A setting of the run would have no effect, for the user lists the callback that it is for.
    """
    given = as_list(trainer.callbacks)
    batch = _unlisted([GlobalBatch(run.global_batch_size)], given)
    if run.global_batch_size is not None and not batch:
        raise InvalidValueError(
            f"run.global_batch_size is {run.global_batch_size}, but the configuration has a GlobalBatch of its own. "
            "Leave one of them out."
        )
    if trainer.barebones:
        return [*batch, *given]
    defaults: list[Callback] = [
        callbacks.ExactResume(),
        callbacks.SaveOnSignal(),
        callbacks.MonitorCheck(),
        LogFacts(list(presets), settings_to_log(settings)),
    ]
    if trainer.log_every_n_steps != 0:  # without, two would be called at each step for nothing
        defaults += [callbacks.GradientNorm(), LearningRateMonitor(logging_interval="step")]
    own = [g for g in given if isinstance(g, ModelCheckpoint)]
    if own and run.monitor not in (None, *(c.monitor for c in own)):
        raise InvalidValueError(
            f"run.monitor is {run.monitor!r}, but the configuration has a ModelCheckpoint of its own, which "
            f"replaces the one that run.monitor would make. Give it monitor: {run.monitor}, or write "
            "--run.monitor=null"
        )
    told = [ChangedArguments(dict(changed))] if changed else []
    saves = trains and trainer.enable_checkpointing is not False and not own
    kept = default_checkpoints(run.monitor, run.mode) if saves else []
    return [*batch, *given, *_unlisted(defaults, given), *told, *kept]


def _unlisted(defaults: Sequence[Callback], given: Sequence[Callback]) -> list[Callback]:
    return [default for default in defaults if not any(isinstance(one, type(default)) for one in given)]


def with_safe_checkpoints(plugins: list[Any], strategy: Any) -> list[Any]:
    """The user's plugins, and the writer of checkpoints unless there is another."""
    other = any(isinstance(plugin, CheckpointIO) for plugin in plugins) or getattr(strategy, "_checkpoint_io", None)
    return plugins if other or "xla" in str(strategy) else [*plugins, SafeCheckpointIO()]


def wandb_logger(cls: type[WandbLogger], resumed: str | None, *args: Any, **kwargs: Any) -> WandbLogger:
    """Make a W&B logger; one that can goes on with the run of the checkpoint that the training is resumed from."""
    if issubclass(cls, ResilientWandbLogger) and resumed and Path(resumed).is_file():
        kwargs["ckpt_path"] = kwargs.get("ckpt_path") or resumed
    logger = cls(*args, **kwargs)
    if logger._wandb_init.get("anonymous", "") is None:
        del logger._wandb_init["anonymous"]  # wandb warns of this setting even when it is None
    return logger


def as_list(value: Any) -> list[Any]:
    """A setting of the Trainer that may be one, several or none."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
