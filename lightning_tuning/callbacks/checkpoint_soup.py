"""CheckpointSoup: the mean of several checkpoints' weights."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_tuning.checkpoint_file import read_checkpoint
from lightning_tuning.errors import InvalidValueError, NoEffectError, check_choice, check_used
from lightning_tuning.functional import greedy_soup, uniform_soup
from lightning_tuning.whole_file import write_whole

from ._averaging import AveragingCallback
from ._candidates import (
    check_alike,
    load_weights,
    metric_of,
    refuse_restoring,
    save_checkpoint,
    take_on,
    validation_metrics,
)

_FILE = "soup"
_TRAINING_STATE = ("optimizer_states", "lr_schedulers", "callbacks", "loops", "MixedPrecision")


class CheckpointSoup(Callback):
    """At the end of the fit, puts the mean of several checkpoints' weights into the module (Wortsman et al., 2022).

    The checkpoints are those that the run's ``ModelCheckpoint`` callbacks have kept, or given files: runs that started
    from the same pretrained weights, with other seeds or settings. ``greedy`` begins with the best one on the
    validation data, tries the others from the best to the worst, and keeps each that does not make the mean worse
    there; ``uniform`` takes them all. Test data have no part in it. Batch norm's statistics are computed anew for each
    mean, from training batches.

    The soup is written to ``checkpoints/soup.ckpt`` in the run's folder, for ``load_from_checkpoint``, ``test`` and
    ``predict``; the command line tests it. Training cannot be resumed from it.

    Args:
        checkpoints: Files, or patterns such as ``runs/a/*/checkpoints/best.ckpt``. Null: what the run itself has kept.
        method: ``greedy`` or ``uniform``.
        monitor: The metric of validation that ``greedy`` compares by. Null: that of the first ``ModelCheckpoint`` that
            has one.
        mode: Whether the metric is to be as small (``min``) or as large (``max``) as can be. Null: as for that
            ``ModelCheckpoint``.
        recalibrate: Whether batch norm's statistics are computed anew for each mean. False averages them.

    Raises:
        InvalidValueError: An argument is not allowed, a file cannot be read, or its names or shapes are not the
            module's.
        MisconfigurationException: When training starts, if the run keeps no checkpoints and none are given, if nothing
            tells the metric, if a callback that averages weights stands behind this one, or if an ``EarlyStop``
            restores weights.
        NoEffectError: When training starts, if the run keeps a single checkpoint.

    Source: Wortsman et al., 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time", recipe 1.

    Example:
        >>> kept = ModelCheckpoint(monitor="val/accuracy", mode="max", save_top_k=5)
        >>> trainer = Trainer(callbacks=[kept, CheckpointSoup()], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        checkpoints: list[str] | None = None,
        method: Literal["greedy", "uniform"] = "greedy",
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        recalibrate: bool = True,
    ) -> None:
        super().__init__()
        check_choice("method", method, ("greedy", "uniform"))
        if mode is not None:
            check_choice("mode", mode, ("min", "max"))
        if isinstance(checkpoints, str) or checkpoints == []:
            raise InvalidValueError(
                f"checkpoints is {checkpoints!r}; it must be a list of files or patterns, or None for those of the run."
            )
        if monitor is not None and mode is None:
            raise InvalidValueError(f"monitor is {monitor!r}, but mode is None; write mode: min or mode: max.")
        for name, value in {"monitor": monitor, "mode": mode}.items():
            check_used(name, value, None, "method: greedy", method == "greedy")
        self.checkpoints = checkpoints
        self.method = method
        self.monitor = monitor
        self.mode = mode
        self.recalibrate = recalibrate
        self._began = 0.0
        self.chosen: list[str] = []
        """After the fit, the files that are in the soup."""
        self.made_checkpoint: Path | None = None
        """After the fit, the soup's own file."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.chosen, self.made_checkpoint, self._began = [], None, time.time()
        refuse_restoring(trainer, "CheckpointSoup")
        keepers = _keepers(trainer)
        if self.checkpoints is not None:
            _check(pl_module, _States(self._files(trainer)))
        elif not keepers:
            raise MisconfigurationException(
                "CheckpointSoup averages the checkpoints that the run keeps, and it keeps none. Add "
                "ModelCheckpoint(monitor=..., save_top_k=5), or give checkpoints."
            )
        elif len(keepers) == 1 and keepers[0].save_top_k in (0, 1):
            raise NoEffectError(
                f"CheckpointSoup would do nothing: the run keeps {keepers[0].save_top_k} checkpoint. Give "
                "ModelCheckpoint a larger save_top_k, such as 5."
            )
        if self.method == "greedy":
            self._criterion(trainer)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        later = [c for c in callbacks[callbacks.index(self) :] if isinstance(c, AveragingCallback)]
        if later:
            name = type(later[0]).__name__
            raise MisconfigurationException(
                f"CheckpointSoup stands before {name}, which would put its average in the soup's place. Put "
                f"CheckpointSoup behind {name} in the list of callbacks."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier("CheckpointSoup")  # the first process may still be writing the last of them
        files = self._files(trainer)
        if len(files) < 2:
            rank_zero_warn(f"CheckpointSoup did nothing: the run has kept {len(files)} checkpoint.")
            return
        states = _States(files)
        _check(pl_module, states)
        own = {name: value.clone() for name, value in pl_module.state_dict().items()}
        try:
            soup, chosen = self._soup(trainer, pl_module, states)
        except BaseException:
            pl_module.load_state_dict(own)
            raise
        take_on(trainer, pl_module, soup, self.recalibrate and len(chosen) > 1)
        self.chosen = [files[i] for i in chosen]
        self.made_checkpoint = save_checkpoint(trainer, _FILE, weights_only=True)
        rank_zero_info(
            f"CheckpointSoup: the mean of {', '.join(self.chosen)} is in the module and in {self.made_checkpoint}."
        )

    def _soup(
        self, trainer: Trainer, pl_module: LightningModule, states: Sequence[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], list[int]]:
        if self.method == "uniform":
            return uniform_soup(states), list(range(len(states)))
        monitor, sign = self._criterion(trainer)

        def score(state: Any, count: int) -> float:
            take_on(trainer, pl_module, state, self.recalibrate and count > 1)  # a single one has its own statistics
            return sign * metric_of(validation_metrics(trainer), monitor, "CheckpointSoup")

        return greedy_soup(states, score)

    def _criterion(self, trainer: Trainer) -> tuple[str, int]:
        """The metric, and 1 if it is to be large, -1 if small."""
        monitor, mode = self.monitor, self.mode
        if monitor is None:
            monitored = next((c for c in _keepers(trainer) if c.monitor is not None), None)
            if monitored is None or monitored.monitor is None:
                raise MisconfigurationException(
                    "CheckpointSoup(method='greedy') compares by a metric of validation. Give monitor and mode, "
                    "such as monitor='val/accuracy', mode='max', or give them to ModelCheckpoint."
                )
            monitor, mode = monitored.monitor, self.mode or monitored.mode  # type: ignore[assignment]
        return monitor, 1 if mode == "max" else -1

    def _files(self, trainer: Trainer) -> list[str]:
        if self.checkpoints is None:
            paths = dict.fromkeys(path for c in _keepers(trainer) for path in _kept(c, self._began))
            return [path for path in paths if Path(path).is_file()]
        found = [sorted(glob.glob(pattern)) for pattern in self.checkpoints]
        empty = [pattern for pattern, files in zip(self.checkpoints, found, strict=True) if not files]
        if empty:
            raise InvalidValueError(f"CheckpointSoup: there is no checkpoint {empty[0]}.")
        return list(dict.fromkeys(file for files in found for file in files))

    @staticmethod
    def write(checkpoints: Sequence[str | Path], path: str | Path) -> None:
        """Write the mean of checkpoint files as a checkpoint, without a Trainer.

        Batch norm's statistics are averaged; :func:`lightning_tuning.functional.recalibrate_batch_norm` computes better
        ones.

        Args:
            checkpoints: At least one file of Lightning's, all of one model. Hyper-parameters, counters and whatever is
                no floating number come from the first.
            path: Where to.

        Raises:
            InvalidValueError: There is no such file, or the files are not of one model.
        """
        if isinstance(checkpoints, (str, Path)) or not checkpoints:
            raise InvalidValueError(f"checkpoints is {checkpoints!r}; it must be a list of at least one file.")
        files = [str(file) for file in checkpoints]
        states = _States(files)
        check_alike((files[0], states[0]), states.named(), "CheckpointSoup")
        first = read_checkpoint(files[0])
        kept = {key: value for key, value in first.items() if key not in _TRAINING_STATE}
        write_whole({**kept, "state_dict": uniform_soup(states)}, Path(path))


class _States(Sequence):
    """The states in checkpoint files, of which one at a time is in memory."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return load_weights(self.files[index], "CheckpointSoup")

    def named(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        return zip(self.files, self, strict=True)


def _check(pl_module: LightningModule, states: _States) -> None:
    check_alike((type(pl_module).__name__, pl_module.state_dict()), states.named(), "CheckpointSoup")


def _keepers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]


def _kept(keeper: ModelCheckpoint, began: float) -> list[str]:
    if keeper.monitor is None and keeper.save_top_k == -1 and keeper.dirpath is not None:
        # It does not keep a list of these; older files are another run's.
        return sorted(str(path) for path in Path(keeper.dirpath).glob("*.ckpt") if path.stat().st_mtime >= began)
    return list(keeper.best_k_models) or [keeper.best_model_path]
