"""Ready LightningModules."""

from .classifier import Classifier
from .image_classifier import ImageClassifier, SemiSupervisedClassifier
from .multilabel_classifier import MultiLabelClassifier
from .networks import build_network
from .regressor import Regressor

__all__ = [
    "Classifier",
    "ImageClassifier",
    "MultiLabelClassifier",
    "Regressor",
    "SemiSupervisedClassifier",
    "build_network",
]
