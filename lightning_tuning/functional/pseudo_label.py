"""Losses on pseudo labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def fixmatch_loss(strong_logits: Tensor, pseudo_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """FixMatch's unlabelled loss (Sohn et al., 2020, equation 4).

    ``1/B * sum_b 1[max q_b >= threshold] * CE(argmax q_b, p_b)`` with q from ``pseudo_logits`` and p from
    ``strong_logits``. The sum is divided by all B positions, not by those above the threshold.

    Args:
        strong_logits: The student's logits of the strongly augmented inputs, ``[B, C, ...]``.
        pseudo_logits: Logits of the weakly augmented inputs that the pseudo labels are read from, ``[B, C, ...]``;
            no gradient flows into them.
        threshold: Least probability of the likeliest class for a pseudo label to count, in ``[0, 1]``.

    Returns:
        The scalar loss, and the share of positions above the threshold (scalar in ``[0, 1]``).

    Example:
        >>> import torch
        >>> q = torch.tensor([[0.96, 0.04], [0.6, 0.4]]).log()
        >>> p = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()
        >>> loss, share = fixmatch_loss(p, q, 0.95)
        >>> round(loss.item(), 4), share.item()  # only the first counts: ln 2 / 2
        (0.3466, 0.5)
    """
    confidence, label = F.softmax(at_least_float32(pseudo_logits.detach()), dim=1).max(dim=1)
    loss = F.cross_entropy(at_least_float32(strong_logits), label, reduction="none")
    mask = (confidence >= threshold).to(loss.dtype)
    return (loss * mask).mean(), mask.mean()
