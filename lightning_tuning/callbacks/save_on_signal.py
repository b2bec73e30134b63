"""SaveOnSignal: SIGTERM ends a run with a checkpoint that it goes on from, bit for bit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import distributed

from lightning_tuning.checkpoint_file import local_path
from lightning_tuning.errors import InvalidValueError

EXIT_CODE = 128 + signal.SIGTERM
_STOP, _REQUEUE = 2, 1


class SaveOnSignal(Callback):
    """On SIGTERM writes a checkpoint, when the accumulation window under way is complete, and ends with code 143.

    Stock Lightning ends with code 0 and writes nothing. The signal handler only takes note. Behind each optimizer step
    the ranks ask one another whether anyone was signalled (in place of Lightning's own question before each batch), so
    it suffices to signal one of them. A single process stops within a validation too, and the whole validation is done
    by the resumed run; several ranks finish it first.

    Under SLURM with Lightning's automatic requeueing the same happens on the requeue signal: the checkpoint is written
    behind a complete optimizer step, and then Lightning's own handler is called, which asks SLURM to requeue the job.

    The file is ``<filename>.ckpt`` in the folder of the first ``ModelCheckpoint``, or in ``checkpoints`` below
    ``default_root_dir`` if there is none.

    Args:
        filename: The file's name without ``.ckpt``. The default is the name that the command line's ``last`` finds.

    Raises:
        InvalidValueError: If ``filename`` is not the name of one file.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SaveOnSignal()], logger=False, accelerator="cpu")
    """

    def __init__(self, filename: str = "last") -> None:
        super().__init__()
        if not filename or Path(filename).name != filename:
            raise InvalidValueError(f"filename is {filename!r}; it must be the name of one file, without a folder.")
        self.filename = filename
        self.saved: Path | str | None = None
        """The checkpoint written on a signal, or None."""
        self._asked = 0
        self._has_saved = False
        self._users: dict[int, Callable[..., Any]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._asked, self.saved, self._has_saved = 0, None, False
        # Behind all others, whose states the checkpoint holds. A `Checkpoint` would come last too, but in place of the
        # ModelCheckpoint that the Trainer makes unless it is given one.
        trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]  # type: ignore[attr-defined]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)
        # Its answer is that of rank 0 alone, and comes within accumulation windows.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._obey(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        within_window = trainer.sanity_checking or trainer.fit_loop._should_accumulate()
        if self._asked == _STOP and trainer.world_size == 1 and not within_window:
            raise SIGTERMException(EXIT_CODE)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Within a window there is no validation: Lightning checks behind whole batches, of which some may be left open.
        if not trainer.sanity_checking and not trainer.fit_loop._should_accumulate():
            self._obey(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and not self._has_saved and trainer.validating:
            # The other callbacks have put the module back by now.
            _rewind_to_batch_end(trainer)
            self._save(trainer)
        self._leave(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(trainer)

    def _listen(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handlers, which it takes away itself when the fit is over."""
        if self._users or threading.current_thread() is not threading.main_thread():
            return
        connector = trainer._signal_connector
        if connector.received_sigterm:  # before this; Lightning would end within the first window and save nothing
            self._asked, connector.received_sigterm = _STOP, False
        original = connector._original_handlers.get(signal.SIGTERM)
        self._users[signal.SIGTERM] = original if callable(original) else _nothing
        signal.signal(signal.SIGTERM, self._note_stop)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            requeue = signal.getsignal(environment.requeue_signal)
            if callable(requeue):
                self._users[environment.requeue_signal] = requeue
                signal.signal(environment.requeue_signal, self._note_requeue)

    def _leave(self, trainer: Trainer) -> None:
        trainer.fit_loop.epoch_loop.__dict__.pop("_broadcast_sigterm_tensor", None)
        self._users = {}

    def _note_stop(self, signum: int, frame: Any) -> None:
        self._asked = _STOP
        self._users.get(signum, _nothing)(signum, frame)

    def _note_requeue(self, signum: int, frame: Any) -> None:
        self._asked = max(self._asked, _REQUEUE)

    def _obey(self, trainer: Trainer) -> None:
        """Save if any rank was signalled; every rank asks at the same places."""
        asked = self._asked
        if trainer.world_size > 1:
            answer = torch.tensor(asked, device=trainer.strategy.root_device)
            distributed.all_reduce(answer, op=distributed.ReduceOp.MAX)
            asked = int(answer)
        if not asked:
            return
        self._asked = 0
        self._save(trainer)
        if asked == _REQUEUE:
            for signum, handler in self._users.items():
                if signum != signal.SIGTERM:
                    handler(signum, None)
            return
        # Lightning kills its own processes when one that it started ends with a code, which may come before rank 0's.
        environment = trainer._accelerator_connector.cluster_environment
        started_by_lightning = isinstance(environment, LightningEnvironment) and not trainer.is_global_zero
        raise SIGTERMException(0 if started_by_lightning else EXIT_CODE)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folders = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        folder = str(folders[0]) if folders else os.path.join(trainer.default_root_dir, "checkpoints")
        path = os.path.join(folder, f"{self.filename}.ckpt")
        trainer.save_checkpoint(path, weights_only=False)
        self._has_saved = True
        if getattr(trainer.strategy.checkpoint_io, "failed", None) == path:  # SafeCheckpointIO has said why
            rank_zero_info(f"A signal came at step {trainer.global_step}, and no checkpoint was written.")
            return
        self.saved = path if local_path(path) is None else Path(path)
        rank_zero_info(f"A signal came: saved {path} at step {trainer.global_step}.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_users": {}}


def _nothing(*_: Any) -> None:
    """In place of a handler that is none."""


def _rewind_to_batch_end(trainer: Trainer) -> None:
    """Let the loops stand where they were before the validation, in ``on_train_batch_end``."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    for count in (progress.current, progress.total):
        count.completed -= 1
    trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset_on_run()
