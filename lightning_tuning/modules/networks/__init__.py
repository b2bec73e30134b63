"""Small image networks by name, written for images of 8 to 64 pixels."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from lightning_tuning.errors import check_choice, check_range

from .basic import cnn, mlp
from .resnet import resnet18
from .wide_resnet import wrn_16_2

NetworkName = Literal["mlp", "cnn", "resnet18", "wrn_16_2"]

__all__ = ["NetworkName", "build_network", "cnn", "mlp", "resnet18", "wrn_16_2"]


def build_network(
    name: str, in_channels: int = 1, num_classes: int = 10, image_size: int = 16, dropout: float = 0.0
) -> nn.Module:
    """Build a network by name, its weights drawn from torch's default generator.

    Args:
        name: ``mlp``, ``cnn``, ``resnet18`` or ``wrn_16_2``.
        in_channels: Channels of the images, at least 1.
        num_classes: Number of outputs, at least 1.
        image_size: Height and width of the images in pixels; only ``mlp`` is built for one size. With 1 it takes
            vectors ``[N, in_channels]`` too.
        dropout: Probability that a feature before the last layer (in ``mlp`` before each but the first) is dropped,
            in [0, 1).

    Returns:
        A module that turns images ``[N, in_channels, H, W]`` into outputs ``[N, num_classes]``.

    Raises:
        InvalidValueError: If the name is unknown or a number is too small.

    Example:
        >>> import torch
        >>> build_network("cnn", in_channels=3, num_classes=7)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 7])
    """
    check_choice("network", name, get_args(NetworkName), "an nn.Module that returns logits [N, num_classes]")
    check_range("in_channels", in_channels, 1)
    check_range("num_classes", num_classes, 1)
    check_range("image_size", image_size, 1)
    check_range("dropout", dropout, 0.0, 1.0, open_high=True)
    if name == "mlp":
        return mlp(in_channels, num_classes, image_size, dropout)
    return {"cnn": cnn, "resnet18": resnet18, "wrn_16_2": wrn_16_2}[name](in_channels, num_classes, dropout)
