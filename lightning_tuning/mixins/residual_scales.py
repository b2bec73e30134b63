"""The branches of residual blocks, found without data by ``torch.fx``."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn

from .flow import own_graph
from .kinds import NORMS

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def residual_scales(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The last norm layer or layer with weights of each residual branch in ``module``, with its dotted name: with its
    weight and bias at zero the branch adds nothing.

    A branch is one side of an addition, in a module's own forward, of two values that both come from its input: the
    side that passes more layers with weights. Passed over are forwards that cannot be traced, and what ends with
    another layer with parameters, or with a norm layer without weights.
    """
    found = _in_encoders(module, "self_attn.out_proj", "linear2")
    for name, block, node in _branch_ends(module):
        last: fx.Node | None = node
        while last is not None:
            if last.op == "call_module":
                target = str(last.target)
                path, layer = _last_layer(_path(name, target), block.get_submodule(target))
                if _decides(layer):
                    found += [(path, layer)] if getattr(layer, "weight", None) is not None else []
                    break
            before = last.all_input_nodes
            through = len(before) == 1 and (before[0].op == "call_module" or before[0].target is operator.getitem)
            last = before[0] if through else None
    return found


def _in_encoders(module: nn.Module, *targets: str) -> list[tuple[str, nn.Module]]:
    """These layers of each ``nn.TransformerEncoderLayer``, whose forward cannot be traced."""
    encoders = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.TransformerEncoderLayer)]
    return [(_path(name, target), m.get_submodule(target)) for name, m in encoders for target in targets]


def _decides(layer: nn.Module) -> bool:
    return isinstance(layer, NORMS) or any(True for _ in layer.parameters())


def _last_layer(path: str, layer: nn.Module) -> tuple[str, nn.Module]:
    """What decides on what a Sequential or an attention returns: its last layer with parameters, or norm layer."""
    if isinstance(layer, nn.MultiheadAttention):
        return f"{path}.out_proj", layer.out_proj
    if not isinstance(layer, nn.Sequential):
        return path, layer
    for name, child in reversed(list(layer.named_children())):
        end = _last_layer(f"{path}.{name}", child)
        if _decides(end[1]):
            return end
    return path, layer


def _path(name: str, target: str) -> str:
    return f"{name}.{target}" if name else target


def _branch_ends(module: nn.Module) -> Iterator[tuple[str, nn.Module, fx.Node]]:
    for name, block in module.named_modules():
        if next(block.children(), None) is None or isinstance(block, nn.Sequential):
            continue
        graph = own_graph(block)
        for node in graph.nodes if graph is not None else ():
            end = _branch_end(node, block) if node.target in _ADDITIONS else None
            if end is not None:
                yield name, block, end


def _branch_end(addition: fx.Node, block: nn.Module) -> fx.Node | None:
    sides = addition.all_input_nodes
    if len(sides) != 2:
        return None
    before = [_ancestors(side) for side in sides]
    if not all(any(n.op == "placeholder" for n in nodes) for nodes in before):
        return None
    weights = [_weights(nodes, block) for nodes in before]
    if weights[0] == weights[1]:
        return None
    end = sides[weights[1] > weights[0]]
    return end if end.op == "call_module" else None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """``node`` and all that it comes from."""
    found, queue = {node}, [node]
    for current in queue:  # grows while it is read
        new = [n for n in current.all_input_nodes if n not in found]
        found.update(new)
        queue += new
    return found


def _weights(nodes: set[fx.Node], block: nn.Module) -> int:
    layers = [block.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
    return sum(p.ndim >= 2 for layer in layers for p in layer.parameters())
