"""Checks of the data against the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_tuning.errors import InvalidValueError

_IN_WORDS = {
    "num_classes": "The data has {} classes",
    "in_channels": "The data's images have {} channels",
    "image_size": "The data's images have {} pixels a side",
}


def check_data(data: Any, model: Mapping[str, int]) -> None:
    """Compare what a datamodule says of its data with the model's arguments.

    Args:
        data: A datamodule; attributes that it lacks or that are no integers are passed over.
        model: The model's value by argument name: ``num_classes``, ``in_channels``, ``image_size``.

    Raises:
        InvalidValueError: At the first that differs.
    """
    for name, own in model.items():
        found = getattr(data, name, None)
        if isinstance(found, int) and found != own:
            raise InvalidValueError(
                f"{_IN_WORDS[name].format(found)}, model.{name} is {own}; write --model.{name}={found}."
            )


def check_target(target: Any, num_classes: int) -> None:
    """Check that a target is ids ``[N]`` below ``num_classes`` or probabilities ``[N, C]``.

    Raises:
        InvalidValueError: If it is anything else.
    """
    wanted = f"it must be integer ids [N] or probabilities [N, {num_classes}]"
    if not isinstance(target, Tensor):
        raise InvalidValueError(f"The batch's target is a {type(target).__name__}; {wanted}, as a tensor.")
    if target.is_floating_point():
        if target.ndim != 2 or target.shape[1] != num_classes:
            raise InvalidValueError(f"The batch's target is {target.dtype} of shape {list(target.shape)}; {wanted}.")
        return
    if target.ndim != 1:
        raise InvalidValueError(f"The batch's target is integer of shape {list(target.shape)}; {wanted}.")
    low, high = (int(bound) for bound in target.aminmax()) if len(target) else (0, 0)
    if low < 0 or high >= num_classes:
        raise InvalidValueError(
            f"A batch has labels from {low} to {high}; model.num_classes is {num_classes}, so they must be "
            f"0 to {num_classes - 1}. "
            + (f"Write --model.num_classes={high + 1} or more." if low >= 0 else "Mend the labels.")
        )
