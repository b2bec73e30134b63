"""Inputs that a training step's output can be differentiated by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_tuning.errors import InvalidValueError

from .inputs import map_inputs


def differentiable(x: Any, technique: str) -> tuple[Any, list[Tensor]]:
    """``x`` with its floating tensors requiring grad, and these tensors.

    The caller's tensors stay as they are; one that requires grad already is handed on itself, for another mixin may be
    going to differentiate by it.

    Args:
        x: A tensor or a dict of tensors.
        technique: Who asks, for the message.

    Raises:
        InvalidValueError: There is no floating tensor.
    """
    found: list[Tensor] = []

    def ready(values: Tensor) -> Tensor:
        if not values.is_floating_point():
            return values
        found.append(values if values.requires_grad else values.detach().requires_grad_())
        return found[-1]

    x = map_inputs(ready, x)
    if not found:
        came = {str(v.dtype) for v in (x.values() if isinstance(x, Mapping) else [x]) if isinstance(v, Tensor)}
        raise InvalidValueError(
            f"{technique} takes gradients with respect to the inputs, but they are {', '.join(sorted(came))}: integers "
            "such as token ids have none. Use it on images, vectors or embeddings, or switch it off."
        )
    return x, found


def gradient_scale(module: LightningModule, samples: int) -> Tensor | float:
    """What to scale an input gradient by within a graph of half precision: as fp16's scaler does a mean loss of
    ``samples``, so that a gradient that overflows has the step skipped and the scale lowered; 1 without a scaler."""
    scaler = None if module._trainer is None else getattr(module.trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.scale(torch.tensor(1 / samples, device=module.device))


@contextmanager
def naming(technique: str) -> Iterator[None]:
    """Puts the technique's name in front of an error that comes from the functional layer."""
    try:
        yield
    except InvalidValueError as error:
        raise InvalidValueError(f"{technique}: {error}") from None
