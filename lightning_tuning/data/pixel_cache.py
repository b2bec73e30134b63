"""Decoded images, kept, so that each is decoded once."""

from __future__ import annotations

import hashlib
import operator
import os
import zlib
from collections.abc import Sequence
from typing import overload

import cv2
import numpy as np
import PIL

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.image_files import ImageFiles
from lightning_tuning.data.memory import in_words
from lightning_tuning.data.pixel_blocks import Block, FileBlock, SharedBlock, read_only
from lightning_tuning.errors import InvalidValueError


class PixelCache(Sequence[np.ndarray]):
    """A sequence of images that remembers what it has read of another one.

    Worker processes, forked or spawned, fill and use the same cache. Each rank of a run has a cache ``ram`` of its own;
    one in a folder is shared by all ranks of a machine, by simultaneous runs and by later ones. A folder in
    ``/dev/shm`` is memory that is shared so. Caches in a folder are never removed, also when their images have changed.

    With each image a checksum is kept, and a process compares it before it uses the image for the first time. So an
    image of which only a part was written, by a process that was killed or before the power failed, is decoded again.

    Args:
        source: ``source[index]`` decodes an image, uint8 ``[H, W, C]``, or raises
            :class:`~lightning_tuning.data.BadSampleError`: then nothing is kept, and it is asked again the next time.
        shapes: ``(H, W, C)`` of each image, known without decoding, ``[N]``; None: the image is never kept, as one
            that proves to have another shape.
        where: ``ram``: shared memory, which is taken at once; else a folder, for a file whose room is taken as it is
            filled.
        key: What tells these images from all others, for a folder: names, sizes and modification times of their files,
            number of channels, and whatever else decides their pixels.

    Raises:
        InvalidValueError: The images would take more than four fifths of the memory or disk that is free, the folder
            cannot be used or has no key, or there are not as many shapes as images.

    Example:
        >>> cache = PixelCache([np.zeros((2, 3, 1), np.uint8), np.ones((4, 4, 1), np.uint8)], [(2, 3, 1), (4, 4, 1)])
        >>> int(cache[1].sum()), cache[1].flags.writeable
        (16, False)
        >>> cache.report()
        'cached 1 of 2 images, 0.0 MB'
    """

    def __init__(
        self,
        source: Sequence[np.ndarray],
        shapes: Sequence[tuple[int, int, int] | None],
        where: str | os.PathLike[str] = "ram",
        key: str | bytes = b"",
    ) -> None:
        if len(shapes) != len(source):
            raise InvalidValueError(f"There are {len(shapes)} shapes of {len(source)} images; each needs one, or None.")
        self.source = source
        self._shapes = np.array([(0, 0, 0) if shape is None else shape for shape in shapes], np.int64).reshape(-1, 3)
        self._ends = np.cumsum(self._shapes.prod(axis=1))
        num_images, num_bytes = len(source), int(self._ends[-1]) if len(source) else 0
        if where == "ram":
            self._block: Block = SharedBlock.make(num_images, num_bytes)
        else:
            if not key:
                raise InvalidValueError(f"cache is {os.fspath(where)!r}; there it needs a key of the images.")
            key = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
            digest = hashlib.sha256(self._shapes.astype("<i8").tobytes() + key).digest()
            self._block = FileBlock(where, digest, num_images, num_bytes)
        self._compared = np.zeros(num_images, bool)  # by this process

    @classmethod
    def of_files(cls, files: ImageFiles, where: str | os.PathLike[str] = "ram") -> PixelCache:
        """A cache of the images of files, which reads the header of each file first.

        Args:
            files: The images. Bad ones, and those above ``max_pixels``, get no room.
            where: See :class:`PixelCache`. In a folder, a cache is used again as long as no file changes.
        """
        shapes = [_shape_of(files, index) for index in range(len(files))]
        # Another release of a decoder may give other pixels.
        decoders = [f"OpenCV {cv2.__version__}", f"Pillow {PIL.__version__}"]
        return cls(files, shapes, where, "\n".join([*decoders, *map(files.identity, range(len(files)))]))

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """The image, uint8 ``[H, W, C]``, which cannot be written to; of a slice, a list of them.

        Raises:
            BadSampleError: There is no usable image.
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[operator.index(index)]
        shape = tuple(self._shapes[index].tolist())
        end = int(self._ends[index])
        start = end - shape[0] * shape[1] * shape[2]
        pixels = self._block.pixels[start:end]
        if self._compared[index] or self._is_whole(index, pixels):
            return pixels.reshape(shape)
        image = self.source[index]
        if image.dtype == np.uint8 and image.shape == shape:
            contiguous = np.ascontiguousarray(image)
            self._block.write(index, start, contiguous, _checksum(contiguous))
        return read_only(image)

    def _is_whole(self, index: int, pixels: np.ndarray) -> bool:
        checksum = self._block.sums[index]
        self._compared[index] = checksum != 0 and checksum == _checksum(pixels)
        return bool(self._compared[index])

    def report(self) -> str:
        """How many images are kept, and their bytes."""
        kept = self._block.sums != 0
        size = self._shapes.prod(axis=1)[kept].sum()
        return f"cached {kept.sum()} of {len(self)} images, {in_words(size)}"

    def __repr__(self) -> str:
        return f"PixelCache({self._block}: {self.report()})"


def _shape_of(files: ImageFiles, index: int) -> tuple[int, int, int] | None:
    try:
        shape = files.shape(index)
    except BadSampleError:
        return None
    return shape if shape[0] * shape[1] <= files.max_pixels else None


def _checksum(pixels: np.ndarray) -> int:
    """Never 0, which stands for no image."""
    return zlib.crc32(pixels.data) or 1
