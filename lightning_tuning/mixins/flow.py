"""Which layer's output goes into which other layer, found without data by ``torch.fx``."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, fx, nn

from lightning_tuning.functional import get_rng_state, set_rng_state

from .composition import hosts_of, is_tuning_mixin
from .kinds import ACTIVATIONS, has_weights

_FUNCTIONS = (
    *("relu", "relu6", "leaky_relu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "softplus"),
    *("sigmoid", "hardsigmoid", "tanh", "hardtanh", "softsign"),
)
_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")


@dataclass(eq=False)
class Op:
    """A call of a layer or a function within a network's forward."""

    module: nn.Module | None = None
    activation: Callable[[Tensor], Tensor] | None = None
    """The activation, layer or function, that it is."""
    weighted: bool = False
    """Whether it multiplies with weights."""
    product: bool = False
    """Whether it multiplies two values."""
    after: list[Op] = field(default_factory=list)
    """Who takes its output."""

    def next_activation(self) -> Callable[[Tensor], Tensor] | None:
        """The nearest activation behind it and before the next weights, whatever lies between; None at the end of the
        network too."""
        if not self.reaches_weights():
            return None
        behind = _behind(self, lambda op: op.weighted or op.activation is not None)
        return next((op.activation for op in behind if op.activation is not None), None)

    def reaches_weights(self) -> bool:
        """Whether what it returns meets weights again: false for the last layer of a network and what follows it."""
        return any(op.weighted for op in _behind(self, lambda op: op.weighted))

    def is_gate(self) -> bool:
        """Whether another value is multiplied with what it returns."""
        return any(op.product for op in _behind(self, lambda op: op.module is not None or op.product))


def _behind(start: Op, stop: Callable[[Op], bool]) -> Iterator[Op]:
    """All that lies behind ``start``, nearest first; not beyond what ``stop`` says."""
    queue, seen = [*start.after], {start}
    for op in queue:  # grows while it is read
        if op not in seen:
            seen.add(op)
            yield op
            if not stop(op):
                queue += op.after


def network_flow(module: nn.Module) -> list[Op]:
    """The calls in the forward of ``module`` in their order.

    Each container's own ``forward`` is traced by itself. Where that fails (it depends on values), the order in which
    its layers were registered stands for it; the children of a LightningModule are then networks of their own. So are
    layers that no traced forward calls.
    """
    ops: list[Op] = []
    _walk(module, [], ops)
    return ops


def _walk(module: nn.Module, sources: list[Op], ops: list[Op]) -> list[Op]:
    """Add the calls in ``module``, fed by ``sources``; returns those whose values leave it."""
    if _is_leaf(module):
        activation: Any = module if isinstance(module, ACTIVATIONS) else None
        return [_add(Op(module, activation, has_weights(module)), sources, ops)]
    graph = None if type(module).forward is nn.Sequential.forward else own_graph(module)
    if graph is None:
        apart = isinstance(module, (LightningModule, nn.ModuleList, nn.ModuleDict))
        for child in module.children():
            sources = _walk(child, [] if apart else sources, ops)
        return sources
    values: dict[fx.Node, list[Op]] = {}
    called: set[nn.Module] = set()
    result: list[Op] = []
    for node in graph.nodes:
        inputs = _unique(op for source in node.all_input_nodes for op in values[source])
        if node.op == "placeholder":
            values[node] = sources
        elif node.op == "call_module":
            child = module.get_submodule(node.target)
            called.add(child)
            values[node] = _walk(child, inputs, ops)
        elif node.op == "get_attr":
            values[node] = []
        elif node.op == "output":
            result = inputs
        else:
            values[node] = [_add(_function(node, module), inputs, ops)]
    for child in module.children():
        if called.isdisjoint(child.modules()):
            _walk(child, [], ops)
    return result


def _is_leaf(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    torchs_own = type(module).__module__.startswith("torch.nn.") and not isinstance(module, containers)
    return torchs_own or next(module.children(), None) is None


def _add(op: Op, sources: list[Op], ops: list[Op]) -> Op:
    for source in sources:
        source.after.append(op)
    ops.append(op)
    return op


def _unique(ops: Iterable[Op]) -> list[Op]:
    return list(dict.fromkeys(ops))


def _function(node: fx.Node, module: nn.Module) -> Op:
    target: Any = node.target
    name = (target if isinstance(target, str) else getattr(target, "__name__", "")).rstrip("_")
    weighted = any(_is_weight(source, module) for source in node.all_input_nodes)
    activation = None
    if name in _FUNCTIONS and len(node.all_input_nodes) == 1:
        function = getattr(torch, name) if isinstance(target, str) else target
        arguments = (node.args[1:], {k: v for k, v in node.kwargs.items() if not isinstance(v, fx.Node)})
        activation = function if name in ("tanh", "sigmoid") else partial(function, *arguments[0], **arguments[1])
    return Op(None, activation, weighted, target in _PRODUCTS and len(node.all_input_nodes) == 2)


def _is_weight(node: fx.Node, module: nn.Module) -> bool:
    parameter = dict(module.named_parameters()).get(str(node.target)) if node.op == "get_attr" else None
    return parameter is not None and parameter.ndim >= 2


class _OwnForward(fx.Tracer):
    """Traces one module's own forward; the modules that it calls are not entered."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def own_graph(module: nn.Module) -> fx.Graph | None:
    """The calls that the ``forward`` of ``module`` itself makes; None if it cannot be traced.

    Of a LightningModule with mixins it is the host's own forward. Arguments with a default have it.
    """
    cls = hosts_of(type(module))[0] if is_tuning_mixin(type(module)) else type(module)
    state = get_rng_state(torch.device("cpu"))
    try:
        parameters = inspect.signature(cls.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return _OwnForward().trace(_stand_in(module, cls), defaults)
    except Exception:  # whatever a forward may raise that is fed with symbols
        return None
    finally:
        set_rng_state(state)


def _stand_in(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """What shares the layers of ``module``, but not what a forward may leave behind."""
    twin = object.__new__(cls)
    buffers = {name: b if b is None else b.clone() for name, b in module._buffers.items()}
    twin.__dict__.update({**module.__dict__, "_buffers": buffers, "_modules": {**module._modules}})
    return twin
