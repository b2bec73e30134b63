"""Who else sets the learning rate."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from .schedule import Schedule


def refuse_other_schedules(trainer: Trainer, owner: str, instead: str) -> None:
    """Raise :class:`MisconfigurationException` if a :class:`Schedule` sets a learning rate that ``owner`` sets too."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(c, Schedule) and c.target.rpartition(".")[2] == "lr" for c in callbacks):
        raise MisconfigurationException(
            f"{owner} sets the learning rate, and so does Schedule: the later one would win. Remove the Schedule, or "
            f"write {instead}."
        )
