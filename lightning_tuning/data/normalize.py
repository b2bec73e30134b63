"""From uint8 images to normalised tensors, once for a whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class Normalize:
    """``(image / 255 - mean) / std`` of a batch.

    Args:
        mean: Mean of each channel, of values in [0, 1].
        std: Standard deviation of each channel, above 0.

    Example:
        >>> Normalize([0.5], [0.5])([np.full((1, 2, 1), 255, np.uint8)]).tolist()
        [[[[1.0, 1.0]]]]
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._shift = 255 * torch.tensor(self.mean).view(-1, 1, 1)
        self._scale = 255 * torch.tensor(self.std).view(-1, 1, 1)

    @classmethod
    def fit(cls, images: np.ndarray) -> Normalize:
        """The one that gives ``images``, uint8 ``[N, H, W, C]``, mean 0 and standard deviation 1 in each channel."""
        pixels = images.reshape(-1, images.shape[-1]) / 255
        return cls(pixels.mean(axis=0).tolist(), np.maximum(pixels.std(axis=0), 1e-6).tolist())

    def __call__(self, images: Iterable[np.ndarray]) -> Tensor:
        """Stack uint8 images ``[H, W, C]`` into a normalised float32 batch ``[N, C, H, W]``."""
        batch = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2)
        return batch.to(torch.float32, memory_format=torch.contiguous_format).sub_(self._shift).div_(self._scale)
