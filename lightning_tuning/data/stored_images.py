"""Images in arrays that stay on disk: only what is read is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import cv2
import numpy as np


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image ``[H, W, C]`` as ``[size, size, C]``: averaged if it shrinks, else interpolated."""
    if image.shape[:2] == (size, size):
        return image
    method = cv2.INTER_AREA if size < image.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=method).reshape(size, size, image.shape[2])


class StoredImages(Sequence[np.ndarray]):
    """The images of several ``.npy`` files, one file after the other, each mapped into memory by each process.

    Args:
        paths: The files, uint8 ``[N, H, W]`` or ``[N, H, W, C]`` each.
        size: Height and width to which an image is resized when it is read.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = [*paths]
        self.size = size
        self._arrays: list[np.ndarray] | None = None
        self._ends = np.cumsum([len(array) for array in self._mapped()])

    def _mapped(self) -> list[np.ndarray]:
        if self._arrays is None:
            self._arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in self.paths]
        return self._arrays

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        image = np.array(self._mapped()[number][index - self._ends[number]])  # counted from the array's end
        return resized(image.reshape(*image.shape[:2], -1), self.size)

    def __getstate__(self) -> dict:
        """Without the arrays, whose contents would be copied."""
        return {**self.__dict__, "_arrays": None}
