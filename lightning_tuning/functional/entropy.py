"""Entropy of the predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def entropy(logits: Tensor) -> Tensor:
    """H(p) = -sum_c p_c log p_c of a softmax distribution, averaged over everything but the classes.

    Computed in float32 at least, whatever the autocast dtype.

    Args:
        logits: Finite logits ``[N, C, ...]``.

    Returns:
        A scalar in ``[0, log C]``, in nats, differentiable.

    Example:
        >>> import torch
        >>> round(entropy(torch.zeros(2, 4)).item(), 4)  # ln 4
        1.3863
    """
    log_p = F.log_softmax(at_least_float32(logits), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()
