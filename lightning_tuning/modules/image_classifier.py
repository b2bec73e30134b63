"""Ready hosts: one flat argument a technique, every technique off by default."""

from __future__ import annotations

from lightning_tuning.mixins import (
    ConfidencePenaltyMixin,
    EMATeacherMixin,
    FixMatchMixin,
    FloodingMixin,
    L1Mixin,
    L2Mixin,
    L2SPMixin,
    LabelSmoothingMixin,
    MixupMixin,
    RDropMixin,
    SAMMixin,
)

from .classifier import Classifier
from .lean import Lean

_SUPERVISED = (
    SAMMixin,
    EMATeacherMixin,
    MixupMixin,
    RDropMixin,
    LabelSmoothingMixin,
    ConfidencePenaltyMixin,
    FloodingMixin,
    L1Mixin,
    L2Mixin,
    L2SPMixin,
)


class ImageClassifier(Classifier, metaclass=Lean, techniques=_SUPERVISED):
    """Classifies images, with the supervised techniques as arguments: ``ImageClassifier(mixup_alpha=0.2)``."""


class SemiSupervisedClassifier(Classifier, metaclass=Lean, techniques=(FixMatchMixin, *_SUPERVISED)):
    """Classifies images and learns from unlabelled ones too, with all techniques as arguments.

    Batches are ``{"labeled": (x, target), "unlabeled": {"weak": x, "strong": x}}``.
    """
