"""Finds the residual branches of a model that somebody else wrote, by tracing the forward of each of its modules."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.parameter import is_lazy

from .flow import own_graph
from .injection import hookable_modules


class Branch(NamedTuple):
    """A module whose output is a residual branch: nothing but an addition to its block's stream uses it."""

    module: nn.Module
    batch_dim: int
    """The dimension of the samples in the module's output, or in the first item of a tuple that it returns."""


def residual_branches(model: nn.Module) -> tuple[dict[str, Branch], list[str]]:
    """The residual branches of a model by the names of their last modules, in the order in which they run within each
    block, and the names of the blocks with a branch that does not end in a module.

    A block is a module whose ``forward``, with its children taken as they are, adds two values that both stem from its
    input. The branch is the one that went through more layers with weights.
    """
    found: dict[str, Branch] = {}
    missed = []
    seen: set[nn.Module] = set()
    for name, block in blocks_of(model):
        branches, complete = _branches_of(block)
        for child, branch in branches.items():
            if branch.module not in seen:
                seen.add(branch.module)
                found[f"{name}.{child}" if name else child] = branch
        if not complete:
            missed.append(name or type(block).__name__)
    return found, missed


def blocks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model with a ``forward`` of their own that calls others, by name."""
    for name, block in hookable_modules(model).items():
        if any(True for _ in block.children()) and not isinstance(block, _CONTAINERS):
            yield name, block


def branch_ways(block: nn.Module) -> list[list[fx.Node]]:
    """For each addition of two values that both stem from the block's input the nodes of its branch, the side that went
    through more layers with weights: from the branch's last operation back, as far as they are linear and used by
    nothing else, so that dropping one of them is dropping the branch. Empty if the block cannot be traced."""
    graph = own_graph(block)
    return [] if graph is None else _ways(graph, block)


def batch_dim_within(module: nn.Module) -> int:
    """The dimension of the samples in a module's output: 1 if attention or a recurrent layer with ``batch_first=False``
    is within, else 0."""
    return int(any(isinstance(m, _SEQUENTIAL) and not m.batch_first for m in module.modules()))


_SEQUENTIAL = (nn.MultiheadAttention, nn.RNNBase)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Their forwards branch on the values of tensors, so they cannot be traced.
_TABLE = {
    nn.TransformerEncoderLayer.forward: ("dropout1", "dropout2"),
    nn.TransformerDecoderLayer.forward: ("dropout1", "dropout2", "dropout3"),
}


def _branches_of(block: nn.Module) -> tuple[dict[str, Branch], bool]:
    """The branches of one block by the names of its children, and whether these are all it has."""
    names = _TABLE.get(type(block).forward)
    if names is not None:
        return {n: Branch(block.get_submodule(n), batch_dim_within(block)) for n in names}, True
    ways = branch_ways(block)
    used = {node for way in ways for node in way}
    stream_dim = _stream_dim(ways, block)
    branches, complete = {}, True
    for way in ways:
        end = _end(way, used)
        dim = None if end is None or stream_dim is None else _dim_before(way[: way.index(end)], stream_dim)
        if end is None or dim is None:
            complete = False
        else:
            branches[str(end.target)] = Branch(block.get_submodule(str(end.target)), dim)
    return branches, complete


def _ways(graph: fx.Graph, block: nn.Module) -> list[list[fx.Node]]:
    inputs: dict[fx.Node, frozenset[fx.Node]] = {}
    layers: dict[fx.Node, int] = {}  # the fewest layers with weights on a way from an input
    ways = []
    for node in graph.nodes:
        carrying = [] if _is_size(node) else [n for n in node.all_input_nodes if inputs[n]]
        inputs[node] = frozenset().union(*(inputs[n] for n in carrying), [node] if node.op == "placeholder" else [])
        layers[node] = min((layers[n] for n in carrying), default=0) + _weight_count(node, block)
        if node.target not in _ADDITIONS or len(carrying) != 2 or not inputs[carrying[0]] & inputs[carrying[1]]:
            continue
        skip, branch = sorted(carrying, key=lambda n: layers[n])
        if layers[skip] < layers[branch]:
            way = []
            at: fx.Node | None = branch
            while at is not None and _used_once(at):
                way.append(at)
                at = _before(at, block, inputs)
            ways.append(way)
    return ways


def _end(way: list[fx.Node], used: set[fx.Node]) -> fx.Node | None:
    """The first module on the way that is called on branches only: one that is shared with other places is no place for
    a hook."""
    for node in way:
        if node.op == "call_module":
            calls = [n for n in node.graph.nodes if n.op == "call_module" and n.target == node.target]
            if used.issuperset(calls):
                return node
    return None


_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_TRANSPOSITIONS = {torch.transpose, torch.permute, "transpose", "permute"}
_LINEAR = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    operator.neg,
    "contiguous",
    "clone",
    "to",
    "type_as",
    "float",
}
_LINEAR_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PRODUCTS = {operator.mul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div", "div_"}
_SIZES = {"size", "dim", "numel", "new_empty", "new_zeros", "new_ones", "new_full", torch.rand_like, torch.ones_like}


def _is_size(node: fx.Node) -> bool:
    """Whether it takes from its input no more than its shape and kind."""
    return node.target in _SIZES or (node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"))


def _weight_count(node: fx.Node, block: nn.Module) -> int:
    """How many layers with weights a called child has."""
    if node.op != "call_module":
        return 0
    parts = block.get_submodule(str(node.target)).modules()
    return sum(any(bool(is_lazy(p)) or p.ndim >= 2 for p in m.parameters(recurse=False)) for m in parts)


def _is_first_item(node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(node.args[1], int) and node.args[1] == 0


def _used_once(node: fx.Node) -> bool:
    """Whether nothing but the branch uses it; of a tuple it is the first item that counts."""
    users = list(node.users)
    if node.op == "call_module" and any(map(_is_first_item, users)):
        users = [n for n in users if n.target is not operator.getitem or not n.args[1]]
    return len(users) == 1


def _before(node: fx.Node, block: nn.Module, inputs: Mapping[fx.Node, frozenset]) -> fx.Node | None:
    """The node that this one is a linear function of."""
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if node.op == "call_module":
        return first if isinstance(block.get_submodule(str(node.target)), _LINEAR_MODULES) else None
    if node.target in _PRODUCTS:
        factors = [n for n in node.all_input_nodes if inputs[n]]
        divides = len(node.args) == 2 and node.target in (operator.truediv, torch.div, "div", "div_")
        return factors[0] if len(factors) == 1 and not (divides and factors[0] is not first) else None
    if first is not None and _is_first_item(node):
        return first if first.op == "call_module" else None
    return first if node.target in _LINEAR | _TRANSPOSITIONS else None


def _stream_dim(ways: list[list[fx.Node]], block: nn.Module) -> int | None:
    """The dimension of the samples where a block adds: what its attention or recurrent layers tell, else 0."""
    for way in ways:
        for i, node in enumerate(way):
            module = block.get_submodule(str(node.target)) if node.op == "call_module" else None
            if module is not None and any(isinstance(m, _SEQUENTIAL) for m in module.modules()):
                inside = batch_dim_within(module)
                return next((dim for dim in range(4) if _dim_before(way[:i], dim) == inside), None)
    return 0


def _dim_before(operations: list[fx.Node], dim: int) -> int | None:
    """Where dimension ``dim`` of a result was before the operations, which stand last first; None if that is open."""
    at: int | None = dim
    for node in operations:
        if node.target in _TRANSPOSITIONS and at is not None:
            at = _transposed(node, at)
    return at


def _transposed(node: fx.Node, dim: int) -> int | None:
    arguments = [*node.args[1:], *(value for name, value in node.kwargs.items() if name != "input")]
    if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)):
        arguments = [*arguments[0]]
    order = [a for a in arguments if isinstance(a, int)]
    if len(order) != len(arguments) or not order:
        return None
    if node.target in (torch.permute, "permute"):
        return order[dim] if min(order) >= 0 and dim < len(order) else None
    if min(order) < 0:  # counted from the end: the samples are not among them if they come first
        return dim if dim == 0 and max(order) != 0 else None
    a, b = order
    return {a: b, b: a}.get(dim, dim)
