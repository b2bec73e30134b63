"""A look at the layers of a network during one forward pass, through hooks that stand for that long only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_tuning.functional import idle_units, moments, off_below, saturated

_PASSED_THROUGH = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
_ACTIVATIONS = "torch.nn.modules.activation"
_PARAMETRIZATIONS = "parametrizations"
_UNITS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase)
_MOST_CALLS = 4
"""Of one layer in a pass; in a loop the later ones are left out."""


@dataclass
class Place:
    """A layer at one of its calls within a pass."""

    name: str
    """The layer's, with ``#2`` from its second call on."""
    layer: nn.Module
    order: int
    """Which call of all it was."""
    dtype: torch.dtype
    """Of its outputs."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """Scalars by name."""
    idle: Tensor | None = None
    """Which units no sample switched on, ``[C]``; None for a layer with weights."""
    largest_weight: Tensor | None = None
    """In magnitude; not finite if any weight is not."""


def has_weights(layer: nn.Module) -> bool:
    """Whether it has a parameter of two or more dimensions."""
    return any(p.ndim >= 2 for p in layer.parameters())


def is_activation(layer: nn.Module) -> bool:
    """Whether a layer without children is an activation: one of torch's, or somebody's own that has no parameter."""
    if isinstance(layer, nn.PReLU):
        return True
    home = type(layer).__module__
    is_own = not home.startswith(("torch.nn.", "torchmetrics.")) and not isinstance(layer, _PASSED_THROUGH)
    return (home == _ACTIVATIONS or is_own) and not _has_parameters_or_normalizes(layer)


def _has_parameters_or_normalizes(layer: nn.Module) -> bool:
    return "Norm" in type(layer).__name__ or next(layer.parameters(), None) is not None


def leaves(module: nn.Module, prefix: str = "", seen: set[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """The layers that hooks can see, by name: those without layers inside that are neither a teacher's (frozen and in
    evaluation mode) nor within a compiled part. A layer that stands at several places has the name of the first."""
    seen = set() if seen is None else seen
    for name, child in module.named_children():
        parameters = list(child.parameters())
        is_frozen = parameters and not child.training and not any(p.requires_grad for p in parameters)
        if child in seen or name == _PARAMETRIZATIONS or is_frozen or _is_closed(child):
            continue
        seen.add(child)
        if any(inner != _PARAMETRIZATIONS for inner, _ in child.named_children()):
            yield from leaves(child, f"{prefix}{name}.", seen)
        elif is_activation(child) or _has_parameters_or_normalizes(child):
            yield f"{prefix}{name}", child


def _is_closed(module: nn.Module) -> bool:
    compiled = type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
    return compiled or isinstance(module, torch.jit.ScriptModule)


class _Pass:
    """The calls that belong to the first pass: until the layer that came first comes again.

    A layer that this pass did not reach counts in the first later pass that does.
    """

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._first: nn.Module | None = None
        self._number = 0
        self._home: dict[nn.Module, int] = {}
        self._calls: dict[nn.Module, int] = {}

    def next_name(self, name: str, layer: nn.Module) -> str | None:
        """The name of the place of this call; None if it does not count."""
        if self._first is None:
            self._first = layer
        elif layer is self._first:
            self._number += 1
        if self._home.setdefault(layer, self._number) != self._number:
            return None
        self._calls[layer] = calls = self._calls.get(layer, 0) + 1
        if calls > _MOST_CALLS:
            return None
        return name if calls == 1 else f"{name}#{calls}"


class ActivationLook:
    """Places hooks, until :meth:`close`, that take down what each layer returns. They change nothing and draw nothing.

    What counts is the first pass with a graph. A layer that was called without one only (within reentrant activation
    checkpointing) is taken from there. Attacks and other inner passes do not count.

    Args:
        module: The module; its layers' names are those of ``named_modules``.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._passes = {True: _Pass(), False: _Pass()}
        self._inputs: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = {}
        self._order = 0
        self._units_last = self._saw_weights = False
        self._handles: list[RemovableHandle] = []
        if getattr(module, "_compiler_ctx", None) is None:  # of torch.compile(module)
            for name, layer in leaves(module):
                if is_activation(layer):
                    self._handles.append(layer.register_forward_pre_hook(self._before(layer.training)))
                self._handles.append(layer.register_forward_hook(self._after(name, layer.training)))

    def close(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def places(self) -> list[Place]:
        """What was seen, in the order of the calls."""
        seen, without_graph = self._passes[True].places, self._passes[False].places
        reached = {place.layer for place in seen.values()}
        others = [place for place in without_graph.values() if place.layer not in reached]
        return sorted([*seen.values(), *others], key=lambda place: place.order)

    def _listens(self, layer: nn.Module, training: bool) -> bool:
        # A copy of the layer may have taken the hook along, and a compiler may trace it.
        if torch.compiler.is_compiling() or not self._handles:
            return False
        return layer.training == training and not self._module.__dict__.get("_in_inner_pass", False)

    def _before(self, training: bool) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any) -> None:
            if self._listens(layer, training) and args and _is_readable(args[0]):
                # Now, for the layer may write its outputs over its inputs.
                with torch.no_grad():
                    mean, std, _ = moments(_wide(args[0]))
                    floor = off_below(layer)
                    idle = mean if floor is None else idle_units(args[0], floor, self._unit_dim(args[0]))
                    self._inputs[layer] = mean, std, idle

        return hook

    def _after(self, name: str, training: bool) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if not self._listens(layer, training):
                return
            inputs = self._inputs.pop(layer, None)
            output = _first_tensor(output)
            if not _is_readable(output):
                return
            if isinstance(layer, _UNITS_LAST):
                self._units_last = True
            elif not is_activation(layer):
                self._units_last = False
            self._saw_weights |= has_weights(layer)
            current = self._passes[torch.is_grad_enabled()]
            if (place_name := current.next_name(name, layer)) is not None:
                place = current.places[place_name] = Place(place_name, layer, self._order, output.dtype)
                self._order += 1
                with torch.no_grad():
                    self._measure(place, output, inputs)

        return hook

    def _measure(self, place: Place, output: Tensor, inputs: tuple[Tensor, Tensor, Tensor] | None) -> None:
        values = place.values
        values["mean"], values["std"], values["variation"] = moments(_wide(output))
        if weights := [p.detach() for p in place.layer.parameters() if _is_plain(p)]:
            place.largest_weight = torch.stack([p.abs().max() for p in weights]).max()
        if not is_activation(place.layer):
            return
        if (ends := saturated(place.layer, output)) is not None:
            values["saturated"] = ends.float().mean()
        if inputs is None:
            return
        values["pre_mean"], values["pre_std"], idle = inputs
        if off_below(place.layer) is not None:
            place.idle = idle
        elif type(place.layer).__module__ != _ACTIVATIONS and self._saw_weights:
            # Somebody's own: off where it is exactly zero. Before the first weights zeros are the data's.
            place.idle = idle_units(output, None, self._unit_dim(output))

    def _unit_dim(self, values: Tensor) -> int:
        return -1 if self._units_last else 1


def _first_tensor(output: Any) -> Any:
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return next(iter(output.values()), None) if isinstance(output, dict) else output


def _is_readable(value: Any) -> bool:
    return _is_plain(value) and value.is_floating_point() and value.ndim >= 2


def _is_plain(value: Any) -> bool:
    """Not one that is spread over processes, whose sum all of them would have to ask for."""
    return type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.numel() > 0


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
