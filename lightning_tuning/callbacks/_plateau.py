"""How often a metric of the run has stopped to improve."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_tuning.errors import did_you_mean
from lightning_tuning.functional.schedule import Plateau
from lightning_tuning.timing.shapes import OnPlateau


class PlateauWatch:
    """Measures the metric of a plateau shape: after each validation that logs it, else at each end of an epoch.

    Its methods are called in the callback hooks of their names, and tell whether there was a measurement. The metric's
    mean over the ranks is taken.

    Args:
        shape: What is monitored, and when it has stopped to improve.
    """

    def __init__(self, shape: OnPlateau) -> None:
        self.shape = shape
        self.state = Plateau()
        self._in_validation = False
        self._before: Any = None

    def on_validation_start(self, trainer: Trainer) -> None:
        self._before = trainer._logger_connector._callback_metrics.get(self.shape.monitor)

    def on_validation_end(self, trainer: Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return False
        metric = trainer.callback_metrics.get(self.shape.monitor)
        if metric is None or metric is self._before:  # training has logged it
            return False
        self._in_validation = True
        return self._measure(trainer, metric)

    def on_train_epoch_end(self, trainer: Trainer) -> bool:
        if self._in_validation:
            return False
        metric, name = trainer.callback_metrics.get(self.shape.monitor), self.shape.monitor
        if metric is not None:
            return self._measure(trainer, metric)
        if not trainer.enable_validation or trainer.fit_loop.epoch_loop.val_loop._has_run:
            known = sorted(trainer.callback_metrics)
            raise MisconfigurationException(
                f"Schedule monitors {name!r}, which nobody logs{did_you_mean(name, known)} There is: "
                f"{', '.join(known) or 'nothing'}. Log it in validation, or in training_step with on_epoch=True: what "
                "the module logs in on_train_epoch_end comes later than this."
            )
        return False  # a validation is still to come

    def _measure(self, trainer: Trainer, metric: Tensor) -> bool:
        shape = self.shape
        value = float(trainer.strategy.reduce(metric.double(), reduce_op="mean"))
        self.state = self.state.after(value, shape.patience, shape.threshold, shape.cooldown, shape.mode)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"plateau": [*self.state], "in_validation": self._in_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state, self._in_validation = Plateau(*state_dict["plateau"]), state_dict["in_validation"]
