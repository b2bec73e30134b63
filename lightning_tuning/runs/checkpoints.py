"""The checkpoints that a run keeps: the last epoch's and, if there is a metric to choose it by, the best one's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_tuning.checkpoint_file import damage
from lightning_tuning.errors import did_you_mean
from lightning_tuning.whole_file import whole_file

from .checkpoint_io import SafeCheckpointIO

_BEST = ("kth_best_model_path", "kth_value", "best_model_path", "best_model_score")


class RunCheckpoint(ModelCheckpoint):
    """Keeps ``<filename>.ckpt`` in the run's folder, the best one so far by ``monitor``, or the last one without it.

    The last one has a callback of its own because ``ModelCheckpoint(monitor=..., save_last=True)`` writes ``last.ckpt``
    only in epochs that improve the metric. After a resume into a new folder the best checkpoint and its score are
    carried over, if it is whole; ``ModelCheckpoint`` forgets them.

    Args:
        filename: The file's name without ``.ckpt``.
        monitor: The metric.
        mode: ``max`` or ``min``.
    """

    option: str | None = None
    """The option of the command line that ``monitor`` comes from, for messages."""

    def __init__(self, filename: str = "last", monitor: str | None = None, mode: str = "min") -> None:
        # The last one must not wait for a validation, which need not come every epoch.
        at_epoch_end = True if monitor is None else None
        super().__init__(
            filename=filename,
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
            save_on_train_epoch_end=at_epoch_end,
        )

        self._earlier: dict[str, Any] | None = None
        """The state in a checkpoint of another folder."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["dirpath"] == self.dirpath or self.dirpath is None:
            super().load_state_dict(state_dict)
        elif self.monitor is not None and state_dict["best_model_path"]:
            self._earlier = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._earlier is not None:
            self._carry_over(trainer, self._earlier)
            self._earlier = None

    def _carry_over(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Copy the best checkpoint of the run that is resumed; without it its score is not the best of this one."""
        old = Path(state["best_model_path"])
        new = str(Path(self.dirpath or "", old.name))
        problem = self._copy([old, Path(str(trainer.ckpt_path)).with_name(old.name)], Path(new))
        if problem := trainer.strategy.broadcast(problem):
            rank_zero_warn(f"The best checkpoint so far, {old}, does not count any more: {problem}.")
            return
        score = state["best_model_score"]
        kept = {"dirpath": self.dirpath, "best_model_path": new, "kth_best_model_path": new, "last_model_path": ""}
        super().load_state_dict({**state, **kept, "best_k_models": {new: score}, "kth_value": score})

    @staticmethod
    @rank_zero_only
    def _copy(places: list[Path], new: Path) -> str | None:
        """Copy the first of these files that exists. Why it was not copied, if so."""
        old = next((place for place in places if place.is_file()), places[0])
        if reason := damage(old):
            return reason
        try:
            with old.open("rb") as content, whole_file(new) as file:
                shutil.copyfileobj(content, file, 2**20)
        except OSError as error:
            return f"it could not be copied ({error.strerror or error})"
        return None

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """As ModelCheckpoint's; but a checkpoint that could not be written is not the best one."""
        before = {name: getattr(self, name) for name in _BEST}
        before["best_k_models"] = dict(self.best_k_models)
        super()._update_best_and_save(current, trainer, monitor_candidates)
        failed = isinstance(io := trainer.strategy.checkpoint_io, SafeCheckpointIO) and io.failed is not None
        if trainer.strategy.broadcast(failed):  # rank 0 alone writes
            for name, value in before.items():
                setattr(self, name, value)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        try:
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        except MisconfigurationException as error:
            if self.option is None or self.monitor in monitor_candidates:
                raise
            hint = did_you_mean(self.monitor, names := [*trainer.callback_metrics])
            raise MisconfigurationException(
                f"{self.option} is {self.monitor!r}, which was not logged{hint} There is: {', '.join(names)}."
            ) from error


def default_checkpoints(monitor: str | None, mode: str | None) -> list[ModelCheckpoint]:
    """The callbacks that write ``checkpoints/best.ckpt`` (if there is a ``monitor``) and ``checkpoints/last.ckpt``."""
    if not monitor:
        return [RunCheckpoint()]
    best = RunCheckpoint("best", monitor, mode or "min")
    best.option = "run.monitor"
    return [best, RunCheckpoint()]
