"""What reads or edits gradients, weights, learning rates or the decision to stop."""

from .adaptive_gradient_clipping import AdaptiveGradientClipping
from .auto_clip import AutoClip
from .exact_resume import ExactResume
from .finite_guard import FiniteGuard
from .gradient_centralization import GradientCentralization
from .gradient_noise import GradientNoise
from .gradient_norm import GradientNorm
from .monitor_check import MonitorCheck
from .robust_accuracy import RobustAccuracy
from .spike_guard import SpikeGuard
from .term_gradients import TermGradients

__all__ = [
    "AdaptiveGradientClipping",
    "AutoClip",
    "ExactResume",
    "FiniteGuard",
    "GradientCentralization",
    "GradientNoise",
    "GradientNorm",
    "MonitorCheck",
    "RobustAccuracy",
    "SpikeGuard",
    "TermGradients",
]
