"""What the losses over classes share: one part a class, each times the weight of its class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError


class PartsLoss(nn.Module):
    """A loss that is a sum of parts, one for each class.

    Args:
        class_weights: What the part of each class is multiplied by; None: nothing.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # a setting, not a state

    def parts(self, logits: Tensor, target: Tensor) -> Tensor:
        """The part of each class ``[N, C, ...]``, of logits and a floating target ``[N, C, ...]``."""
        raise NotImplementedError

    def weighted_sum(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each position ``[N, ...]``: the weighted parts, added up."""
        parts = self.parts(logits, target)
        if self.class_weights is not None:
            parts = parts * self.class_weights.to(parts.dtype).view(-1, *[1] * (parts.ndim - 2))
        return parts.sum(dim=1)


def check_class_weights(class_weights: Sequence[float] | None, num_classes: int) -> None:
    """Check that there is one weight a class.

    Raises:
        InvalidValueError: The number of weights is another, one is negative or not finite, or all are 0.
    """
    if class_weights is None:
        return
    if len(class_weights) != num_classes:
        raise InvalidValueError(
            f"class_weights has length {len(class_weights)} and num_classes is {num_classes}; write one weight for "
            "each class."
        )
    if not all(math.isfinite(w) and w >= 0 for w in class_weights) or not any(class_weights):
        raise InvalidValueError(
            f"class_weights is {[*class_weights]}; weights must be finite, at least 0 and not all 0."
        )
