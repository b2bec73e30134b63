"""The techniques as mixins: ``class Net(SAMMixin, MixupMixin, MyLightningModule): ...``."""

from .base import TuningMixin
from .composition import STAGES, compose
from .consistency.ema_teacher import EMATeacherMixin
from .consistency.fixmatch import FixMatchMixin
from .plan import Cost, Plan, plan
from .regularization.confidence_penalty import ConfidencePenaltyMixin
from .regularization.dropblock import DropBlockMixin
from .regularization.dropout import DropoutMixin
from .regularization.flooding import FloodingMixin
from .regularization.l1 import L1Mixin
from .regularization.l2 import L2Mixin
from .regularization.l2sp import L2SPMixin
from .regularization.label_smoothing import LabelSmoothingMixin
from .regularization.mixup import MixupMixin
from .regularization.rdrop import RDropMixin
from .regularization.sam import SAMMixin
from .regularization.stochastic_depth import StochasticDepthMixin
from .regularization.weight_noise import WeightNoiseMixin

TECHNIQUES: tuple[type[TuningMixin], ...] = (
    SAMMixin,
    EMATeacherMixin,
    FixMatchMixin,
    MixupMixin,
    RDropMixin,
    LabelSmoothingMixin,
    ConfidencePenaltyMixin,
    FloodingMixin,
    WeightNoiseMixin,
    DropoutMixin,
    DropBlockMixin,
    StochasticDepthMixin,
    L1Mixin,
    L2Mixin,
    L2SPMixin,
)
"""Every technique, in stage order: tests, tables and ``lightning-tuning list`` go through it."""

__all__ = [
    "STAGES",
    "TECHNIQUES",
    "ConfidencePenaltyMixin",
    "Cost",
    "DropBlockMixin",
    "DropoutMixin",
    "EMATeacherMixin",
    "FixMatchMixin",
    "FloodingMixin",
    "L1Mixin",
    "L2Mixin",
    "L2SPMixin",
    "LabelSmoothingMixin",
    "MixupMixin",
    "Plan",
    "RDropMixin",
    "SAMMixin",
    "StochasticDepthMixin",
    "TuningMixin",
    "WeightNoiseMixin",
    "compose",
    "plan",
]
