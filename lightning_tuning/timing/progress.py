"""How far a run has come."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def total_steps(trainer: Trainer, what: str = "A schedule", instead: str = "--model.schedule=constant") -> int:
    """Return the number of optimizer steps of the whole run, once its data are set up (``on_train_start`` or later).

    Unlike ``Trainer.estimated_stepping_batches`` it knows a ``GradientAccumulationScheduler``, and it does not set the
    data up early, which would drop the state of a stateful loader on resume.

    Args:
        trainer: The Trainer of the run.
        what: What asks for the length, for the message.
        instead: What to write that needs none, for the message.

    Raises:
        MisconfigurationException: If the Trainer's arguments leave the length open.
    """
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    epochs, batches = trainer.max_epochs or -1, trainer.num_training_batches
    if epochs > 0 and batches != math.inf:
        limits.append(sum(_steps_of_epoch(trainer, epoch) for epoch in range(epochs)))
    if not limits:
        raise MisconfigurationException(
            f"{what} needs the run's length, and the Trainer has none: set trainer.max_steps, or trainer.max_epochs "
            f"with a data loader of known length, or write {instead}."
        )
    return min(limits)


def _steps_of_epoch(trainer: Trainer, epoch: int) -> int:
    return math.ceil(trainer.num_training_batches / accumulation_in(trainer, epoch))


def accumulation_in(trainer: Trainer, epoch: int) -> int:
    """Return how many batches an optimizer step takes in an epoch: a ``GradientAccumulationScheduler`` or a schedule of
    the accumulation may change it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        ask = getattr(callback, "get_accumulate_grad_batches", None)
        count = ask(epoch) if ask is not None else None
        if count is not None:
            return count
    return trainer.accumulate_grad_batches


def steps_in_epochs(trainer: Trainer, epochs: float) -> float:
    """Return the number of optimizer steps in the first ``epochs`` epochs; of a part of an epoch, that part.

    Raises:
        MisconfigurationException: If nobody knows how long an epoch is.
    """
    if trainer.num_training_batches == math.inf:
        raise MisconfigurationException(
            "A duration in epochs needs the length of an epoch, and the data loader has none: write it in steps, as in "
            "500st."
        )
    whole = int(epochs)
    steps: float = sum(_steps_of_epoch(trainer, epoch) for epoch in range(whole))
    return steps + (epochs - whole) * _steps_of_epoch(trainer, whole) if epochs > whole else steps


def progress(trainer: Trainer, total: int) -> float:
    """Return the share of the run's ``total`` optimizer steps that are done, in [0, 1]: nothing else, so it is the same
    in a resumed run, for all batches of an accumulation window and in SAM's second pass."""
    return min(trainer.global_step / total, 1.0)
