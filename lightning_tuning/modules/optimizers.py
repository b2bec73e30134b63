"""Optimizers by name, with weight decay on weight matrices and kernels alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lightning_tuning.errors import InvalidValueError, check_choice, check_range

OptimizerName = Literal["sgd", "rmsprop", "adam", "adamw"]


def check_optimizer(optimizer: object, lr: float, weight_decay: float, momentum: float) -> None:
    """Check a classifier's optimizer arguments.

    Raises:
        InvalidValueError: If the optimizer is neither a known name nor a callable, a number is outside its range, or a
            weight decay would be lost on an optimizer that has its own arguments.
    """
    check_range("lr", lr, open_low=True)
    check_range("weight_decay", weight_decay)
    check_range("momentum", momentum, 0, 1, open_high=True)
    if not callable(optimizer):
        check_choice(
            "optimizer", optimizer, get_args(OptimizerName), "a class path or callable that takes the parameters"
        )
    elif weight_decay > 0:
        raise InvalidValueError(
            f"weight_decay is {weight_decay:g}, which only an optimizer given by name uses; write it among the "
            "arguments of the optimizer you gave (optimizer.init_args.weight_decay) and leave this one 0."
        )


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not.

    Parameters with two or more dimensions decay; biases and the weights of norm layers, which have one, do not.

    Args:
        parameters: Any parameters; frozen ones are left out.
        weight_decay: The decay of the first group; at 0 there is one group of all parameters.

    Returns:
        One group, or the decaying and the other one, without empty groups.

    Example:
        >>> groups = parameter_groups(nn.Linear(3, 2).parameters(), 0.1)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.1, 1), (0.0, 1)]
    """
    trainable = [p for p in parameters if p.requires_grad]
    if weight_decay == 0:
        return [{"params": trainable, "weight_decay": 0.0}]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.9
) -> Optimizer:
    """Build an optimizer by name over :func:`parameter_groups`.

    Args:
        name: ``sgd``, ``rmsprop``, ``adam`` (decay added to the gradient) or ``adamw`` (decoupled decay).
        parameters: Any parameters; frozen ones are left out.
        lr: Learning rate.
        weight_decay: Weight decay, 0 = none.
        momentum: Nesterov momentum of ``sgd``, 0 = none; the others do not use it.
    """
    groups = parameter_groups(parameters, weight_decay)
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    factory: type[Optimizer] = {"rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}[name]
    return factory(groups, lr=lr)  # type: ignore[call-arg]
