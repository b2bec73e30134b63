"""Flooding: the training loss is kept from falling below a level."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_tuning.errors import check_range
from lightning_tuning.functional import flood
from lightning_tuning.mixins.base import TuningMixin


class FloodingMixin(TuningMixin):
    """Makes the mean loss ``|loss - level| + level`` (Ishida et al., 2020), so a batch below the level is climbed.

    It floods what the host's ``compute_loss`` returns, on the target that mixup and label smoothing made. Terms that
    others add (R-Drop, confidence penalty, FixMatch, penalties on weights) stay outside: within, they would be reversed
    below the level.

    Args:
        flooding_level: The level, >= 0, in the loss's unit; 0.01 to 0.1 is usual for cross entropy. Off: 0.

    Raises:
        InvalidValueError: ``flooding_level`` is negative.

    Source: Ishida et al., 2020, "Do we need zero training loss after achieving zero training error?", section 3, with
    the mini-batch's mean as the loss, as there.
    """

    stem = "flooding"
    stage = "task"
    off = {"flooding_level": 0.0}
    needs = ("training_step", "compute_loss")
    changes = ("loss",)
    whole_batch = "compares the mean loss of the batch with its level"
    sharded = True

    def __init__(self, *args: Any, flooding_level: float = 0.05, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_range("flooding_level", flooding_level)
        self.flooding_level = flooding_level

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().compute_loss(logits, target)
        if not self.training or self.flooding_level == 0:
            return loss
        self.log_term("flooding", loss)
        self.log_term("flooding_share", loss < self.flooding_level)
        return flood(loss, self.flooding_level)
