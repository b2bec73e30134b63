"""What a LightningDataModule lacks: arguments that a checkpoint can hold, and a word on what setup has yet to make."""

from __future__ import annotations

import os
from inspect import currentframe
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod

from lightning_tuning.checkpoint_file import load_checked

_OF_SETUP = (
    *("samples", "labels", "num_classes", "class_names", "in_channels", "num_features", "feature_names", "vocab"),
    *("train_indices", "val_indices", "test_indices", "labeled_indices", "unlabeled_indices"),
    *("normalize", "pipelines", "device_augments"),
)


class PlainDataModule(LightningDataModule):
    """A LightningDataModule whose checkpoints are loaded as data alone."""

    def save_hyperparameters(self, *args: Any, frame: FrameType | None = None, **kwargs: Any) -> None:
        """Note the arguments as a checkpoint can hold them: paths as text, NumPy's numbers as Python's."""
        caller = currentframe() if frame is None else None
        super().save_hyperparameters(*args, frame=caller.f_back if caller else frame, **kwargs)
        self._set_hparams({name: _as_data(value) for name, value in self.hparams.items()})

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's; but the file's checksums are compared, and only data are unpickled unless a local file comes
        with ``weights_only=False``."""
        return load_checked(super().load_from_checkpoint, *args, **kwargs)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _OF_SETUP:
                raise AttributeError(
                    f"{type(self).__name__} has no {name} before setup(): call it first, as a Trainer does."
                )
            return object.__getattribute__(self, name)  # which says what is missing, within a property too


def _as_data(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
