"""Runs that are stopped and resumed beside one that is not."""

from __future__ import annotations

import copy
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing import ProcessExitedException

from lightning_tuning.callbacks.save_on_signal import EXIT_CODE
from lightning_tuning.errors import ResumeError, check_choice, check_count
from lightning_tuning.functional import get_rng_state, set_rng_state

from .compare import START, first_difference
from .report import Difference, MomentResult, ResumeReport
from .watch import EPOCH, Leg, LogRecord, Watch

MOMENTS = ("mid-epoch", "last batch", "validation end", "epoch end", "max_steps", "SIGTERM")
"""Where runs are stopped, all in the second of three epochs."""
_OWN = {
    "max_epochs": EPOCH + 2,
    "max_steps": -1,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "fast_dev_run": False,
    "overfit_batches": 0.0,
    "log_every_n_steps": 1,
    "enable_checkpointing": None,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def assert_resumes_exactly(
    module_factory: Callable[[], LightningModule],
    datamodule_factory: Callable[[], Any],
    trainer_kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    moments: Collection[str] = MOMENTS,
    batches: int | None = None,
) -> ResumeReport:
    """Train, stop at several moments, resume, and raise unless the resumed runs equal the uninterrupted one.

    Weights, buffers, the states of optimizer, schedulers, precision plugin and callbacks, the random generators and the
    batch are compared bit for bit before each step and at the end, and all logged values.

    Args:
        module_factory: Makes the module; called for each run, with the same seed.
        datamodule_factory: Makes its data: a LightningDataModule, a loader, or the loaders of training and validation.
        trainer_kwargs: Arguments of the Trainer, copied for each run, or a function that makes them. Callbacks that
            save checkpoints are left out, and lengths, loggers and folders are the check's own.
        moments: Where to stop, of :data:`MOMENTS`.
        batches: Training batches in an epoch, at least 2. None: 4, or enough for two and a half accumulation windows.

    Returns:
        The report.

    Raises:
        ResumeError: A resumed run differs. The text is the report: the first difference and its usual cause.
    """
    report = check_resume(module_factory, datamodule_factory, trainer_kwargs, moments, batches)
    if not report.ok:
        raise ResumeError(str(report))
    return report


def check_resume(
    module_factory: Callable[[], LightningModule],
    datamodule_factory: Callable[[], Any],
    trainer_kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    moments: Collection[str] = MOMENTS,
    batches: int | None = None,
) -> ResumeReport:
    """What :func:`assert_resumes_exactly` finds, without raising."""
    for moment in moments:
        check_choice("moments", moment, MOMENTS)
    check_count("batches", batches, 2, optional=True)
    with tempfile.TemporaryDirectory() as folder, _generators_kept(), _silence():
        make = trainer_kwargs if callable(trainer_kwargs) else lambda: copy.deepcopy(dict(trainer_kwargs or {}))
        check = _Check(Path(folder), module_factory, datamodule_factory, make, batches)
        check.run("whole", saves=True)
        return ResumeReport(tuple(map(check.moment, moments)), check.steps, check.ranks)


class _Check:
    def __init__(
        self,
        folder: Path,
        module: Callable[[], LightningModule],
        data: Callable[[], Any],
        kwargs: Callable[[], Mapping[str, Any]],
        batches: int | None,
    ) -> None:
        self.folder, self.module, self.data, self.kwargs, self.batches = folder, module, data, kwargs, batches

    @property
    def ranks(self) -> int:
        return len(list((self.folder / "whole").glob("rank*.pt")))

    @property
    def steps(self) -> int:
        return self._record("whole", 0)["states"][-1][2]

    def run(self, name: str, resume: Path | None = None, leg: Leg = "whole", saves: bool = False) -> None:
        """One run, noted in the folder of that name."""
        folder = self.folder / name
        folder.mkdir()
        _seed()
        module, data, log = self.module(), self.data(), LogRecord()
        kwargs = dict(self.kwargs())
        given = kwargs.get("callbacks") or []
        callbacks = [c for c in (given if isinstance(given, list) else [given]) if not isinstance(c, Checkpoint)]
        watch = Watch(folder, log, leg, saves, self.batches)
        kwargs["limit_val_batches"] = 0 if kwargs.get("limit_val_batches") == 0 else 2
        kwargs.update(_OWN, callbacks=[*callbacks, watch], logger=log, default_root_dir=str(folder))
        # The checkpoint is the check's own, whatever the user's module puts into it.
        Trainer(**kwargs).fit(module, **_as_loaders(data), ckpt_path=resume and str(resume), weights_only=False)

    def moment(self, moment: str) -> MomentResult:
        """Stop a run there, resume it and compare."""
        checkpoint = self.folder / "whole" / f"{moment}.ckpt"
        if moment in ("max_steps", "SIGTERM"):
            if not self._record("whole", 0)["facts"]["middle"]:
                return MomentResult(moment, unreached="an epoch has no middle where an optimizer step ends.")
            checkpoint = self.folder / moment / f"{moment}.ckpt"
            try:
                self.run(moment, leg=moment)  # type: ignore[arg-type]
            except SIGTERMException:
                pass
            except ProcessExitedException as error:  # of a process that was forked
                if error.exit_code != EXIT_CODE:
                    raise
            if moment == "SIGTERM":
                checkpoint = next((self.folder / moment / "checkpoints").glob("*.ckpt"), checkpoint)
            if difference := self._compare(moment, START):
                return MomentResult(moment, difference=difference)
        if not checkpoint.exists():
            return self._unsaved(moment)
        name = f"resumed from {moment}"
        self.run(name, resume=checkpoint)
        states = self._record(name, 0)["states"]
        return MomentResult(moment, states[0][2], self._compare(name, moment))

    def _unsaved(self, moment: str) -> MomentResult:
        if moment == "SIGTERM":
            return MomentResult(moment, problem="no checkpoint was written. Add SaveOnSignal() to the callbacks.")
        if moment == "validation end":
            return MomentResult(moment, unreached="there is no validation.")
        if moment == "last batch":
            return MomentResult(moment, unreached="the data have fewer batches than an epoch is to have here.")
        return MomentResult(moment, unreached="an epoch has no middle where an optimizer step ends.")

    def _compare(self, name: str, moment: str) -> Difference | None:
        pairs = ((self._record("whole", rank), self._record(name, rank), rank) for rank in range(self.ranks))
        return next((d for whole, run, rank in pairs if (d := first_difference(whole, run, rank, moment))), None)

    def _record(self, name: str, rank: int) -> dict[str, Any]:
        return torch.load(self.folder / name / f"rank{rank}.pt", weights_only=True)


def _as_loaders(data: Any) -> dict[str, Any]:
    if isinstance(data, LightningDataModule):
        return {"datamodule": data}
    train, val = data if isinstance(data, tuple) else (data, None)
    return {"train_dataloaders": train, "val_dataloaders": val}


def _seed() -> None:
    """As a process that is started again with the same seed."""
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def _silence() -> Iterator[None]:
    """Lightning's notes and warnings of each run, which say less than the report."""
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _generators_kept() -> Iterator[None]:
    kept = get_rng_state(torch.device("cpu"))
    try:
        with torch.random.fork_rng():  # those of all devices
            yield
    finally:
        set_rng_state(kept)
