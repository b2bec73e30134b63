"""What reads or edits gradients, weights, learning rates or the decision to stop."""

from .adaptive_gradient_clipping import AdaptiveGradientClipping
from .auto_clip import AutoClip
from .exact_resume import ExactResume
from .gradient_centralization import GradientCentralization
from .gradient_histogram import GradientHistogram
from .gradient_noise import GradientNoise
from .gradient_norm import GradientNorm
from .monitor_check import MonitorCheck
from .robust_accuracy import RobustAccuracy
from .term_gradients import TermGradients

__all__ = [
    "AdaptiveGradientClipping",
    "AutoClip",
    "ExactResume",
    "GradientCentralization",
    "GradientHistogram",
    "GradientNoise",
    "GradientNorm",
    "MonitorCheck",
    "RobustAccuracy",
    "TermGradients",
]
