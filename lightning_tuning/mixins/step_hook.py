"""What happens after each optimizer step that counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def after_each_step(optimizers: Iterable[Optimizer], function: Callable[[], None]) -> list[RemovableHandle]:
    """Have ``function`` called after each optimizer step that counted, in the order of registration.

    The scaler of fp16 calls ``optimizer.step`` for the steps that count only; a fused optimizer it calls always, and
    tells it whether the gradient overflowed.
    """

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not overflow.item():
            function()

    return [optimizer.register_step_post_hook(hook) for optimizer in optimizers]
