"""Ready hosts: one flat argument a technique, every technique off by default."""

from __future__ import annotations

from lightning_tuning.mixins import TECHNIQUES

from .classifier import Classifier
from .lean import Lean

# What takes a batch's two streams apart has nothing to do where there is one.
_SUPERVISED = tuple(technique for technique in TECHNIQUES if technique.stage != "split")


class ImageClassifier(Classifier, metaclass=Lean, techniques=_SUPERVISED):
    """Classifies images, with the supervised techniques as arguments: ``ImageClassifier(mixup_alpha=0.2)``."""


class SemiSupervisedClassifier(Classifier, metaclass=Lean, techniques=TECHNIQUES):
    """Classifies images and learns from unlabelled ones too, with all techniques as arguments.

    Batches are ``{"labeled": (x, target), "unlabeled": {"weak": x, "strong": x}}``.
    """
