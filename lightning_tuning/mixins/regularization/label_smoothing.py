"""Label smoothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_tuning.errors import check_range
from lightning_tuning.functional import class_probabilities, smooth_labels
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.inputs import check_class_logits


class LabelSmoothingMixin(TuningMixin):
    """Trains on softened targets ``(1 - eps) * y + eps / C`` (Szegedy et al., 2016), against over-confidence.

    Works on class ids and on probabilities, such as those of mixup. Validation sees the targets as they are.

    Args:
        label_smoothing_epsilon: Probability mass spread evenly over all classes, in ``[0, 1]``; 0.1 is usual. Off: 0.

    Raises:
        InvalidValueError: ``label_smoothing_epsilon`` is outside ``[0, 1]``, or the output is not one of two or more
            classes.

    Source: Szegedy et al., 2016, "Rethinking the Inception architecture for computer vision", section 7.
    """

    stem = "label_smoothing"
    stage = "loss"
    off = {"label_smoothing_epsilon": 0.0}
    needs = ("training_step", "compute_loss")
    changes = ("target",)
    tasks = ("multiclass",)
    sharded = True

    def __init__(self, *args: Any, label_smoothing_epsilon: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_range("label_smoothing_epsilon", label_smoothing_epsilon, 0.0, 1.0)
        self.label_smoothing_epsilon = label_smoothing_epsilon

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.training and self.label_smoothing_epsilon != 0:
            check_class_logits(logits, "LabelSmoothingMixin")
            probabilities = class_probabilities(target, logits.shape[1])
            target = smooth_labels(probabilities, self.label_smoothing_epsilon)
        return super().compute_loss(logits, target)
