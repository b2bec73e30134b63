"""Validations of the raw weights beside those of their average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_tuning.functional import get_rng_state, set_rng_state


class RawValidation:
    """Runs each validation of a fit twice: with the weights as they are, then as it would be run anyway.

    The first pass is the module's alone: callbacks and loggers do not see it, and random generators, metrics and
    progress are as before. What it logged is in :attr:`metrics`, for the second pass to log under other names.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._run = trainer.fit_loop.epoch_loop.val_loop.run
        self.metrics: dict[str, Tensor] = {}
        trainer.fit_loop.epoch_loop.val_loop.run = self  # type: ignore[method-assign]

    def __call__(self) -> list[Any]:
        self.metrics = {}
        if not self._trainer.sanity_checking:
            with unseen(self._trainer):
                for logged in self._run():
                    self.metrics.update(logged)
        return self._run()

    def remove(self) -> None:
        vars(self._trainer.fit_loop.epoch_loop.val_loop).pop("run", None)


@contextmanager
def unseen(trainer: Trainer) -> Iterator[None]:
    """Nobody but the module takes part in what is run within it."""
    connector: Any = trainer._logger_connector
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    metrics = connector._callback_metrics, connector._logged_metrics, connector._progress_bar_metrics
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    rng, progress = get_rng_state(trainer.strategy.root_device), val_loop.batch_progress.state_dict()
    connector._callback_metrics, connector._logged_metrics, connector._progress_bar_metrics = map(dict, metrics)
    trainer.callbacks, trainer.loggers = [], [DummyLogger()] * len(loggers)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        connector._callback_metrics, connector._logged_metrics, connector._progress_bar_metrics = metrics
        val_loop.batch_progress.load_state_dict(progress)
        set_rng_state(rng)
