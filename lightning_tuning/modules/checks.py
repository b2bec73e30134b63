"""Checks of the data against the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError

_IN_WORDS = {
    "num_classes": "The data has {} classes",
    "num_outputs": "The data has {} values a target",
    "in_channels": "The data's images have {} channels",
    "image_size": "The data's images have {} pixels a side",
}


def check_data(data: Any, model: Mapping[str, int]) -> None:
    """Compare what a datamodule says of its data with the model's arguments.

    Args:
        data: A datamodule; attributes that it lacks or that are no integers are passed over.
        model: The model's value by argument name: ``num_classes``, ``num_outputs``, ``in_channels``, ``image_size``.

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
    _check_tensor(target, wanted)
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


def check_multi_hot(target: Any, num_classes: int) -> None:
    """Check that a target is a multi-hot ``[N, C]`` of numbers from 0 to 1.

    Raises:
        InvalidValueError: If it is anything else.
    """
    wanted = f"it must be multi-hot [N, {num_classes}], 1 for each class that a sample has and else 0"
    _check_tensor(target, wanted)
    if target.ndim != 2 or target.shape[1] != num_classes:
        ids = target.ndim == 1 and not target.is_floating_point()
        hint = " For one class id a sample there is ImageClassifier." if ids else ""
        raise InvalidValueError(f"The batch's target is {target.dtype} of shape {list(target.shape)}; {wanted}.{hint}")
    if not ((target >= 0) & (target <= 1)).all():
        low, high = (bound.item() for bound in target.aminmax())
        raise InvalidValueError(f"A batch has targets from {low:g} to {high:g}; {wanted}.")


def check_values(target: Any, num_outputs: int) -> None:
    """Check that a target is finite floats ``[N, D]``, or ``[N]`` where D is 1.

    Raises:
        InvalidValueError: If it is anything else.
    """
    wanted = f"it must be floats [N, {num_outputs}]" + (" or [N]" if num_outputs == 1 else "")
    _check_tensor(target, wanted)
    if not target.is_floating_point():
        raise InvalidValueError(
            f"The batch's target is {target.dtype} of shape {list(target.shape)}; {wanted}. For class ids there is "
            "ImageClassifier; numbers that are values need .float()."
        )
    if target.shape[1:] != (num_outputs,) and not (num_outputs == 1 and target.ndim == 1):
        hint = f" Write --model.num_outputs={target.shape[1]}, or mend the target." if target.ndim == 2 else ""
        raise InvalidValueError(f"The batch's target is {target.dtype} of shape {list(target.shape)}; {wanted}.{hint}")
    if not target.isfinite().all():
        raise InvalidValueError("A batch has targets that are NaN or infinite; leave those samples out.")


def _check_tensor(target: Any, wanted: str) -> None:
    if not isinstance(target, Tensor):
        raise InvalidValueError(f"The batch's target is a {type(target).__name__}; {wanted}, as a tensor.")


def explain_input(x: Any, network: str, in_channels: int, image_size: int, dtype: torch.dtype) -> str | None:
    """Why a network given by name could not take ``x``; None if the shape and type of ``x`` are not why.

    Args:
        x: The input.
        network: The network's name.
        in_channels: The channels it was built for.
        image_size: The pixels a side, for ``mlp``.
        dtype: The type of its weights.
    """
    if not isinstance(x, Tensor):
        return f"The batch's input is a {type(x).__name__}; network={network} takes a tensor of images."
    shape = list(x.shape)
    if network == "mlp":
        wanted = in_channels * image_size**2
        if x.ndim < 2 or math.prod(shape[1:]) != wanted:
            features = (
                f" For vectors [N, {shape[1]}] write in_channels={shape[1]}, image_size=1." if x.ndim == 2 else ""
            )
            return (
                f"The batch's input has shape {shape}; network=mlp with in_channels={in_channels} and "
                f"image_size={image_size} takes {wanted} numbers a sample.{features}"
            )
    elif x.ndim != 4 or shape[1] != in_channels:
        vectors = " For vectors there is network=mlp." if x.ndim == 2 else ""
        return (
            f"The batch's input has shape {shape}; network={network} takes images [N, {in_channels}, H, W] "
            f"(in_channels={in_channels}).{vectors}"
        )
    if not x.is_floating_point() or x.dtype == torch.float64 != dtype:
        return f"The batch's input is {x.dtype}, the network's weights are {dtype}; convert the data with .float()."
    return None
