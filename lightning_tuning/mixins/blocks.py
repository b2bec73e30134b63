"""Which of a module's layers follow one another as its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning.pytorch import LightningModule
from torch import nn

from .composition import is_tuning_mixin
from .kinds import has_weights


def student_children(module: LightningModule) -> dict[str, nn.Module]:
    """The children of ``module`` by name, without teachers: one with mixins of its own is a copy of the module."""
    return {name: child for name, child in module.named_children() if not is_tuning_mixin(type(child))}


def blocks_of(module: LightningModule) -> dict[str, nn.Module]:
    """The layers that ``module`` consists of, by name and in the order of their registration.

    They are its children that hold weights (parameters of two or more dimensions). ``Sequential``, ``ModuleList`` and
    ``ModuleDict`` count as what they contain, and a single child that holds all weights is entered in the same way.
    """
    blocks = dict(_with_weights("", student_children(module)))
    while len(blocks) == 1:
        name, only = next(iter(blocks.items()))
        blocks = dict(_with_weights(f"{name}.", dict(only.named_children())))
    return blocks


def _with_weights(prefix: str, children: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for name, child in children.items():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _with_weights(f"{prefix}{name}.", dict(child.named_children()))
        elif has_weights(child):
            yield f"{prefix}{name}", child
