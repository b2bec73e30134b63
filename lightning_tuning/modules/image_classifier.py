"""Ready hosts: one flat argument a technique, every technique off by default."""

from __future__ import annotations

from .classifier import Classifier
from .host import techniques_for
from .lean import Lean


class ImageClassifier(Classifier, metaclass=Lean, techniques=techniques_for("multiclass")):
    """Classifies images, with the supervised techniques as arguments: ``ImageClassifier(mixup_alpha=0.2)``."""


class SemiSupervisedClassifier(Classifier, metaclass=Lean, techniques=techniques_for("multiclass", streams=True)):
    """Classifies images and learns from unlabelled ones too, with all techniques as arguments.

    Batches are ``{"labeled": (x, target), "unlabeled": {"weak": x, "strong": x}}``.
    """
