"""A multi-layer perceptron and a small convolutional network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .init import init_weights


def mlp(in_channels: int, num_classes: int, image_size: int, dropout: float = 0.0, hidden: int = 256) -> nn.Sequential:
    """Two hidden ReLU layers on the flattened image, without any norm layer.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Height and width of the images in pixels.
        dropout: Probability that a hidden unit is dropped, in [0, 1).
        hidden: Width of each hidden layer.
    """
    head = nn.Linear(hidden, num_classes)
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        head,
    )
    init_weights(network, head)
    return network


class ChannelsLast(nn.Module):
    """Lay images ``[N, C, H, W]`` out with the channels last; the convolutions that follow keep that layout.

    On a CPU this makes ``cnn`` a third faster. Converting the weights instead does the same, but code that calls
    ``weight.view(...)`` would then fail.
    """

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        if channels == 1:  # counts as both layouts already, so contiguous() would leave the strides alone
            return x.reshape(n, height, width, 1).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last)


def cnn(
    in_channels: int, num_classes: int, dropout: float = 0.0, widths: tuple[int, int, int] = (16, 64, 128)
) -> nn.Sequential:
    """Three blocks of 3x3 convolution, batch norm and ReLU, the first two halving the image, then the global average.

    Made for grey or colour images of 8 to 32 pixels; about 85,000 parameters. The max-pooling stands right after the
    convolution, so that norm and ReLU see a quarter of the pixels.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        dropout: Probability that a feature before the last layer is dropped, in [0, 1).
        widths: Channels after each block.
    """
    layers: list[nn.Module] = [ChannelsLast()]
    for block, (inside, outside) in enumerate(zip((in_channels, *widths[:2]), widths, strict=True)):
        # The batch norm takes any bias away again, so the convolution has none.
        layers.append(nn.Conv2d(inside, outside, 3, padding=1, bias=False))
        if block < 2:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
    head = nn.Linear(widths[-1], num_classes)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), head)
    init_weights(network, head)
    return network
