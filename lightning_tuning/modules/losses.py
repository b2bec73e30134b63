"""Losses by name. Each takes logits and either ids or probabilities and returns the mean over the batch."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tuning.errors import check_choice
from lightning_tuning.functional.precision import at_least_float32

LossName = Literal["cross_entropy"]


class CrossEntropy(nn.Module):
    """Mean cross-entropy, computed in float32 at least.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> CrossEntropy()(logits, torch.tensor([0]))
        tensor(0.1269)
        >>> CrossEntropy()(logits, torch.tensor([[1.0, 0.0]]))
        tensor(0.1269)
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits ``[N, C, ...]`` for ids ``[N, ...]`` or probabilities ``[N, C, ...]``."""
        logits = at_least_float32(logits)
        target = target.to(logits.dtype) if target.is_floating_point() else target.long()
        return F.cross_entropy(logits, target)


def build_loss(loss: str | nn.Module) -> nn.Module:
    """Return the loss of that name, or the module itself.

    Raises:
        InvalidValueError: If it is neither a known name nor a module.
    """
    if isinstance(loss, nn.Module):
        return loss
    check_choice("loss", loss, get_args(LossName), "an nn.Module called with logits [N, C] and ids or probabilities")
    return {"cross_entropy": CrossEntropy}[loss]()
