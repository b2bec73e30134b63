"""Exchanges the activation layers of any network."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import nn

from lightning_tuning.errors import InvalidValueError, check_choice
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.flow import network_flow
from lightning_tuning.mixins.kinds import ACTIVATIONS, exchange

ActivationName = Literal[
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "softplus", "tanh",
    "sigmoid",
]  # fmt: skip
_LAYERS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class ActivationMixin(TuningMixin):
    """Replaces the activation layers that the host builds in its ``__init__`` by one of another kind.

    Hidden activations only: an activation behind which no layer with weights follows gives the network's output and
    stays, and so does a sigmoid that another value is multiplied with (a gate). What follows what is read from each
    module's ``forward``; where that depends on values, from the order in which its layers were registered. Functions
    such as ``F.relu`` cannot be exchanged.

    Args:
        activation_name: What takes their place, with torch's default settings: ``gelu``, ``silu`` (swish), ``mish``
            are smooth, ``tanh`` and ``sigmoid`` bounded. Off: None.
        activation_layers: Regular expression for whole names of layers, such as ``network\\.body\\..*``. Every
            activation layer that it matches is exchanged, outputs and gates too. None = all hidden ones.

    Raises:
        InvalidValueError: ``activation_name`` is unknown, or ``activation_layers`` is no regular expression.
        NoEffectError: At fit start, if no layer was exchanged.

    Source: Hendrycks & Gimpel, 2016, "Gaussian error linear units", and the papers of the other activations; here is
    only the exchange.
    """

    stem = "activation"
    stage = "layers"
    off = {"activation_name": None}
    changes = ("model",)
    sharded = True

    def __init__(
        self,
        *args: Any,
        activation_name: ActivationName | None = "gelu",
        activation_layers: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.activation_name = activation_name
        self.activation_layers = activation_layers
        self._activation_idle: str | None = None
        if activation_name is not None:
            check_choice("activation_name", activation_name, get_args(ActivationName))
            _check_pattern(activation_layers)
            self._activation_idle = self._exchange_activations(_LAYERS[activation_name])

    def no_effect(self) -> str | None:
        return self._activation_idle

    def _exchange_activations(self, kind: type[nn.Module]) -> str | None:
        """Returns why nothing was exchanged, if nothing was."""
        # A shared layer has several names.
        there = {n: m for n, m in self.named_modules(remove_duplicate=False) if isinstance(m, ACTIVATIONS)}
        functions = [m for m in self.modules() if isinstance(m, _TRANSFORMER_LAYERS) and "activation" in vars(m)]
        if not there and not functions:
            return (
                f"{self._host_name} has no activation layer after its __init__. Functions such as F.relu(x) cannot be "
                "exchanged: write self.act = nn.ReLU() in __init__ and self.act(x) in forward."
            )
        if self.activation_layers is not None:
            chosen, functions = [m for n, m in there.items() if re.fullmatch(self.activation_layers, n)], []
            if not chosen:
                return f"activation_layers={self.activation_layers!r} matches none of {_listed(there)}."
        else:
            kept = _outputs_and_gates(self)
            chosen = [m for m in there.values() if m not in kept]
            if not chosen and not functions:
                return (
                    f"the activation layers of {self._host_name} ({_listed(there)}) are outputs or gates: no layer "
                    "with weights follows, or they are multiplied with another value. Name those to exchange in "
                    "activation_layers."
                )
        new = {m: _like(m, kind) for m in chosen if type(m) is not kind}
        functions = [m for m in functions if _OF_FUNCTION.get(m.activation) is not kind]
        exchange(self, new)
        for layer in functions:
            layer.activation = kind()
        _mend_fast_path(self)
        if new or functions:
            return None
        return f"every activation layer of {self._host_name} that it may exchange is {kind.__name__} already."


_TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_OF_FUNCTION: dict[Any, type[nn.Module]] = {F.relu: nn.ReLU, F.gelu: nn.GELU}


def _outputs_and_gates(host: nn.Module) -> set[nn.Module]:
    """A layer that is called at several places is one if it is one at any of them."""
    return {
        op.module
        for op in network_flow(host)
        if isinstance(op.module, ACTIVATIONS)
        and (not op.reaches_weights() or (isinstance(op.module, (nn.Sigmoid, nn.Hardsigmoid)) and op.is_gate()))
    }


def _like(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    in_place = getattr(old, "inplace", False) and "inplace" in inspect.signature(kind).parameters
    return (kind(inplace=True) if in_place else kind()).train(old.training)


def _mend_fast_path(host: nn.Module) -> None:
    """Torch's fast path computes ReLU or GELU itself, as noted when the layer was built."""
    for layer in host.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            kinds = {nn.ReLU: 1, F.relu: 1, nn.GELU: 2, F.gelu: 2}
            activation: Any = layer.activation
            layer.activation_relu_or_gelu = kinds.get(activation, kinds.get(type(activation), 0))
    for encoder in host.modules():
        if isinstance(encoder, nn.TransformerEncoder) and not all(
            getattr(layer, "activation_relu_or_gelu", 1) for layer in encoder.layers
        ):
            encoder.use_nested_tensor = False


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise InvalidValueError(f"activation_layers is {pattern!r}, which is no regular expression: {error}.") from None


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
