"""What the ready hosts report on evaluation data, for each kind of target."""

from .classification import ClassificationMetrics, confusion_figure
from .multilabel import MultiLabelMetrics
from .regression import RegressionMetrics

__all__ = ["ClassificationMetrics", "MultiLabelMetrics", "RegressionMetrics", "confusion_figure"]
