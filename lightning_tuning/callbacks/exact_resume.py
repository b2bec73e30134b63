"""ExactResume: randomness as a function of counters, so that a resumed run equals the uninterrupted one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_tuning.checkpoint_preflight import check_loadable
from lightning_tuning.data_ranks import data_ranks
from lightning_tuning.errors import CheckpointError, InvalidValueError

from ._epoch_means import finished_metrics, reset_metrics, restore_sums, sums_of_ranks

_MASK = (1 << 64) - 1
_STATE_KEY = "exact_resume"
_HOOKS, _LOADER, _VALIDATION = 0, 1, 2


def hash_counters(*counters: int) -> int:
    """Hash counters to 64 bits: a chain of SplitMix64 output functions (Steele, Lea and Flood, 2014).

    Args:
        *counters: Integers from 0 to 2**64 - 1; their order matters.

    Example:
        >>> hex(hash_counters(0))
        '0xe220a8397b1dcdaf'
        >>> hash_counters(1, 2) == hash_counters(2, 1)
        False
    """
    state = 0
    for counter in counters:
        state = ((state ^ counter) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


class ExactResume(Callback):
    """Reseeds at every batch, so that a resumed run equals the uninterrupted run bit for bit.

    Before each training batch torch's generators (the CPU's and the module's device's), ``random`` and ``numpy.random``
    are seeded with a hash of the seed, the epoch, the batch index and the rank: dropout, mixup and noise then do not
    depend on what was drawn earlier. At each epoch's start they are seeded with a hash of the seed and the epoch alone,
    the same on all ranks, so a shuffling loader gives the epoch's order again.

    A checkpoint may be written at any of the three moments at an epoch's end: on its last batch, after validation, or
    in ``on_train_epoch_end``. What stock resuming leaves out there is made good: the validation that had not run yet,
    the metrics that EarlyStopping reads, the step of ``ReduceLROnPlateau``, the epoch count under ``max_steps``, and
    the rest of an epoch that ``max_steps`` ended early.

    Within an epoch the resume is exact if the loader continues where it stopped (it has ``state_dict`` and
    ``load_state_dict``) and the checkpoint does not lie within a gradient accumulation window. The sums behind the
    means of ``self.log(..., on_epoch=True)`` go on then too.

    Args:
        seed: Key of all streams, 0 to 2**64 - 1. None takes the checkpoint's when resuming, else ``PL_GLOBAL_SEED``
            (set by ``seed_everything``), else 0.

    Raises:
        InvalidValueError: If ``seed`` is not an integer in that range.
        CheckpointError: At the fit's start, if some processes have a checkpoint to go on from and others have none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ExactResume(seed=7)], logger=False, accelerator="cpu")
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _MASK):
            raise InvalidValueError(f"seed is {seed!r}; it must be an integer from 0 to 2**64 - 1, or None.")
        self.seed = seed
        self._key = 0
        self._seed_device: Callable[[int], Any] | None = None
        self._metrics: dict[str, Tensor] = {}
        self._sums: list[dict[str, Any]] = []
        self._finished: list[str] = []
        self._reopened = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._key = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        self._metrics, self._sums, self._finished, self._reopened = {}, [], [], False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_ranks_agree(trainer)
        check_loadable(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        within_epoch = _is_within_epoch(trainer.fit_loop)
        sums = sums_of_ranks(trainer, pl_module) if within_epoch else []
        finished = finished_metrics(trainer, within_epoch)
        epoch_loop = trainer.fit_loop.epoch_loop
        is_cut = trainer.should_stop or 0 <= epoch_loop.max_steps <= epoch_loop.global_step
        state = {"seed": self._key, "metrics": metrics, "sums": sums, "finished": finished, "is_cut": is_cut}
        checkpoint[_STATE_KEY] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(_STATE_KEY)
        if state is None:
            rank_zero_warn("The checkpoint was written without ExactResume: the resumed run will differ from it.")
            return
        if self.seed is None:
            self._key = state["seed"]
        elif self.seed != state["seed"]:
            rank_zero_warn(
                f"ExactResume(seed={self.seed}) resumes a run of seed {state['seed']}: it will differ from the"
                f" uninterrupted run. Write seed={state['seed']} or leave the seed out."
            )
        self._metrics, self._sums = state["metrics"], state.get("sums", [])
        self._finished = state.get("finished", [])
        self._reopened = state.get("is_cut", True) and _reopen_epoch(checkpoint["loops"]["fit_loop"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = trainer.strategy.root_device
        self._seed_device = None if device.type == "cpu" else torch.get_device_module(device).manual_seed
        if trainer.fit_loop.is_resuming:
            metrics = {name: value.to(device) for name, value in self._metrics.items()}
            trainer._logger_connector._callback_metrics.update(metrics)
            reset_metrics(pl_module, self._finished)
            _note_saved(trainer)
            _mend_epoch_end(trainer.fit_loop, self._reopened)
        self._seed_before_loader(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reseed(trainer.current_epoch, _HOOKS)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._reseed(trainer.current_epoch, batch_idx, data_ranks(trainer)[1])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._reseed(trainer.current_epoch, trainer.fit_loop.batch_idx, data_ranks(trainer)[1], _VALIDATION)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.fit_loop.epoch_loop.__dict__.pop("on_run_start", None)

    def _seed_before_loader(self, trainer: Trainer) -> None:
        """Seed right before the loader's iterator is made, and have one made where Lightning keeps an earlier one.

        The first epoch's iterator is older than any hook of that epoch, so it holds other draws than the iterator that
        the same epoch gets in a run that was not interrupted.
        """
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        on_run_start = type(epoch_loop).on_run_start

        def seeded_on_run_start(data_fetcher: Any) -> None:
            self._reseed(trainer.current_epoch, _LOADER)
            keeps_iterator = trainer.current_epoch == 0 or fit_loop.is_resuming or epoch_loop.restarting
            loaders = fit_loop._combined_loader.flattened if fit_loop._combined_loader is not None else []
            # A loader that saves its position has just been put there; a second `iter` could rewind it.
            if keeps_iterator and not any(hasattr(loader, "load_state_dict") for loader in loaders):
                iter(data_fetcher)
            on_run_start(epoch_loop, data_fetcher)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if fit_loop.is_resuming and isinstance(callback, GradientAccumulationScheduler):
                    # Lightning does this where an epoch begins, not where it goes on.
                    trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(trainer.current_epoch)
            if fit_loop.is_resuming and self._sums:
                restore_sums(trainer, trainer.lightning_module, self._sums)
            if epoch_loop._is_training_done and not epoch_loop._should_check_val_fx(data_fetcher):
                epoch_loop._restarting = False  # or it would wait for a validation and train one more batch

        epoch_loop.on_run_start = seeded_on_run_start  # type: ignore[method-assign]

    def _reseed(self, *counters: int) -> None:
        bits = hash_counters(self._key, *counters)
        # torch.manual_seed visits every backend, which takes 80 us. Torch and numpy run the same Mersenne twister on 32
        # bits of the seed, so they get different halves.
        torch.default_generator.manual_seed(bits)
        if self._seed_device is not None:
            self._seed_device(bits)
        np.random.seed(bits >> 32)  # noqa: NPY002
        random.seed(bits)


def _check_ranks_agree(trainer: Trainer) -> None:
    """Raise if only some ranks resume: the others would begin, and all wait for one another until a timeout."""
    if trainer.world_size == 1:
        return
    resumes = trainer.ckpt_path is not None
    decide = trainer.strategy.reduce_boolean_decision
    if decide(resumes, all=False) and not decide(resumes, all=True):
        found = f"goes on from {trainer.ckpt_path}, and another one found" if resumes else "found"
        raise CheckpointError(
            f"Process {trainer.global_rank} of {trainer.world_size} {found} no checkpoint to go on from. All nodes "
            "have to see one folder of runs (run.dir): put it on a file system that they share, or give --ckpt_path a "
            "file that each of them has."
        )


def _note_saved(trainer: Trainer) -> None:
    """Let callbacks that save every so many steps know that this step's checkpoint is there: they would save again on
    the next batch, which may lie within an accumulation window."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps and callback.monitor is None:
            callback._last_global_step_saved = trainer.global_step


def _mend_epoch_end(fit_loop: _FitLoop, reopened: bool) -> None:
    """Bring the loops of a run resumed at an epoch's end to where the uninterrupted run was."""
    epoch_loop = fit_loop.epoch_loop
    progress: Any = fit_loop.epoch_progress
    if fit_loop.restarted_mid_epoch:
        is_last = epoch_loop.batch_progress.is_last_batch
        fit_loop._restarting = False  # only then `on_advance_end` steps the plateau schedulers at this epoch's end
        validates = epoch_loop._should_check_val_fx(fit_loop._data_fetcher)  # type: ignore[arg-type]
        if epoch_loop.restarted_on_train_batch_end and (is_last or validates):
            _finish_batch(fit_loop, is_last, validates)
        elif reopened and validates:
            epoch_loop._batches_that_stepped -= 1  # Lightning counts the batch again when it passes over the validation
        return
    if fit_loop.resumed_on_epoch_end or fit_loop.restarted_on_epoch_end:
        # Saved in `on_train_epoch_end`; the plateau schedulers step after it, in the epoch's own count.
        progress.current.completed = progress.current.processed - 1
        epoch_loop._update_learning_rates("epoch", update_plateau_schedulers=True)
        progress.current.completed += 1
    if fit_loop.restarting and progress.total.processed == progress.total.ready:
        # max_steps makes Lightning redo the end of a finished epoch.
        progress.total.completed = progress.total.processed
        progress.current.completed = progress.current.processed
        fit_loop._restart_stage = "none"
        epoch_loop.restarting = fit_loop._restarting = False


def _finish_batch(fit_loop: _FitLoop, is_last: bool, validates: bool) -> None:
    """Do what follows a batch in whose ``on_train_batch_end`` the checkpoint was written."""
    epoch_loop, val_loop = fit_loop.epoch_loop, fit_loop.epoch_loop.val_loop
    progress: Any  # Lightning annotates a base class without `processed`
    for progress in (fit_loop.epoch_progress.current, fit_loop.epoch_progress.total):
        progress.processed -= is_last
        progress.completed -= is_last
    epoch_loop.batch_progress.increment_completed()
    epoch_loop._restart_stage = "restarted_on_last"
    if validates:
        val_loop.restarting = False
        val_loop.batch_progress.reset_on_run()
        val_loop._restart_stage = "restarted_mid_evaluation"
    else:
        epoch_loop._batches_that_stepped += 1


def _is_within_epoch(fit_loop: _FitLoop) -> bool:
    """Whether the epoch has begun, and its end not been logged."""
    progress: Any = fit_loop.epoch_progress.current
    return progress.processed < progress.started


def _reopen_epoch(loop: dict[str, Any]) -> bool:
    """Go on within an epoch that ``max_steps`` or an early stop ended before its last batch; Lightning begins the next.

    Returns:
        Whether there was such an end.
    """
    epoch, batch = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    is_over = epoch["current"]["processed"] == epoch["current"]["started"] and batch["current"]["ready"] > 0
    if batch["is_last_batch"] or not is_over:
        return False
    for count in (epoch["current"], epoch["total"]):
        count["processed"] = count["completed"] = count["started"] - 1
    return True
