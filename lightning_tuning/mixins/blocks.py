"""Which of a module's layers follow one another as its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning.pytorch import LightningModule
from torch import nn


def student_modules(module: LightningModule) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside ``module`` with their names, without those of a teacher, which is a copy of ``module``."""
    for name, child in module.named_children():
        if not isinstance(child, type(module)):
            yield from child.named_modules(prefix=name)


def blocks_of(module: LightningModule) -> dict[str, nn.Module]:
    """The layers that ``module`` consists of, by name and in the order of their registration.

    They are its children that hold weights (parameters of two or more dimensions). ``Sequential``, ``ModuleList`` and
    ``ModuleDict`` count as what they contain, and a single child that holds all weights is entered in the same way.
    """
    children = {n: m for n, m in module.named_children() if not isinstance(m, type(module))}
    blocks = dict(_with_weights("", children))
    while len(blocks) == 1:
        name, only = next(iter(blocks.items()))
        blocks = dict(_with_weights(f"{name}.", dict(only.named_children())))
    return blocks


def _with_weights(prefix: str, children: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for name, child in children.items():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _with_weights(f"{prefix}{name}.", dict(child.named_children()))
        elif any(p.ndim >= 2 for p in child.parameters()):
            yield f"{prefix}{name}", child
