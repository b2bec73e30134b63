"""Durations as users write them: ``"5ep"``, ``"500st"``, ``"0.1dur"``, ``"1e6smp"``."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning.data_ranks import data_ranks
from lightning_tuning.errors import InvalidValueError

from .progress import steps_in_epochs, total_steps

_UNITS = {
    "ep": "ep",
    "epoch": "ep",
    "epochs": "ep",
    "st": "st",
    "step": "st",
    "steps": "st",
    "dur": "dur",
    "%": "dur",
    "smp": "smp",
    "sample": "smp",
    "samples": "smp",
}
_FORM = re.compile(rf"([0-9.]+(?:e[+-]?[0-9]+)?) *({'|'.join(sorted(_UNITS, key=len, reverse=True))})")
FORMS = "'5ep' (epochs), '500st' (optimizer steps), '0.1dur' or '10%' (of the run), or '1e6smp' (samples)"


class Duration(NamedTuple):
    """A length of time in a run, or a point in it.

    Example:
        >>> parse_duration("0.1dur") == parse_duration("10%")
        True
        >>> str(parse_duration("500 steps"))
        '500st'
    """

    value: float
    unit: str
    """``ep`` for epochs, ``st`` for optimizer steps, ``dur`` for shares of the run, ``smp`` for samples."""

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"

    def steps(self, trainer: Trainer) -> float:
        """The number of optimizer steps from the run's start; of a part of a step, that part.

        Known from ``on_train_start`` on. A ``GradientAccumulationScheduler`` is taken into account.

        Raises:
            MisconfigurationException: The Trainer or the data do not tell how long the unit is.
        """
        if self.unit == "st":
            return self.value
        if self.unit == "ep":
            return unrounded(steps_in_epochs(trainer, self.value))
        if self.unit == "dur":
            total = total_steps(trainer, f"The duration {self}", "the duration in steps, as in 500st")
            return unrounded(self.value * total)
        return unrounded(self._steps_of_samples(trainer))

    def _steps_of_samples(self, trainer: Trainer) -> float:
        size = samples_per_batch(trainer)
        if size is None:
            raise MisconfigurationException(
                f"The duration {self} needs the number of samples in a batch, and the data loader does not tell it: "
                "write the duration in steps, as in 500st."
            )
        batches = self.value / size
        if trainer.num_training_batches == math.inf:
            return batches / trainer.accumulate_grad_batches
        return steps_in_epochs(trainer, batches / trainer.num_training_batches)


def parse_duration(text: object) -> Duration | None:
    """The duration that ``text`` describes; None if it describes none.

    Example:
        >>> parse_duration("1e6smp")
        Duration(value=1000000.0, unit='smp')
        >>> parse_duration("5 weeks")
    """
    duration = _parse(text)
    return None if duration is not None and duration.unit == "dur" and duration.value > 1 else duration


def _parse(text: object) -> Duration | None:
    """The duration, which may be more than the run."""
    found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        return None
    try:
        value = float(found[1])
    except ValueError:
        return None
    return Duration(value / 100 if found[2] == "%" else value, _UNITS[found[2]])


def duration_of(text: str) -> Duration:
    """The duration that a text describes which :func:`check_duration` let through."""
    duration = parse_duration(text)
    if duration is None:
        raise ValueError(text)
    return duration


def check_duration(argument: str, value: str, positive: bool = True) -> str:
    """Return ``value`` if it describes a duration.

    Args:
        argument: What the argument is called, for the message.
        value: The text.
        positive: Whether it has to be longer than nothing.

    Raises:
        InvalidValueError: It is anything else.

    Example:
        >>> check_duration("patience", "3ep")
        '3ep'
        >>> check_duration("patience", "3")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: patience is '3'; write a number and its unit: '5ep' (epochs), \
'500st' (optimizer steps), '0.1dur' or '10%' (of the run), or '1e6smp' (samples).
    """
    duration = _parse(value)
    if duration is not None and duration.unit == "dur" and duration.value > 1:
        raise InvalidValueError(f"{argument} is {value!r}; the whole run is '1dur' or '100%', and it must not be more.")
    if duration is None or (positive and duration.value == 0):
        above = " above 0" if duration is not None else ""
        raise InvalidValueError(f"{argument} is {value!r}; write a number{above} and its unit: {FORMS}.")
    return value


def unrounded(steps: float) -> float:
    """The whole number of steps that is meant where floating point has missed it by a little.

    Example:
        >>> 0.55 * 100, unrounded(0.55 * 100), unrounded(55.5)
        (55.00000000000001, 55.0, 55.5)
    """
    nearest = float(round(steps))
    return nearest if math.isclose(steps, nearest, rel_tol=1e-12) else steps


def samples_per_batch(trainer: Trainer) -> int | None:
    """The samples in a training batch of all ranks; of a batch with streams, the labelled ones. None if the data
    loader does not tell."""
    size = batch_size_of(trainer.train_dataloader)
    return None if size is None else size * data_ranks(trainer)[0]


def batch_size_of(loader: object) -> int | None:
    """The samples in a batch of a loader, or of a datamodule that has a ``batch_size``; None if it does not tell.

    Example:
        >>> from torch.utils.data import BatchSampler, DataLoader
        >>> batch_size_of(DataLoader(range(9), batch_sampler=BatchSampler(range(9), 3, drop_last=False)))
        3
    """
    for name in (None, "hparams", "batch_sampler", "sampler"):
        size = getattr(getattr(loader, name, None) if name else loader, "batch_size", None)
        if isinstance(size, int):
            return size
    return None
