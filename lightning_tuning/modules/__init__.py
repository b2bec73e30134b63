"""Ready LightningModules."""

from .classifier import Classifier
from .image_classifier import ImageClassifier, SemiSupervisedClassifier
from .networks import build_network

__all__ = ["Classifier", "ImageClassifier", "SemiSupervisedClassifier", "build_network"]
