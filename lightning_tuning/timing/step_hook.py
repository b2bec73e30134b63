"""What happens after each optimizer step that counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_tuning.functional import step_was_skipped


def after_each_step(optimizers: Iterable[Optimizer], function: Callable[[], None]) -> list[RemovableHandle]:
    """Have ``function`` called after each optimizer step that fp16's scaler does not skip, in order of registration."""

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not step_was_skipped(optimizer):
            function()

    return [optimizer.register_step_post_hook(hook) for optimizer in optimizers]
