"""Who else sets the learning rate."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def refuse_other_schedules(trainer: Trainer, owner: Callback, name: str, instead: str) -> None:
    """Raise :class:`MisconfigurationException` if another callback says that it sets the learning rate (``sets_lr``).

    Args:
        trainer: The Trainer.
        owner: The callback that asks.
        name: What the message calls it.
        instead: What to write for ``owner`` so that it does not set the rate.
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if other is not owner and getattr(other, "sets_lr", False):
            raise MisconfigurationException(
                f"{name} sets the learning rate, and so does {type(other).__name__}: the later one would win. Remove "
                f"the {type(other).__name__}, or write {instead}."
            )
