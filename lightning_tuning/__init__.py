"""Mixins, callbacks and data modules that make a LightningModule generalise better and train stably.

Everything public can be imported from here; it is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks import ExactResume, GradientNorm, MonitorCheck
    from .cli import TuningCLI
    from .data import DigitsDataModule
    from .mixins import (
        EMATeacherMixin,
        FixMatchMixin,
        L1Mixin,
        LabelSmoothingMixin,
        MixupMixin,
        RDropMixin,
        SAMMixin,
        TuningMixin,
        compose,
    )
    from .modules import ImageClassifier, SemiSupervisedClassifier
    from .presets import preset, preset_names

__version__ = "0.1.0"

_HOME = {
    "mixins": (
        "TuningMixin",
        "compose",
        "SAMMixin",
        "EMATeacherMixin",
        "FixMatchMixin",
        "MixupMixin",
        "RDropMixin",
        "LabelSmoothingMixin",
        "L1Mixin",
    ),
    "callbacks": ("ExactResume", "GradientNorm", "MonitorCheck"),
    "modules": ("ImageClassifier", "SemiSupervisedClassifier"),
    "data": ("DigitsDataModule",),
    "presets": ("preset", "preset_names"),
    "cli": ("TuningCLI",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*_MODULE_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lightning_tuning' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
