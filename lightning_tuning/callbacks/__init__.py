"""What reads or edits gradients, weights, learning rates or the decision to stop."""

from .activation_health import ActivationHealth
from .adaptive_gradient_clipping import AdaptiveGradientClipping
from .augmented_samples import AugmentedSamples
from .auto_clip import AutoClip
from .batch_norm_recalibration import BatchNormRecalibration
from .checkpoint_soup import CheckpointSoup
from .early_stop import EarlyStop
from .exact_resume import ExactResume
from .finite_guard import FiniteGuard
from .gradient_centralization import GradientCentralization
from .gradient_histogram import GradientHistogram
from .gradient_noise import GradientNoise
from .gradient_norm import GradientNorm
from .lr_range_test import LRRangeTest
from .micro_batch import MicroBatch
from .monitor_check import MonitorCheck
from .post_hoc_ema import PostHocEMA
from .prediction_samples import PredictionSamples
from .pseudo_label_panel import PseudoLabelPanel
from .robust_accuracy import RobustAccuracy
from .save_on_signal import SaveOnSignal
from .schedule import Schedule
from .snapshot_ensemble import SnapshotEnsemble
from .spike_guard import SpikeGuard
from .term_gradients import TermGradients
from .weight_ema import WeightEMA
from .weight_swa import WeightSWA

__all__ = [
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
]
