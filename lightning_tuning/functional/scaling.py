"""What fp16's gradient scaler leaves to be seen at the optimizer."""

from __future__ import annotations

from torch.optim import Optimizer


def step_was_skipped(optimizer: Optimizer) -> bool:
    """Whether the gradient scaler kept this optimizer from changing the weights. Ask in a step post-hook.

    The scaler calls ``optimizer.step`` for the steps that count only; but a fused optimizer it calls always, and
    tells it whether the gradient overflowed.
    """
    overflow = getattr(optimizer, "found_inf", None)
    return overflow is not None and bool(overflow.item())
