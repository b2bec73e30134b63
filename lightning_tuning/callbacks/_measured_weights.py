"""The weights that were measured, kept aside."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

Weights = dict[str, Any]


def snapshot(module: LightningModule) -> Weights:
    """A copy of a module's parameters, buffers and extra states, in the main memory."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)
        for name, value in module.state_dict().items()
    }


@dataclass
class MeasuredWeights:
    """The weights of a metric's best value, and those of a measurement whose value is not known yet."""

    best: Weights | None = None
    candidate: Weights | None = None
