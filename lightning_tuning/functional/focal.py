"""Focal losses: cross entropies in which what is predicted well already counts less."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def softmax_focal(logits: Tensor, probabilities: Tensor, gamma: float) -> Tensor:
    """``-y_c (1 - p_c)^gamma log p_c`` for each class of a softmax (Lin et al., 2017, equation 4).

    The paper's target is one class; here it may be probabilities, in which the sum over the classes is linear. Computed
    in float32 at least and in logarithms, so that no logit makes it or its gradient infinite.

    Args:
        logits: ``[N, C, ...]``, C at least 2.
        probabilities: Target probabilities ``[N, C, ...]``.
        gamma: How fast the weight of well-classified samples falls, >= 0; 0 leaves the cross entropy.

    Returns:
        ``[N, C, ...]``, to be added up over C.

    Example:
        >>> logits = torch.tensor([[0.8, 0.2]]).log()
        >>> round(softmax_focal(logits, torch.tensor([[1.0, 0.0]]), gamma=2.0).sum().item(), 6)  # -0.2^2 ln 0.8
        0.008926
    """
    logits = at_least_float32(logits)
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    # Near p = 1 the difference 1 - p has no digits left; there it is the sum of the other classes.
    top = p.argmax(dim=1, keepdim=True)
    others = logits.scatter(1, top, float("-inf"))
    log_others = others.logsumexp(dim=1, keepdim=True) - logits.logsumexp(dim=1, keepdim=True)
    log_rest = torch.log1p(-p.scatter(1, top, 0.0)).scatter(1, top, log_others)
    return -probabilities * (gamma * log_rest).exp() * log_p


def sigmoid_focal(logits: Tensor, target: Tensor, gamma: float, alpha: float | None = None) -> Tensor:
    """``-a y (1 - p)^gamma log p - (1 - a) (1 - y) p^gamma log(1 - p)`` (Lin et al., 2017, equations 4 and 5).

    Computed in float32 at least and in logarithms, as :func:`softmax_focal` is.

    Args:
        logits: Any shape; p is their sigmoid.
        target: Of the same shape, from 0 to 1.
        gamma: How fast the weight of well-classified samples falls, >= 0; 0 leaves the binary cross entropy.
        alpha: a, the weight of the positives against the negatives, in ``[0, 1]``; the paper's 0.25. None: both 1.

    Returns:
        The shape of ``logits``.

    Example:
        >>> logits = torch.tensor([0.8]).logit()
        >>> round(sigmoid_focal(logits, torch.tensor([1.0]), gamma=2.0, alpha=0.25).item(), 6)  # -0.25 * 0.2^2 ln 0.8
        0.002231
    """
    logits = at_least_float32(logits)
    log_p, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = -target * (gamma * log_rest).exp() * log_p
    negative = -(1 - target) * (gamma * log_p).exp() * log_rest
    return positive + negative if alpha is None else alpha * positive + (1 - alpha) * negative
