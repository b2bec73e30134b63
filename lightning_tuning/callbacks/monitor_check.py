"""MonitorCheck: finds a misspelt monitor before the first training step instead of after the first epoch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning.errors import InvalidValueError

# ModelCheckpoint adds these to the metrics it may monitor.
_COUNTERS = ("epoch", "step")


class MonitorCheck(Callback):
    """Checks, at the end of the sanity validation, that each monitored metric is one that validation logs.

    It looks at the ``monitor`` of every callback and of every ``ReduceLROnPlateau``. EarlyStopping and schedulers with
    ``strict=False`` are left alone, for they allow a metric to be missing. Metrics that are logged during training
    cannot be known yet, nor those that the module logs only outside of ``trainer.sanity_checking``: name them in
    ``ignore``.

    There is no sanity validation, hence no check, with ``num_sanity_val_steps=0``, without a validation loader, and in
    a run that resumes from a checkpoint.

    Args:
        ignore: Beginnings of the metric names that are not checked.

    Raises:
        InvalidValueError: If ``ignore`` is not a list of non-empty strings.
        MisconfigurationException: Before the first training step, if validation logs no metric of a monitored name.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[MonitorCheck(ignore=["train", "lr"])], logger=False, accelerator="cpu")
    """

    def __init__(self, ignore: Sequence[str] = ("train",)) -> None:
        super().__init__()
        # Every name begins with "", and a bare string would count letter by letter.
        if isinstance(ignore, str) or not all(isinstance(start, str) and start for start in ignore):
            raise InvalidValueError(f"ignore is {ignore!r}; it must be a list of name beginnings, e.g. ['train'].")
        self.ignore = tuple(ignore)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            return
        # Rank zero decides for all: a metric may be logged there alone.
        message = trainer.strategy.broadcast(self._find(trainer))
        if message:
            raise MisconfigurationException(message)

    def _find(self, trainer: Trainer) -> str:
        """The message about the monitors that validation does not serve, or ``""``."""
        logged = sorted(trainer.callback_metrics)
        lines = []
        for owner, monitor in _monitors(trainer):
            if monitor in logged or monitor.startswith(self.ignore):
                continue
            otherwise = f"If it is logged elsewhere, write MonitorCheck(ignore={[*self.ignore, monitor]!r})."
            lines.append(explain_missing(owner, monitor, logged, otherwise))
        return "\n".join(lines)


def explain_missing(owner: str, monitor: str, logged: Sequence[str], otherwise: str, who: str = "validation") -> str:
    """The message about a monitored metric that was not logged.

    Args:
        owner: The class that monitors, or the option that says what is monitored.
        monitor: The metric.
        logged: The metrics that there are.
        otherwise: What to do if none of them has a similar name.
        who: What should have logged it.
    """
    there_is = f"It logs: {', '.join(logged)}." if logged else "It logs nothing."
    close = difflib.get_close_matches(monitor, logged, n=1)
    advice = f"Did you mean {close[0]!r}?" if close else otherwise
    verb = "is" if "." in owner else "monitors"
    return f"{owner} {verb} {monitor!r}, which {who} never logs. {there_is} {advice}"


def _monitors(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Who monitors which metric and cannot do without it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitored = getattr(callback, "monitor", None)
        for monitor in monitored if isinstance(monitored, (list, tuple)) else [monitored]:
            is_counter = isinstance(callback, ModelCheckpoint) and monitor in _COUNTERS
            if isinstance(monitor, str) and getattr(callback, "strict", True) and not is_counter:
                yield getattr(callback, "option", None) or type(callback).__name__, monitor
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor is not None and config.strict:
            yield type(config.scheduler).__name__, config.monitor
