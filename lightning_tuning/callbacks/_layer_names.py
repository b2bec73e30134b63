"""What the parameters are called that callbacks look at together."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn


def layer_name(name: str, depth: int | None = None) -> str:
    """The layer that a parameter belongs to: the module that owns it, or one of ``depth`` levels above that.

    Args:
        name: The parameter's name.
        depth: How many levels of modules make a name; None: all.

    Example:
        >>> layer_name("encoder.0.weight"), layer_name("encoder.0.weight", 1), layer_name("scale")
        ('encoder.0', 'encoder', 'scale')
        >>> layer_name("head.parametrizations.weight.original")
        'head'
    """
    parts = clean_name(name).split(".parametrizations.")[0].split(".")
    owner = parts if ".parametrizations." in name else parts[:-1]
    return ".".join(owner[:depth] or parts)


def clean_name(name: str) -> str:
    """A parameter's name without what ``torch.compile`` adds."""
    return name.replace("_orig_mod.", "")


def names_by_layer(module: LightningModule, group_by: str, depth: int | None = None) -> dict[nn.Parameter, str]:
    """What each parameter counts with.

    Args:
        module: Whose parameters.
        group_by: ``parameter`` for each alone, else by layer.
        depth: As in :func:`layer_name`.
    """
    named = module.named_parameters()
    return {p: clean_name(n) if group_by == "parameter" else layer_name(n, depth) for n, p in named}
