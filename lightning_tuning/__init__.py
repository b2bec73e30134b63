"""Mixins, callbacks and data modules that make a LightningModule generalise better and train stably.

Everything public can be imported from here; it is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which read __all__ of the parts
    from .callbacks import *  # noqa: F403
    from .cli.tuning_cli import TuningCLI as TuningCLI
    from .data import *  # noqa: F403
    from .export import load_exported as load_exported
    from .export import read_metadata as read_metadata
    from .mixins import *  # noqa: F403
    from .modules import *  # noqa: F403
    from .presets import preset as preset
    from .presets import preset_names as preset_names
    from .resume import assert_resumes_exactly as assert_resumes_exactly
    from .resume import check_resume as check_resume
    from .runs import ResilientWandbLogger as ResilientWandbLogger
    from .timing import *  # noqa: F403

__version__ = "0.1.0"

_HOME = {
    "mixins": (
        "TuningMixin",
        "compose",
        "plan",
        "SAMMixin",
        "AWPMixin",
        "EMATeacherMixin",
        "FrozenTeacherMixin",
        "PiModelMixin",
        "TemporalEnsemblingMixin",
        "MeanTeacherMixin",
        "VATMixin",
        "ICTMixin",
        "FixMatchMixin",
        "PseudoLabelMixin",
        "UDAMixin",
        "FlexMatchMixin",
        "FreeMatchMixin",
        "SoftMatchMixin",
        "AdaMatchMixin",
        "DashMixin",
        "MixMatchMixin",
        "ReMixMatchMixin",
        "MixupMixin",
        "CutMixMixin",
        "ManifoldMixupMixin",
        "CutoutMixin",
        "RDropMixin",
        "AdversarialMixin",
        "FreeAdversarialMixin",
        "TRADESMixin",
        "MARTMixin",
        "ALPMixin",
        "LabelSmoothingMixin",
        "ConfidencePenaltyMixin",
        "DistillationMixin",
        "DKDMixin",
        "FeatureDistillationMixin",
        "SelfDistillationMixin",
        "JacobianMixin",
        "GradientPenaltyMixin",
        "FloodingMixin",
        "MaxNormMixin",
        "SpectralNormMixin",
        "WeightNoiseMixin",
        "InitMixin",
        "ActivationMixin",
        "NormMixin",
        "DropoutMixin",
        "DropBlockMixin",
        "StochasticDepthMixin",
        "L1Mixin",
        "L2Mixin",
        "L2SPMixin",
        "OrthogonalMixin",
    ),
    "callbacks": (
        "ActivationHealth",
        "AdaptiveGradientClipping",
        "AugmentedSamples",
        "AutoClip",
        "BatchNormRecalibration",
        "CheckpointSoup",
        "EarlyStop",
        "ExactResume",
        "FiniteGuard",
        "GradientCentralization",
        "GradientHistogram",
        "GradientNoise",
        "GradientNorm",
        "LRRangeTest",
        "MicroBatch",
        "MonitorCheck",
        "PostHocEMA",
        "PredictionSamples",
        "PseudoLabelPanel",
        "RobustAccuracy",
        "SaveOnSignal",
        "Schedule",
        "SnapshotEnsemble",
        "SpikeGuard",
        "TermGradients",
        "WeightEMA",
        "WeightSWA",
    ),
    "timing": ("ScheduleLR",),
    "modules": ("ImageClassifier", "SemiSupervisedClassifier", "MultiLabelClassifier", "Regressor"),
    "data": (
        "ArrayDataModule",
        "DigitsDataModule",
        "HuggingFaceDataModule",
        "ImageFolderDataModule",
        "ImageTableDataModule",
        "TableDataModule",
        "TextDataModule",
        "WebDatasetDataModule",
    ),
    "presets": ("preset", "preset_names"),
    "resume": ("assert_resumes_exactly", "check_resume"),
    "runs": ("ResilientWandbLogger",),
    "cli.tuning_cli": ("TuningCLI",),
    "export": ("load_exported", "read_metadata"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lightning_tuning' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
