"""Losses by name, for each kind of target. All are the mean over the batch, computed in float32 at least."""

from .classification import ClassificationLoss, classification_loss
from .multilabel import MultiLabelLoss, multilabel_loss
from .names import ClassificationLossName, MultiLabelLossName, RegressionLossName
from .regression import RegressionLoss, regression_loss

__all__ = [
    "ClassificationLoss",
    "ClassificationLossName",
    "MultiLabelLoss",
    "MultiLabelLossName",
    "RegressionLoss",
    "RegressionLossName",
    "classification_loss",
    "multilabel_loss",
    "regression_loss",
]
