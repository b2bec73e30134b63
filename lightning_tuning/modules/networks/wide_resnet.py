"""Wide ResNet (Zagoruyko & Komodakis, 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from .init import init_weights


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; the 1x1 shortcut takes the activated input."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or inside != outside:
            self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def wrn_16_2(in_channels: int, num_classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Wide ResNet of 16 layers, twice as wide, without dropout in its blocks: three stages of two blocks.

    691,674 parameters with 3 channels and 10 classes.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        dropout: Probability that a feature before the last layer is dropped, in [0, 1).
    """
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
    inside = 16
    for outside, stride in ((32, 1), (64, 2), (128, 2)):
        layers += [PreActivationBlock(inside, outside, stride), PreActivationBlock(outside, outside, 1)]
        inside = outside
    head = nn.Linear(inside, num_classes)
    pooled = [nn.BatchNorm2d(inside), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    network = nn.Sequential(*layers, *pooled, head)
    init_weights(network, head)
    return network
