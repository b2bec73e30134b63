"""The techniques as mixins: ``class Net(SAMMixin, MixupMixin, MyLightningModule): ...``."""

from .architecture.activation import ActivationMixin
from .architecture.init import InitMixin
from .architecture.norm import NormMixin
from .base import TuningMixin
from .composition import STAGES, compose
from .consistency.ema_teacher import EMATeacherMixin
from .consistency.fixmatch import FixMatchMixin
from .plan import Cost, Plan, plan
from .regularization.confidence_penalty import ConfidencePenaltyMixin
from .regularization.flooding import FloodingMixin
from .regularization.l1 import L1Mixin
from .regularization.l2 import L2Mixin
from .regularization.l2sp import L2SPMixin
from .regularization.label_smoothing import LabelSmoothingMixin
from .regularization.mixup import MixupMixin
from .regularization.rdrop import RDropMixin
from .regularization.sam import SAMMixin

TECHNIQUES: tuple[type[TuningMixin], ...] = (
    SAMMixin,
    EMATeacherMixin,
    FixMatchMixin,
    MixupMixin,
    RDropMixin,
    LabelSmoothingMixin,
    ConfidencePenaltyMixin,
    FloodingMixin,
    InitMixin,
    ActivationMixin,
    NormMixin,
    L1Mixin,
    L2Mixin,
    L2SPMixin,
)
"""Every technique, in stage order: tests, tables and ``lightning-tuning list`` go through it."""

__all__ = [
    "STAGES",
    "TECHNIQUES",
    "ActivationMixin",
    "ConfidencePenaltyMixin",
    "Cost",
    "EMATeacherMixin",
    "FixMatchMixin",
    "FloodingMixin",
    "InitMixin",
    "L1Mixin",
    "L2Mixin",
    "L2SPMixin",
    "LabelSmoothingMixin",
    "MixupMixin",
    "NormMixin",
    "Plan",
    "RDropMixin",
    "SAMMixin",
    "TuningMixin",
    "compose",
    "plan",
]
