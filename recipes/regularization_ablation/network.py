"""An ordinary residual network, written without a thought of this package."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.shortcut(x) + self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))))


class SmallResNet(nn.Module):
    """A stem of stride 2 and three blocks of 16, 32 and 64 channels: 77,562 weights.

    Args:
        in_channels: Channels of the images ``[N, in_channels, H, W]``.
        num_classes: Number of logits.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, 16, 3, 2, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16), Block(16, 32, 2), Block(32, 64, 2))
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.flatten(self.blocks(self.stem(x)).mean((2, 3)), 1)
        return self.head(self.dropout(features))
