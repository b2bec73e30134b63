"""Learning rates that fall from the last layer to the first."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from ._scheduled import ORIGIN, SCALE, GroupTarget

_STACKS = (nn.Sequential, nn.ModuleList)


def split_by_layer(module: nn.Module, target: GroupTarget, decay: float) -> int:
    """Split the target's groups by layer, and multiply the learning rate by ``decay`` once for each layer that comes
    after. Before a checkpoint is loaded into the optimizer.

    Args:
        module: What is trained.
        target: The groups.
        decay: In (0, 1].

    Returns:
        The number of layers.
    """
    groups = target.optimizer.param_groups
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    layers = layers_of(module, trained)
    layer_of = {id(p): number for number, parameters in enumerate(layers) for p in parameters}
    last, chosen = len(layers) - 1, {id(group) for group in target.groups()}
    parted = []
    for number, group in enumerate(groups):
        group.setdefault(ORIGIN, (number, group.get("name")))
        if id(group) not in chosen:
            parted.append(group)
            continue
        for layer in range(len(layers)):
            parameters = [p for p in group["params"] if layer_of.get(id(p), last) == layer]
            if parameters:
                factor = decay ** (last - layer)
                name = f"{group.get('name', f'pg{number + 1}')}_layer{layer}"  # LearningRateMonitor's numbers
                scale = factor * group.get(SCALE, 1.0)
                own = {"params": parameters, "lr": group["lr"] * factor, "name": name, SCALE: scale}
                parted.append({**group, **own})
    groups[:] = parted  # in place, for Lightning's wrapper holds the list
    return len(layers)


def layers_of(module: nn.Module, trained: set[int]) -> list[list[nn.Parameter]]:
    """The trained parameters of ``module`` by layer, in the order in which they were registered.

    A layer is what a list of modules (``nn.Sequential``, ``nn.ModuleList``) counts, or a part of the network beside
    such lists. What has vectors only, such as a norm, counts to the layer before it; a parameter of the network itself,
    such as a class token, to the layer behind it.

    Args:
        module: The network.
        trained: The ids of the parameters that count.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
        >>> [len(parameters) for parameters in layers_of(net, {id(p) for p in net.parameters()})]
        [4, 2]
    """
    layers: list[list[nn.Parameter]] = []
    seen: set[int] = set()
    for part in _parts(module, trained):
        parameters = [p for p in part if id(p) in trained and id(p) not in seen]
        seen |= {id(p) for p in parameters}
        if layers and all(p.ndim < 2 for p in parameters):
            layers[-1] += parameters
        elif parameters:
            layers.append(parameters)
    return layers


def _parts(module: nn.Module, trained: set[int]) -> Iterator[list[nn.Parameter]]:
    own = list(module.parameters(recurse=False))
    # What is more than half of a network is no layer, but the network proper beside its head.
    most = math.inf if isinstance(module, _STACKS) else _size(module, trained) / 2
    for child in module.children():
        if isinstance(child, _STACKS) or _holds_blocks(child) or _size(child, trained) > most:
            for part in _parts(child, trained):
                yield own + part
                own = []
        elif any(id(p) in trained for p in child.parameters()):
            yield own + list(child.parameters())
            own = []
    if own:
        yield own


def _size(module: nn.Module, trained: set[int]) -> int:
    return sum(p.numel() for p in module.parameters() if id(p) in trained)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether there is a list of blocks in it: of two or more modules of one class that have parts themselves."""
    for stack in module.modules():
        kinds = [type(child) for child in stack.children() if any(True for _ in child.children())]
        if isinstance(stack, _STACKS) and len(kinds) > len(set(kinds)):
            return True
    return False
