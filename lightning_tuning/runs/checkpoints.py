"""The checkpoints that a run keeps: the last epoch's and, if there is a metric to choose it by, the best one's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from lightning_tuning.errors import InvalidValueError

from .config import RunConfig


class RunCheckpoint(ModelCheckpoint):
    """Keeps ``<filename>.ckpt`` in the run's folder, the best one so far by ``monitor``, or the last one without it.

    The last one has a callback of its own because ``ModelCheckpoint(monitor=..., save_last=True)`` writes ``last.ckpt``
    only in epochs that improve the metric. After a resume into a new folder the best checkpoint and its score are
    carried over; ``ModelCheckpoint`` forgets them.

    Args:
        filename: The file's name without ``.ckpt``.
        monitor: The metric.
        mode: ``max`` or ``min``.
    """

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["dirpath"] == self.dirpath or self.dirpath is None:
            return super().load_state_dict(state_dict)
        old = Path(state_dict["best_model_path"])
        if self.monitor is None or not old.is_file():
            return None
        new = str(Path(self.dirpath, old.name))
        self._copy(old, new)
        score = state_dict["best_model_score"]
        kept = {"dirpath": self.dirpath, "best_model_path": new, "kth_best_model_path": new, "last_model_path": ""}
        return super().load_state_dict({**state_dict, **kept, "best_k_models": {new: score}, "kth_value": score})

    @staticmethod
    @rank_zero_only
    def _copy(old: Path, new: str) -> None:
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(old, new)


def default_checkpoints(monitor: str | None, mode: str | None) -> list[ModelCheckpoint]:
    """The callbacks that write ``checkpoints/best.ckpt`` (if there is a ``monitor``) and ``checkpoints/last.ckpt``."""
    best = [RunCheckpoint("best", monitor, mode or "min")] if monitor else []
    return [*best, RunCheckpoint()]


def find_checkpoint(given: str | Path | None, run: RunConfig) -> Path | None:
    """The file that ``--ckpt_path`` names; None if Lightning has to find it.

    Args:
        given: A path, or ``last`` or ``best`` for the newest such checkpoint of this experiment's runs.
        run: The run's settings.

    Raises:
        InvalidValueError: There is no such checkpoint.
    """
    if given is None or given == "hpc" or "://" in str(given) or str(given).startswith("registry"):
        return None
    path = wanted = Path(given)
    if given in ("last", "best"):
        experiment, pattern = Path(run.dir, run.name or ""), f"*/checkpoints/{given}.ckpt"
        wanted = experiment / pattern
        path = max(experiment.glob(pattern), key=lambda file: file.stat().st_mtime, default=wanted)
    if not path.exists():
        raise InvalidValueError(f"ckpt_path is {str(given)!r}, but there is no {wanted}.")
    return path


def model_of_checkpoint(path: Path) -> dict[str, Any] | None:
    """The class and arguments of the model that a checkpoint was made from, if it was made by a command line."""
    hparams = torch.load(path, weights_only=True, map_location="cpu", mmap=True).get("hyper_parameters", {})
    if "_class_path" not in hparams:
        return None
    arguments = {key: value for key, value in hparams.items() if key not in ("_class_path", "_instantiator")}
    return {"class_path": hparams["_class_path"], "init_args": arguments}
