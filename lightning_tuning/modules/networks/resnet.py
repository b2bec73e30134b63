"""ResNet-18 for small images (He et al., 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from .init import init_weights


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added, projected by a 1x1 convolution where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet18(in_channels: int, num_classes: int, dropout: float = 0.0) -> nn.Sequential:
    """ResNet-18 whose stem is one 3x3 convolution of stride 1 without max-pooling, as is usual on 32x32 images.

    The ImageNet stem (7x7, stride 2, max-pool) would leave a 32x32 image one pixel in the last stage. 11,173,962
    parameters with 3 channels and 10 classes.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        dropout: Probability that a feature before the last layer is dropped, in [0, 1).
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
    ]
    inside = 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(inside, outside, stride), BasicBlock(outside, outside, 1)]
        inside = outside
    head = nn.Linear(inside, num_classes)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), head)
    init_weights(network, head)
    return network
