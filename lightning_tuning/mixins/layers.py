"""The layers that multiply by a weight, and which of its dimensions counts their units."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


def weighted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolutional layers within ``module`` that have a trainable weight, by name.

    Left out are those whose weight is computed from something else (torch's parametrizations), and the output layer of
    torch's attention, which is never called: the attention takes its weight.
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd))
        and not isinstance(layer, NonDynamicallyQuantizableLinear)
        and layer._parameters.get("weight") is not None
        and layer.weight.requires_grad
    }


def raw_weight(layer: nn.Module) -> Tensor:
    """The parameter itself, also while a hook shows another weight to the layer's forward."""
    return layer._parameters["weight"]  # type: ignore[return-value]


def unit_weights(layer: nn.Module) -> list[Tensor]:
    """Views ``[units, ...]`` of the layer's weight that together have each output unit's incoming weights once."""
    weight = raw_weight(layer)
    if isinstance(layer, _ConvTransposeNd):  # [in, out / groups, ...]
        return [part.transpose(0, 1) for part in weight.chunk(layer.groups)]
    return [weight]


def unit_matrix(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The layer's weight (or another of its shape) as a matrix ``[units, incoming]``; the groups of a transposed
    convolution lie side by side in it."""
    weight = raw_weight(layer) if weight is None else weight
    return (weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight).flatten(1)
