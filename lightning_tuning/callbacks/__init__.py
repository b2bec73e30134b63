"""What reads or edits gradients, weights, learning rates or the decision to stop."""

from .exact_resume import ExactResume
from .gradient_norm import GradientNorm
from .monitor_check import MonitorCheck

__all__ = ["ExactResume", "GradientNorm", "MonitorCheck"]
