"""Classes with the names and arguments of Lightning's, made of the ones here."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint

import lightning_tuning.callbacks
from lightning_tuning.callbacks import EarlyStop
from lightning_tuning.runs.checkpoints import RunCheckpoint


class EarlyStopping(EarlyStop):
    """EarlyStop by Lightning's arguments. It needs no ``check_on_train_epoch_end``, for it sees where a metric is
    logged; it always tells why it stops, once; and it restores nothing."""

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Any = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__(
            monitor,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_finite=check_finite,
            restore_best=False,
            strict=strict,
        )


class ModelCheckpoint(RunCheckpoint):
    """RunCheckpoint by Lightning's arguments: what is left of it is how it resumes into another folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        LightningModelCheckpoint.__init__(self, *args, **kwargs)


def adapted() -> dict[str, type]:
    """The classes to put in the place of Lightning's, by name."""
    classes: dict[str, type] = {"EarlyStopping": EarlyStopping, "ModelCheckpoint": ModelCheckpoint}
    if hasattr(lightning_tuning.callbacks, "WeightEMA"):
        from .averaging import EMAWeightAveraging, WeightAveraging

        classes |= {"WeightAveraging": WeightAveraging, "EMAWeightAveraging": EMAWeightAveraging}
    return classes


def ours(kind: type) -> str:
    """The class of the package that an adapter is made of."""
    return next(base.__name__ for base in kind.__mro__ if base.__module__.startswith("lightning_tuning."))


def put_in_place() -> None:
    """Have ``from lightning.pytorch.callbacks import ...`` give the classes here."""
    for name, kind in adapted().items():
        setattr(callbacks, name, kind)
