"""Arguments of techniques that something changes during the run, such as a schedule."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from .composition import compose, own_arguments, techniques_of

if TYPE_CHECKING:
    from .base import TuningMixin

CONFIGURED = "_configured"
"""The key in the ``__dict__`` of a module under which a callback keeps the configured values of what it changes."""


def configured(module: Any, name: str) -> Any:
    """The value that an argument was given, whatever it is at the moment."""
    return module.__dict__.get(CONFIGURED, {}).get(name, getattr(module, name))


def configured_techniques(module: TuningMixin) -> list[type[TuningMixin]]:
    """The techniques that are switched on as configured, whatever their strengths are at the moment."""
    techniques = techniques_of(type(module))
    return [t for t in techniques if t.is_on({name: configured(module, name) for name in t.off})]


def adjustable(module: TuningMixin) -> dict[str, float]:
    """The arguments of active techniques that are numbers and that each step reads, with their configured values."""
    values = {
        name: configured(module, name)
        for technique in configured_techniques(module)
        for name, parameter in own_arguments(technique).items()
        if re.fullmatch(r"float( \| None)?", parameter.annotation) and name not in technique.fixed
    }
    return {name: value for name, value in values.items() if value is not None}


def why_fixed(module: TuningMixin, name: str) -> str | None:
    """Why nothing may change that argument of a technique during the run; None if it is none, or may be changed."""
    technique = next((t for t in techniques_of(type(module)) if name in own_arguments(t)), None)
    if technique is None or name in adjustable(module):
        return None
    if technique not in configured_techniques(module):
        return f"{technique.__name__} is off. Set {name} to the full value."
    value = configured(module, name)
    if value is None:
        return f"{name} is None. Give it a number."
    if name in technique.fixed:
        return f"{technique.__name__} reads it once only, so that a change would change nothing."
    return f"it is {value!r}: only floating numbers can be changed step by step."


def check_adjusted(module: TuningMixin, name: str, value: float) -> None:
    """Raise what the technique that ``name`` belongs to raises for this value: it is made over an empty host."""
    technique = next(t for t in configured_techniques(module) if name in own_arguments(t))
    arguments = {argument: configured(module, argument) for argument in own_arguments(technique)}
    with torch.random.fork_rng(devices=()):
        over_nothing: Any = _over_nothing(technique)  # type: ignore[arg-type]  # a class can be hashed
        over_nothing(**{**arguments, name: value})


class _Nothing(LightningModule):
    """A host that nobody trains."""

    num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        return x

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.compute_loss(self(batch[0]), batch[1])

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.mean()


@functools.cache
def _over_nothing(technique: type[TuningMixin]) -> type[LightningModule]:
    return compose(_Nothing, technique)
