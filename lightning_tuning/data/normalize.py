"""From uint8 images to normalised tensors, once for a whole batch, where the batch is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_range

_MAPPED_ANEW = 2**25
"""From so many bytes on, the C library gives memory back at once, and the next batch gets fresh pages. In pieces of
4 KB the system would take as long to clear them as normalising takes."""


def stack(images: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """Images ``[H, W, C]`` of one size as a batch ``[N, C, H, W]``, in memory as they are: channels last."""
    batch = images if isinstance(images, np.ndarray) else np.stack(images)
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


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
    def fit(cls, images: Iterable[np.ndarray]) -> Normalize:
        """The one that gives ``images``, uint8 ``[H, W, C]`` each, mean 0 and standard deviation 1 in each channel.

        It counts how often each of the 256 values comes, so it is exact and holds one image at a time.
        """
        counts = sum(_histogram(image) for image in images)
        values = np.arange(256) / 255
        share = counts / np.sum(counts, axis=1, keepdims=True)
        mean = share @ values
        std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
        return cls(mean.tolist(), np.maximum(std, 1e-6).tolist())

    def __call__(self, images: Iterable[np.ndarray]) -> Tensor:
        """Stack uint8 images ``[H, W, C]`` into a normalised float32 batch ``[N, C, H, W]``."""
        return self.batch(stack(list(images)))

    def batch(self, x: Tensor) -> Tensor:
        """Of a uint8 batch ``[N, C, H, W]`` the normalised float32 one, on the same device."""
        if x.device != self._shift.device:
            self._shift, self._scale = self._shift.to(x.device), self._scale.to(x.device)
        return _empty(x).copy_(x).sub_(self._shift).div_(self._scale)


def check_statistics(mean: list[float] | None, std: list[float] | None, channels: int | None = None) -> None:
    """Refuse statistics that nothing can be normalised with.

    Args:
        mean: Of each channel, in [0, 1].
        std: Of each channel, above 0. It comes with ``mean``.
        channels: How many there are. None: that is not known yet.
    """
    for name, values in {"mean": mean, "std": std}.items():
        if values is None:
            continue
        if channels is not None and len(values) != channels:
            numbers = "1 number" if channels == 1 else f"{channels} numbers"
            raise InvalidValueError(f"{name} is {values!r}; it must have {numbers}, one for each channel.")
        for value in values:
            check_range(name, value, 0.0, 1.0, open_low=name == "std")
    if (mean is None) != (std is None):
        raise InvalidValueError(f"mean is {mean!r} and std is {std!r}; give both or none.")


def _empty(x: Tensor) -> Tensor:
    """Uninitialised float32 memory of the shape of ``x`` on its device."""
    if x.device.type != "cpu" or 4 * x.numel() < _MAPPED_ANEW:
        return torch.empty(x.shape, device=x.device)
    # NumPy asks the system for large pages, PyTorch does not. 64 bytes are what PyTorch aligns to.
    memory = np.empty(x.numel() + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return torch.from_numpy(memory[start : start + x.numel()]).view(x.shape)


def _histogram(image: np.ndarray) -> np.ndarray:
    """How often each value comes in each channel: ``[C, 256]``."""
    return np.stack([np.bincount(channel, minlength=256) for channel in image.reshape(-1, image.shape[-1]).T])
