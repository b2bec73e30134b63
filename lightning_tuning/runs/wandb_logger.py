"""ResilientWandbLogger: Weights & Biases that never ends a training."""

from __future__ import annotations

import atexit
import os
import secrets
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor, nn

from lightning_tuning.errors import check_range

from .facts import run_facts
from .wandb_artifacts import reports, without_false_best
from .wandb_guard import NoRun, guard_run, guarded, has_key, service_ended
from .wandb_record import KeepRecord, RunRecord, record_of_checkpoint

_ACTIVE: weakref.WeakValueDictionary[str, ResilientWandbLogger] = weakref.WeakValueDictionary()
"""By id: whose run is open in this process."""
_GONE: list[str] = []
"""The runs that W&B's service took with it, until it is forgotten."""
_FLUSHED_EVERY = 0.1
"""Seconds after which W&B's service has a row on the disk; by itself it waits for 15, and a kill loses them."""


def _surviving(method: Callable[..., Any]) -> Any:
    """``method`` of a logger whose errors cost what it would have logged, not the training."""

    @wraps(method)
    def survive(self: ResilientWandbLogger, *args: Any, **kwargs: Any) -> Any:
        return None if self._ended else guarded(method, method.__name__, self._report)(self, *args, **kwargs)

    return survive


class ResilientWandbLogger(WandbLogger):
    """A ``WandbLogger`` that costs a training nothing but its charts when something is wrong with Weights & Biases.

    * Without an API key, without a network, and where ``wandb.init`` fails for another reason, the run is kept offline.
      Nobody is asked for a key.
    * If W&B's service process ends in the middle, the training goes on without W&B. A value that W&B refuses is left
      out. One warning says what is missing and how to upload what is there.
    * Each logger has a run of its own, also where another one is open in the process; to share that one, write
      ``experiment=wandb.run``.
    * A resumed training continues the W&B run of its checkpoint and does not send again what that run has.
    * Versions and the git commit are in the run's config.

    Args:
        timeout: Seconds that starting a run, and waiting at the end until all is uploaded, may take, > 0.
        ckpt_path: Checkpoint whose W&B run is continued; its project too, unless one is given. The command line fills
            it in from ``--ckpt_path``. None: a new run.
        log_reports: Whether the command line uploads the files of the run's folder (summary, settings, journal,
            pictures) as an artifact at the end.

    Raises:
        InvalidValueError: ``timeout`` is not above 0, or there is no file ``ckpt_path``.

    Example:
        >>> logger = ResilientWandbLogger(project="digits", offline=True)
        >>> logger.version == logger.record.id  # known before the run starts
        True
    """

    def __init__(
        self,
        *args: Any,
        timeout: float = 30.0,
        ckpt_path: str | None = None,
        log_reports: bool = False,
        **kwargs: Any,
    ) -> None:
        check_range("timeout", timeout, open_low=True)
        super().__init__(*args, **kwargs)
        if self._wandb_init.get("anonymous", "") is None:
            del self._wandb_init["anonymous"]  # wandb warns of this setting even when it is None
        self.timeout = timeout
        self.log_reports = log_reports
        self._attach_id: str | None = None
        """Of the run of the process that this logger was pickled in."""
        self._ended = self._finishing = self._failed = False
        self._warned: set[str] = set()
        given = self._id or os.environ.get("WANDB_RUN_ID")
        earlier = self._continued(ckpt_path, given)
        self.record = earlier or RunRecord(given or secrets.token_hex(4), self._project)
        self._before = replace(self.record)
        """What the W&B run has from before a resume."""
        self._wandb_init["id"] = self._id = self.record.id
        folder = Path(self._save_dir or ".", "wandb")
        if self._experiment is not None:
            self.record.id = self._id = self._experiment.id
            folder = Path(self._experiment.sync_dir).parent
            guard_run(self._experiment, self._report)
        file = str((folder / f"{self.record.id}.json").absolute())
        self.record.files = [file, *(other for other in self.record.files if other != file)]

    def _continued(self, ckpt_path: str | None, given: str | None) -> RunRecord | None:
        record = record_of_checkpoint(ckpt_path) if ckpt_path else None
        if record is None or given not in (None, record.id):
            return None
        for name in ("project", "entity"):
            if self._wandb_init.get(name) in (None, "lightning_logs"):
                self._wandb_init[name] = getattr(record, name)
        self._project = record.project = self._wandb_init["project"]
        rank_zero_info(
            f"Weights & Biases: the run {record.id} is continued. It has the values up to step {record.step} already, "
            "and they are not sent again. For a run of its own give the logger another id."
        )
        return record

    def __getstate__(self) -> dict[str, Any]:
        attach = getattr(self._experiment, "_attach_id", None)
        return {**self.__dict__, "_experiment": None, "_attach_id": attach if isinstance(attach, str) else None}

    @property
    def version(self) -> str:
        """The W&B run's id."""
        return self.record.id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``, started at first use; its methods warn where they would raise."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        _forget_gone_service()
        earlier = _ACTIVE.get(self.record.id)
        if earlier is not None and earlier is not self:
            earlier.finish()
        try:
            run = self._init_or_fall_back()
        except Exception as error:
            self._ended = True
            rank_zero_warn(
                f"Weights & Biases cannot start: {error!r}. The training goes on without it; nothing is lost of what "
                "other loggers keep."
            )
            return NoRun()
        guard_run(run, self._report)
        if not self._wandb_init.get("sync_tensorboard"):
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        guarded(run.config.update, "config", self._report)(run_facts(), allow_val_change=True)
        self.record.entity = self._wandb_init.get("entity")
        self.record.write()
        _ACTIVE[self.record.id] = self
        atexit.register(_finish, weakref.ref(self))
        return run

    def _init_or_fall_back(self) -> Any:
        """The run, offline where it cannot be online."""
        import wandb

        attach: Callable[[str], Any] | None = getattr(wandb, "_attach", None)
        if attach is not None and self._attach_id is not None:
            return attach(self._attach_id)
        mode = self._wandb_init.get("mode") or wandb.setup().settings.mode
        if self._offline or mode in ("offline", "dryrun", "disabled"):
            return self._init("offline" if self._offline else self._wandb_init.get("mode"))
        if has_key():
            try:
                return self._init(self._wandb_init.get("mode"))
            except Exception as error:
                reason = f"it could not be reached ({' '.join(str(error).split()) or type(error).__name__})"
                self._release_id()
        else:
            reason = "there is no API key"
        run = self._init("offline")
        login = "" if has_key() else "`wandb login` and "
        rank_zero_warn(
            f"Weights & Biases: {reason}, so this run is kept on this machine. Upload it later with {login}`wandb sync "
            f"{run.sync_dir}`."
        )
        return run

    def _release_id(self) -> None:
        """The service still holds the id of the run that could not be started: end it, or take another id."""
        import wandb

        if _other_runs():
            self.record.id = self._id = self._wandb_init["id"] = secrets.token_hex(4)
        else:
            wandb.teardown()

    def _init(self, mode: str | None) -> Any:
        import wandb

        if self._save_dir is not None:
            Path(self._save_dir).mkdir(parents=True, exist_ok=True)
        arguments = dict(self._wandb_init)
        wanted = {"init_timeout": self.timeout, "finish_timeout": self.timeout}
        wanted["x_transaction_log_flush_interval"] = _FLUSHED_EVERY
        known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
        if not isinstance(given := arguments.get("settings") or {}, wandb.Settings):
            arguments["settings"] = {**known, **given}
        if _other_runs():
            arguments.setdefault("reinit", "create_new")
        return wandb.init(**{**arguments, "mode": mode})

    def _report(self, name: str, error: Exception) -> None:
        """Say once what is lost."""
        if self._ended or (self._finishing and type(error).__name__ == "AlreadyJoinedError"):
            return  # the latter: `wandb.teardown()` has ended all runs in good order
        if service_ended(error):
            self._ended = True
            rank_zero_warn(
                f"Weights & Biases ended at step {self.record.step} ({error!r}): its service process is gone. The "
                "training goes on; what follows is missing there, and other loggers have it. Upload what it has with "
                f"`wandb sync {getattr(self._experiment, 'sync_dir', self._save_dir)}`."
            )
            if type(error).__name__ != "AlreadyJoinedError":  # the user's `wandb.teardown()`: W&B has forgotten it
                _GONE.append(self.record.id)
        elif name not in self._warned:
            self._warned.add(name)
            rank_zero_warn(
                f"Weights & Biases refused `{name}`: {error!r}. It is left out there, and so is what it refuses later. "
                "The training goes on."
            )

    def finish(self) -> None:
        """End the W&B run, as failed if the last training was; what is logged later starts it again."""
        if self._experiment is not None and not self._ended:
            self._finishing = True
            self._experiment.finish(exit_code=int(self._failed))
            self._finishing = False
            _ACTIVE.pop(self.record.id, None)
            self._experiment = self._experiment if self._ended else None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = self._before.new_values(metrics, step)
        if new:
            self._send(new, step)

    @_surviving
    def _send(self, metrics: Mapping[str, Any], step: int | None) -> None:
        super().log_metrics(metrics, step)
        if step is not None and not self._ended:
            self.record.add(metrics, step)

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Draws nothing: the Trainer calls it once a run, which is when the checkpoints get the run's record."""
        callbacks: list[Any] = model.trainer.callbacks  # type: ignore[union-attr,assignment]
        if not any(isinstance(callback, KeepRecord) for callback in callbacks):
            callbacks.append(KeepRecord())

    @_surviving
    def watch(
        self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        """As in ``WandbLogger``, but without the graph for a run beside another one, which W&B cannot draw."""
        import wandb

        run = self.experiment
        run.watch(model, log=log, log_freq=log_freq, log_graph=log_graph and wandb.run is run)

    @_surviving
    @rank_zero_only
    def log_folder(self, folder: str | Path) -> None:
        """Upload the files that lie directly in a folder of reports as an artifact ``reports-<id>``."""
        self.experiment.log_artifact(reports(self.record.id, folder))

    def _scan_and_log_checkpoints(self, checkpoint_callback: ModelCheckpoint) -> None:
        super()._scan_and_log_checkpoints(without_false_best(checkpoint_callback))

    @_surviving
    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._failed = status == "failed"
        super().finalize(status)

    log_hyperparams = _surviving(WandbLogger.log_hyperparams)
    log_table = _surviving(WandbLogger.log_table)
    log_text = _surviving(WandbLogger.log_text)
    log_image = _surviving(WandbLogger.log_image)
    log_audio = _surviving(WandbLogger.log_audio)
    log_video = _surviving(WandbLogger.log_video)
    use_artifact = _surviving(WandbLogger.use_artifact)
    after_save_checkpoint = _surviving(WandbLogger.after_save_checkpoint)


def _forget_gone_service() -> None:
    """Make a service that is gone one that W&B does not know, so that the next run starts one.

    Not as soon as it is gone: the hooks of ``run.watch`` need ``wandb.run``.
    """
    import wandb

    if _GONE:
        _GONE.clear()
        with suppress(Exception):
            if wandb.run is not None:
                wandb.run.finish()
        with suppress(Exception):
            wandb.teardown()


def _other_runs() -> bool:
    """Whether a run is open in this process."""
    import wandb

    return getattr(wandb.setup(), "most_recent_active_run", wandb.run) is not None


def _finish(logger: weakref.ref[ResilientWandbLogger]) -> None:
    """End the run of a process that ends, before W&B does, which would print a traceback if its service is gone."""
    if (alive := logger()) is not None:
        alive.finish()
    _forget_gone_service()
