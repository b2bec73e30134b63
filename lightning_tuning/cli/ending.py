"""What a run of the command line leaves: the curves and the summary."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import distributed

from lightning_tuning.callbacks._pictures import show_picture
from lightning_tuning.errors import DivergenceError
from lightning_tuning.runs.curves import save_curves
from lightning_tuning.runs.journal import write_json
from lightning_tuning.runs.summary import format_summary, summarize
from lightning_tuning.runs.wandb_logger import ResilientWandbLogger


def draw_curves(trainer: Trainer, folder: Path) -> None:
    """Draw the journal, also that of a training that an error ended."""
    try:
        if (path := save_curves(folder)) is not None:
            show_picture(trainer, path)
    except Exception as error:  # never in place of the error that ended the training
        print(f"lightning-tuning: the curves could not be drawn: {error!r}", file=sys.stderr)


def leave_process_group() -> None:
    """End the exchange with the run's other processes, before the interpreter takes down what its threads use.

    Lightning does so for NCCL alone. Under load a finished process of gloo was seen to abort at its exit, and torchrun
    took the run for a failed one.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def not_finite(module: LightningModule) -> list[str]:
    """The names of the trained parameters that hold a value which is not finite."""
    trained = (pair for pair in module.named_parameters() if pair[1].requires_grad)
    return [name for name, parameter in trained if not bool(parameter.detach().isfinite().all())]


def check_finite(names: Sequence[str]) -> None:
    """Tell that a training was in vain, whatever its last line says.

    Raises:
        DivergenceError: There are names of parameters that are not finite.
    """
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DivergenceError(
            f"The training ended with weights that are not finite: {', '.join(names[:3])}{more}. "
            "--trainer.callbacks+=FiniteGuard leaves out the steps that make them so, --config preset:debug names the "
            "operation, metrics.jsonl the step."
        )


def finish(
    trainer: Trainer, folder: Path, results: Sequence[Mapping[str, float]], seconds: float, **extra: Any
) -> None:
    """Save and print the summary.

    Args:
        trainer: The Trainer that ran.
        folder: The run's folder.
        results: What the Trainer returned of each data loader that it evaluated on.
        seconds: Wall time.
        **extra: What stands in the summary besides.
    """
    metrics = {name: value for result in results for name, value in result.items()}
    summary = {**summarize(trainer, metrics, folder, seconds), **extra}
    try:
        write_json(folder / "summary.json", summary)
    except OSError as error:
        print(f"lightning-tuning: summary.json was not written: {error}", file=sys.stderr)
    for logger in trainer.loggers:
        if isinstance(logger, ResilientWandbLogger) and logger.log_reports:
            logger.log_folder(folder)
    print(format_summary(summary))
