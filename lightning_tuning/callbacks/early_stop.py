"""EarlyStop: ends a run that does not improve any more, and gives the best weights back."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_tuning.errors import InvalidValueError, check_choice
from lightning_tuning.functional.stopping import Position, Stop, StopRule, StopState, Track

from ._fresh_metrics import FreshMetrics
from ._gradients import holds_whole_gradients
from ._measured_weights import MeasuredWeights, snapshot
from ._stop_settings import SETTINGS, check_settings, make_rule, sentence
from .monitor_check import MonitorCheck, explain_missing

_REASONS = {
    "not_finite": EarlyStoppingReason.NON_FINITE_METRIC,
    "divergence": EarlyStoppingReason.DIVERGENCE_THRESHOLD,
    "target": EarlyStoppingReason.STOPPING_THRESHOLD,
    "gap": EarlyStoppingReason.PATIENCE_EXHAUSTED,
    "patience": EarlyStoppingReason.PATIENCE_EXHAUSTED,
}


# Lightning's own class as the base: of the callbacks' on_train_epoch_end Lightning calls those of its kind behind the
# module's, and only there is known what the module logs at an epoch's end. It is also what
# `trainer.early_stopping_callback` finds.
class EarlyStop(EarlyStopping):
    """Stops training when the monitored metrics do not improve any more, and gives the best weights back.

    A check takes place as soon as every monitored metric has been logged anew: after a validation, or at the end of a
    training epoch for what training logs. The sanity validation does not count. With several processes the mean over
    those that logged a metric is taken, so all decide the same.

    Each check decides anew. It asks the Trainer to stop only where ``min_epochs`` and ``min_steps`` are met; until then
    an improvement withdraws the decision. The reason is told in one sentence, and is in ``stopping_reason_message``.

    Args:
        monitor: Name of the metric, or a list of names.
        mode: ``min`` if a smaller value is better, ``max`` if a larger one is; or a list, one for each metric.
        patience: How long a metric may go without improving: a number of checks (3), or a duration like ``3ep``
            (epochs), ``500st`` (optimizer steps), ``0.1dur`` (of the run) or ``1e6smp`` (samples).
        min_delta: By more than how much a value must be better to count as an improvement, at least 0; or a list.
        relative: Whether ``min_delta`` and ``max_gap`` are shares of the value that they are compared with.
        combine: With several metrics, whether training stops when ``all`` of them or ``any`` of them has run out of
            patience, or has reached its ``stopping_threshold``.
        smoothing: ``ema 0.9`` judges an exponential moving average of the checks with that decay, ``median 5`` the
            median of the last 5. Off: null.
        start_from: From where on values are judged: a number of first checks that are not, or a duration as in
            ``patience``. Off: 0.
        stopping_threshold: Stop once the value is this or better; or a list with null for none. Off: null.
        divergence_threshold: Stop once the value is worse than this; or a list with null for none. Off: null.
        check_finite: Whether a value that is NaN or infinite stops, also before ``start_from``. Otherwise it is a check
            without improvement.
        train_monitor: Name of the metric's counterpart in training, for ``max_gap``. Off: null.
        max_gap: Stop when the first metric has been worse than ``train_monitor`` by more than this, at least 0, for as
            long as ``patience``. Off: null.
        restore_best: Whether the model has, when ``fit`` ends, the weights of the first metric's best value, as they
            were measured (averaged ones if those were). They are kept in the main memory and in checkpoints.
        settings_from: Whose settings count after a resume: those that are ``configured`` now, or those of the
            ``checkpoint``. What was counted so far is kept in any case.
        strict: Whether a metric that is not logged at all is an error.

    Raises:
        InvalidValueError: If an argument is not allowed.
        MisconfigurationException: At the end of the first epoch, if a metric was not logged; when training starts, if
            the weights are split over the processes and ``restore_best`` is on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> stop = EarlyStop("val/loss", patience="5ep", smoothing="median 3")
        >>> trainer = Trainer(callbacks=[stop], logger=False, accelerator="cpu")
    """

    monitor: str | list[str]  # type: ignore[assignment]
    mode: Literal["min", "max"] | list[Literal["min", "max"]]  # type: ignore[assignment]
    patience: int | str  # type: ignore[assignment]
    min_delta: float | list[float]  # type: ignore[assignment]
    stopping_threshold: float | list[float | None] | None  # type: ignore[assignment]
    divergence_threshold: float | list[float | None] | None  # type: ignore[assignment]

    def __init__(
        self,
        monitor: str | list[str],
        mode: Literal["min", "max"] | list[Literal["min", "max"]] = "min",
        patience: int | str = 3,
        min_delta: float | list[float] = 0.0,
        relative: bool = False,
        combine: Literal["all", "any"] = "all",
        smoothing: str | None = None,
        start_from: int | str = 0,
        stopping_threshold: float | list[float | None] | None = None,
        divergence_threshold: float | list[float | None] | None = None,
        check_finite: bool = True,
        train_monitor: str | None = None,
        max_gap: float | None = None,
        restore_best: bool = True,
        settings_from: Literal["configured", "checkpoint"] = "configured",
        strict: bool = True,
    ) -> None:
        names = [monitor] if isinstance(monitor, str) else monitor
        if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
            raise InvalidValueError(f"monitor is {monitor!r}; it must be a metric's name or a list of names.")
        if len(set(names)) < len(names):
            raise InvalidValueError(f"monitor is {monitor!r}; each metric must be named once.")
        check_choice("settings_from", settings_from, ("configured", "checkpoint"))
        super().__init__(monitor=names[0])
        self.monitor, self.mode = monitor, mode
        self.patience, self.min_delta, self.relative = patience, min_delta, relative
        self.combine, self.smoothing, self.start_from = combine, smoothing, start_from
        self.stopping_threshold, self.divergence_threshold = stopping_threshold, divergence_threshold
        self.check_finite, self.train_monitor, self.max_gap = check_finite, train_monitor, max_gap
        self.restore_best, self.settings_from, self.strict = restore_best, settings_from, strict
        check_settings(self._settings(), names, train_monitor)
        self.restored = False
        self._state = StopState()
        self._rule: StopRule | None = None
        self._stop: Stop | None = None
        self._values: dict[str, float] = {}
        self._validated: set[str] = set()
        self._in_validation, self._in_epoch = FreshMetrics(), FreshMetrics()
        self._weights = MeasuredWeights()

    @property
    def monitors(self) -> list[str]:
        """The monitored metrics."""
        return [self.monitor] if isinstance(self.monitor, str) else self.monitor

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def _needed(self) -> list[str]:
        """The metrics that a check needs."""
        return [*self.monitors, *([self.train_monitor] if self.train_monitor else [])]

    # When to look.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.restore_best and not holds_whole_gradients(trainer.strategy):
            raise MisconfigurationException(
                f"EarlyStop cannot keep the best weights under {type(trainer.strategy).__name__}, where no process "
                "holds them as a whole. Write restore_best: false and load the best checkpoint instead."
            )

        if trainer.global_step == 0:  # another run; a later fit of the same one goes on
            self._state, self._values, self._weights = StopState(), {}, MeasuredWeights()
        self._in_validation, self._in_epoch, self._validated = FreshMetrics(), FreshMetrics(), set()
        self._rule, self._stop, self.restored = None, None, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopped_epoch, self.stopping_reason_message = 0, None
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self._stop = self._rule_in(trainer).verdict(self._state)  # the run that is resumed may have come to its end
        self._ask(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_epoch.begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._in_epoch.before is None:  # resumed within an epoch
            self._in_epoch.begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_active(trainer) and not trainer.sanity_checking:
            self._in_validation.begin(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Here averaged weights are in their place that are swapped out before the value is known, and every rank has
        # rank 0's buffers, which DDP hands out with the first batch.
        is_first = batch_idx == dataloader_idx == 0 and not trainer.sanity_checking and self._is_active(trainer)
        if self.restore_best and is_first and self._rule_in(trainer).has_begun(self._next_position(trainer)):
            self._weights.candidate = snapshot(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_active(trainer):
            return
        if trainer.sanity_checking:
            self._report_missing(trainer)
            return
        values = self._in_validation.take(trainer, self._needed)
        self._validated |= values.keys()
        self._add(trainer, pl_module, values)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_active(trainer):
            return
        names = [name for name in self._needed if name not in self._validated]
        values = self._in_epoch.take(trainer, names) if names else {}
        self._add(trainer, pl_module, values)
        if self.strict and self._state.now.checks == 0:
            self._refuse_missing(trainer)
        self._ask(trainer)  # min_epochs counts this epoch only now

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Behind on_train_end, in which averaging callbacks put their own weights into the model.
        if self.restore_best and self._weights.best is not None and self._is_active(trainer):
            pl_module.load_state_dict(self._weights.best)
            self.restored = True
            best = self._state.tracks[0]
            if best.best_at is not None:
                rank_zero_info(
                    f"EarlyStop: the model has the weights of step {best.best_at.steps}, where {self.monitors[0]} was "
                    f"at its best, {best.best:.4g}."
                )

    # What to decide.

    def _add(self, trainer: Trainer, pl_module: LightningModule, values: dict[str, float]) -> None:
        """Take new values, and check if those of all metrics are there."""
        self._values |= values
        if not all(name in self._values for name in self._needed):
            return
        rule, now, values = self._rule_in(trainer), self._next_position(trainer), self._values
        self._state = rule.advance(self._state, [values[name] for name in self._needed], now)
        if self.restore_best and self._state.is_best:
            self._weights.best = self._weights.candidate or snapshot(pl_module)
        self._weights.candidate, self._values = None, {}
        self._stop = rule.verdict(self._state)
        first = self._state.tracks[0]
        self.wait_count = now.checks - first.since.checks if first.since else 0
        if first.best is not None:
            self.best_score = torch.tensor(first.best)
        trainer._logger_connector.log_metrics({"early_stop/patience_used": torch.tensor(rule.used(self._state))})
        self._ask(trainer)

    def _ask(self, trainer: Trainer) -> None:
        """Ask the Trainer to stop if that is the latest decision and the Trainer may."""
        if self._stop is None or self.stopping_reason_message or not trainer.fit_loop._can_stop_early:
            return
        trainer.should_stop = True
        self.stopped_epoch = trainer.current_epoch
        self.stopping_reason = _REASONS[self._stop.reason]
        self.stopping_reason_message = sentence(self._stop, self._state, self._needed, self._settings())
        rank_zero_info(f"EarlyStop: {self.stopping_reason_message}")

    def _rule_in(self, trainer: Trainer) -> StopRule:
        """The rule, whose durations are known once training has begun."""
        if self._rule is None:
            self._rule = make_rule(self._settings(), self.monitors, trainer)
        return self._rule

    def _next_position(self, trainer: Trainer) -> Position:
        batches = trainer.fit_loop.epoch_loop.batch_progress
        share = 1.0 if batches.is_last_batch else batches.current.ready / trainer.num_training_batches
        return Position(self._state.now.checks + 1, trainer.global_step, trainer.current_epoch + share)

    @staticmethod
    def _is_active(trainer: Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run  # type: ignore[attr-defined]

    # What is missing.

    def _report_missing(self, trainer: Trainer) -> None:
        """Warn, after the sanity validation, of what may be misspelt: training may still log it."""
        if not self.strict or any(isinstance(c, MonitorCheck) for c in trainer.callbacks):  # type: ignore[attr-defined]
            return
        logged = sorted(trainer.callback_metrics)
        for name in self._needed:
            if name not in logged and not name.startswith("train"):
                rank_zero_warn(explain_missing("EarlyStop", name, logged, "All is well if training logs it."))

    def _refuse_missing(self, trainer: Trainer) -> None:
        missing = [name for name in self._needed if name not in self._values]
        if missing and (self._in_validation.before is not None or not trainer.enable_validation):
            logged, otherwise = sorted(trainer.callback_metrics), "Write strict: false if that is meant."
            text = [explain_missing("EarlyStop", name, logged, otherwise, "the run") for name in missing]
            raise MisconfigurationException("\n".join(text))

    # What a checkpoint keeps.

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._state.plain(),
            "values": dict(self._values),
            "settings": self._settings(),
            "stopped": [self.stopped_epoch, self.stopping_reason.value, self.stopping_reason_message],
            "weights": {"best": self._weights.best, "candidate": self._weights.candidate if self._values else None},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        settings, weights = state_dict["settings"], state_dict["weights"]
        if self.settings_from == "checkpoint":
            for name in SETTINGS:
                setattr(self, name, settings[name])
        state = StopState.of_plain({name: state_dict[name] for name in StopState._fields})
        tracks = [*state.tracks, Track()][: len(self._needed)] if state.tracks else []
        if self.smoothing != settings["smoothing"]:
            tracks = [track._replace(memory=()) for track in tracks]
        self._weights = MeasuredWeights(**weights) if self.restore_best else MeasuredWeights()
        if self.restore_best and self._weights.best is None and tracks and tracks[0].best is not None:
            rank_zero_warn(
                "EarlyStop: the checkpoint has no best weights, for restore_best was off. The best ones from here on "
                "will be restored."
            )
            tracks[0] = tracks[0]._replace(best=None, best_at=None)
        self._state = state._replace(tracks=tuple(tracks))
        self._values = {name: value for name, value in state_dict["values"].items() if name in self._needed}
        self.stopped_epoch, reason, self.stopping_reason_message = state_dict["stopped"]
        self.stopping_reason = EarlyStoppingReason(reason)
