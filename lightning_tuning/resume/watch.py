"""The callback and the logger that stop a run, save it and note what it did."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger

from lightning_tuning.callbacks import ExactResume

from .state import snapshot

EPOCH = 1
"""The epoch, counted from 0, in which runs are stopped: neither the first one nor the last one."""
_CLOCKS = re.compile(r"time|seconds|per_sec|memory|util", re.IGNORECASE)
Leg = Literal["whole", "max_steps", "SIGTERM"]


class LogRecord(Logger):
    """Keeps what is logged, but for times and memory."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "record"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items() if not _CLOCKS.search(name)}
        self.events.append((-1 if step is None else step, values))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They do not change."""


class Watch(Checkpoint):
    """Notes the state before each step from the epoch on in which runs are stopped, and saves at the moments.

    It is a ``Checkpoint`` so that all other callbacks have been called before it.

    Args:
        folder: For ``<moment>.ckpt`` and for what is noted, ``rank<n>.pt``.
        log: What is logged.
        leg: ``whole`` trains to the end, ``max_steps`` to a limit in the middle of an epoch, ``SIGTERM`` until the
            process is sent that signal, at the first batch of an accumulation window.
        saves: Whether to save at the moments.
        batches: Training batches in an epoch. None: 4, or enough for two and a half accumulation windows.
    """

    def __init__(
        self, folder: Path, log: LogRecord, leg: Leg = "whole", saves: bool = False, batches: int | None = None
    ) -> None:
        self.folder, self.logged, self.leg, self.saves, self.batches = folder, log, leg, saves, batches
        self.states: list[tuple[int, int, int, dict[str, Any]]] = []
        self.facts: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        window = trainer.accumulate_grad_batches  # which another callback may just have set
        trainer.limit_train_batches = batches = self.batches or max(4, 2 * window + window // 2)
        if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch is not None:
            trainer.val_check_interval = min(trainer.val_check_interval, batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        combined = trainer.fit_loop._combined_loader
        loaders = combined.flattened if combined is not None else []
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.facts = {
            "exact_resume": any(isinstance(callback, ExactResume) for callback in callbacks),
            "stateless": sorted({type(loader).__name__ for loader in loaders if not hasattr(loader, "state_dict")}),
            "batches": float(trainer.num_training_batches),
            "middle": self._middle(trainer),
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch >= EPOCH:
            state = snapshot(trainer, pl_module, batch)
            self.states.append((trainer.current_epoch, batch_idx, trainer.global_step, state))
        first = self._middle(trainer) - trainer.accumulate_grad_batches
        here = trainer.current_epoch == EPOCH and batch_idx == max(first, 0)
        if self.leg == "SIGTERM" and here and trainer.is_global_zero:
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch != EPOCH:
            return
        if self.leg == "SIGTERM":
            self._write(trainer)  # in time: forked processes end without another hook
        if batch_idx + 1 == self._middle(trainer):
            self._save(trainer, "mid-epoch")
            if self.leg == "max_steps":
                # Now, so that no schedule takes the limit for the run's length.
                trainer.fit_loop.epoch_loop.max_steps = trainer.global_step
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer, "last batch")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == EPOCH and not trainer.sanity_checking:
            self._save(trainer, "validation end")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == EPOCH:
            self._save(trainer, "epoch end")
            if self.leg == "max_steps":
                trainer.save_checkpoint(self.folder / "max_steps.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.leg == "whole":
            last = snapshot(trainer, pl_module)
            self.states.append((trainer.current_epoch, -1, trainer.global_step, last))
        self._write(trainer)

    def _middle(self, trainer: Trainer) -> int:
        """The batches of the first half of an epoch in whole accumulation windows; 0 if there is no such place."""
        batches, window = trainer.num_training_batches, trainer.accumulate_grad_batches
        if math.isinf(batches):
            return 0
        middle = window * math.ceil(batches / (2 * window))
        return middle if middle < batches else 0

    def _save(self, trainer: Trainer, moment: str) -> None:
        if self.saves:
            trainer.save_checkpoint(self.folder / f"{moment}.ckpt")

    def _write(self, trainer: Trainer) -> None:
        record = {"states": self.states, "events": self.logged.events, "facts": self.facts}
        torch.save(record, self.folder / f"rank{trainer.global_rank}.pt")
