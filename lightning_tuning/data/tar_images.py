"""Images that lie in tar files, each read by its place when it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.decode import MAX_PIXELS, decode_image, decode_size
from lightning_tuning.data.image_header import AGAIN

MOST_OPEN = 128
"""How many tar files a process keeps open at once."""


class TarImages(Sequence[np.ndarray]):
    """The images of tar files: ``images[index]`` is uint8 ``[H, W, channels]``.

    Tar files are opened when first read from, in each process anew. Reads carry their offset, so that processes that
    were forked can share what was open before.

    Args:
        shards: The tar files.
        places: Of each image the number of its tar file, and offset and size in it, int64 ``[N, 3]``.
        names: Of each image the name of its member.
        channels: 3 for RGB, 1 for grey.
        max_pixels: The largest height times width that is decoded.
    """

    def __init__(
        self,
        shards: Sequence[str],
        places: np.ndarray,
        names: Sequence[str],
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.shards = list(shards)
        self.places = places
        self.names = names
        self.channels = channels
        self.max_pixels = max_pixels
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        """Read and decode one image.

        Raises:
            BadSampleError: It is bad, or its tar file has become shorter or is gone.
        """
        return decode_image(*self._read(index), self.channels, max_pixels=self.max_pixels)

    def shape(self, index: int) -> tuple[int, int, int]:
        """The shape of an image, without decoding it."""
        return (*decode_size(*self._read(index)), self.channels)

    def identity(self, index: int) -> str:
        """A text that changes with the image's tar file and its place there."""
        shard, offset, _ = self.places[index].tolist()
        path = os.path.abspath(self.shards[shard])
        try:
            status = os.stat(path)
        except OSError:
            return f"{path} is missing"
        return f"{path} {status.st_size} {status.st_mtime_ns} {offset} {self.channels}"

    def _read(self, index: int) -> tuple[bytes, str]:
        """Content and name of a member."""
        shard, offset, size = self.places[index].tolist()
        name = f"{self.shards[shard]}/{self.names[index]}"
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise BadSampleError(name, f"its tar file cannot be read ({error.strerror})", AGAIN) from None
        if len(data) < size:
            raise BadSampleError(name, "its tar file has become shorter since it was indexed", AGAIN)
        return data, name

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            if len(self._open) == MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)
