"""Which layers count as activations, norm layers and layers with weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softsign, nn.Hardswish, nn.Softplus),
)
"""Activations of single values: no softmax and no gated unit."""

NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

TRANSFORMERS: tuple[type[nn.Module], ...] = (
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
"""Torch's own, whose fast path reads their layers' parameters instead of calling them."""


def has_weights(module: nn.Module) -> bool:
    """Whether ``module`` has a parameter of two or more dimensions."""
    return any(p.ndim >= 2 for p in module.parameters())


def exchange(root: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put other layers in the place of those that are keys of ``new``, wherever in ``root`` they stand.

    Hooks move along, around those that the new layer has: another technique may have put them there.
    """
    for old, made in new.items():
        for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            setattr(made, name, OrderedDict({**getattr(old, name), **getattr(made, name)}))
        for name in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            setattr(made, name, OrderedDict({**getattr(made, name), **getattr(old, name)}))
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
