"""Gradient centralization."""

from __future__ import annotations

import torch
from torch import Tensor


def centralize_(gradients: list[Tensor]) -> None:
    """Take from each gradient its mean over all dimensions but the first, in place (Yong et al., 2020, equation 1).

    Args:
        gradients: Of two or more dimensions each, the first being the output units. A common factor (the scale of a
            GradScaler) makes no difference.

    Example:
        >>> gradient = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
        >>> centralize_([gradient])
        >>> gradient
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """
    # There is no foreach kernel for means over dimensions.
    means = [g.mean(tuple(range(1, g.ndim)), keepdim=True) for g in gradients]
    torch._foreach_sub_(gradients, means)
