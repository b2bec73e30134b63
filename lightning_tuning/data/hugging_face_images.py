"""Images in a column of a dataset of the Hugging Face library `datasets`, each read when it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.decode import MAX_PIXELS, decode_image, decode_size, image_size, read_image
from lightning_tuning.data.image_pixels import over_white, with_channels


class HuggingFaceImages(Sequence[np.ndarray]):
    """The images of a column, of several tables one behind the other: ``images[index]`` is uint8 ``[H, W, channels]``.

    Args:
        tables: Datasets of the library by what messages call them, in which image files are not decoded, and arrays are
            those of numpy.
        column: The column of the images.
        channels: 3 for RGB, 1 for grey.
        max_pixels: The largest height times width that is decoded.
    """

    def __init__(self, tables: Mapping[str, Any], column: str, channels: int = 3, max_pixels: int = MAX_PIXELS) -> None:
        self.tables = dict(tables)
        self.column = column
        self.channels = channels
        self.max_pixels = max_pixels
        self._starts = np.cumsum([0, *map(len, self.tables.values())])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        """Read and decode one image.

        Raises:
            BadSampleError: It is missing or bad, or is no image.
        """
        stored, name = self._read(index)
        if isinstance(stored, bytes):
            return decode_image(stored, name, self.channels, max_pixels=self.max_pixels)
        if isinstance(stored, str):
            return read_image(stored, self.channels, max_pixels=self.max_pixels)
        return np.ascontiguousarray(with_channels(over_white(_checked(stored, name)), self.channels))

    def shape(self, index: int) -> tuple[int, int, int]:
        """The shape of an image, without decoding it."""
        stored, name = self._read(index)
        if isinstance(stored, bytes):
            size = decode_size(stored, name)
        else:
            size = image_size(stored) if isinstance(stored, str) else _checked(stored, name).shape[:2]
        return (*size, self.channels)

    def identity(self, index: int) -> str:
        """A text that changes with the dataset: the library's fingerprint, and the row."""
        name, row = self._place(index)
        return f"{self.tables[name]._fingerprint} {row} {self.channels}"

    def _place(self, index: int) -> tuple[str, int]:
        """Table and row."""
        index = range(len(self))[index]
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return [*self.tables][number], index - int(self._starts[number])

    def _read(self, index: int) -> tuple[bytes | str | np.ndarray, str]:
        """What is stored, the content of a file, its path or an array, and what messages call it."""
        name, row = self._place(index)
        stored = self.tables[name][row][self.column]
        if isinstance(stored, dict):
            stored = stored["path"] if stored["bytes"] is None else stored["bytes"]
        if stored is None:
            raise BadSampleError(f"{name}/{row}", "it is None", "Take the row out of the dataset.")
        return stored if isinstance(stored, (bytes, str)) else np.asarray(stored), f"{name}/{row}"


def _checked(pixels: np.ndarray, name: str) -> np.ndarray:
    """An array that is an image, as uint8 ``[H, W, 1 to 4]``."""
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 2, 3, 4))
    if pixels.dtype.kind not in "iu" or not is_image or not pixels.size:
        raise BadSampleError(
            name,
            f"it is {pixels.dtype} {list(pixels.shape)}",
            "It must be integers [H, W] or [H, W, C] with 1 to 4 channels.",
        )
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 255:
        raise BadSampleError(name, f"its values are from {low} to {high}", "They must be from 0 to 255.")
    return pixels.reshape(*pixels.shape[:2], -1).astype(np.uint8)
