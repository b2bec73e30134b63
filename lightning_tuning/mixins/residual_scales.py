"""Where a residual branch can be closed: its last layer that decides on the scale of what it adds."""

from __future__ import annotations

import operator

from torch import fx, nn

from .kinds import NORMS
from .residual import blocks_of, branch_ways

# Their forwards branch on the values of tensors, so they cannot be traced.
_TABLE = {
    nn.TransformerEncoderLayer.forward: ("self_attn.out_proj", "linear2"),
    nn.TransformerDecoderLayer.forward: ("self_attn.out_proj", "multihead_attn.out_proj", "linear2"),
}


def residual_scales(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The last norm layer or layer with weights of each residual branch in ``model``, with its dotted name: with its
    weight and bias at zero the branch adds nothing.

    Passed over are forwards that cannot be traced, and what ends with another layer with parameters, or with a norm
    layer without weights.
    """
    found = []
    for name, block in blocks_of(model):
        targets = _TABLE.get(type(block).forward)
        if targets is not None:
            ends = [(_path(name, target), block.get_submodule(target)) for target in targets]
        else:
            ends = [end for way in branch_ways(block) if way and (end := _end(name, block, way[0])) is not None]
        found += [end for end in ends if getattr(end[1], "weight", None) is not None]
    return found


def _end(name: str, block: nn.Module, last: fx.Node) -> tuple[str, nn.Module] | None:
    """The last layer on the way back from the end of a branch that decides, through activations and dropout."""
    node: fx.Node | None = last
    while node is not None:
        if node.op == "call_module":
            target = str(node.target)
            path, layer = _last_layer(_path(name, target), block.get_submodule(target))
            if _decides(layer):
                return path, layer
        before = node.all_input_nodes
        through = len(before) == 1 and (before[0].op == "call_module" or before[0].target is operator.getitem)
        node = before[0] if through else None
    return None


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
