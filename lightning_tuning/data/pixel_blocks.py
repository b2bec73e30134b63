"""Where the bytes of a cache of images lie: in memory that processes share, or in a file that outlives them."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
import weakref
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_tuning.data.memory import available_memory, check_room
from lightning_tuning.errors import InvalidValueError

SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps the memory that processes share; a container often has little of it."""
_MAGIC = b"lightning_tuning pixels, form 1\n"
_SMALLER = "or store the images smaller."


class Block(Protocol):
    """Room for the pixels of all images, one after the other, and a checksum of each.

    Attributes:
        pixels: uint8, read-only.
        sums: uint32 ``[N]``, read-only; 0: the image is not there.
    """

    pixels: np.ndarray
    sums: np.ndarray

    def write(self, index: int, start: int, pixels: np.ndarray, checksum: int) -> None:
        """Put contiguous ``pixels`` at byte ``start``, then the checksum of the image ``index``."""


class SharedBlock:
    """A block in shared memory: forked workers inherit it, spawned ones get a handle.

    Args:
        pixels: uint8, in shared memory.
        sums: int32 ``[N]``, in shared memory.
    """

    def __init__(self, pixels: Tensor, sums: Tensor) -> None:
        self._tensors = pixels, sums
        self._pixels, self._sums = pixels.numpy(), sums.numpy().view(np.uint32)
        self.pixels, self.sums = read_only(self._pixels), read_only(self._sums)

    @classmethod
    def make(cls, num_images: int, num_bytes: int) -> SharedBlock:
        """An empty block.

        Raises:
            InvalidValueError: It would take more than four fifths of the memory that is available.
        """
        what, remedy = f"cache is 'ram', but {num_images} decoded images", "Write a folder in place of 'ram', "
        check_room(what, num_bytes, available_memory(), "in memory", remedy + _SMALLER)
        if os.path.isdir(SHARED_MEMORY):
            free = shutil.disk_usage(SHARED_MEMORY).free
            remedy = f"Enlarge it (docker run --shm-size), write a folder in place of 'ram', {_SMALLER}"
            check_room(what, num_bytes, free, f"in {SHARED_MEMORY}, where shared memory lies", remedy)
        # Not torch.empty: under deterministic algorithms it writes to all of the memory, and then there are two blocks.
        pixels = torch.from_numpy(np.empty(num_bytes, np.uint8))
        return cls(pixels.share_memory_(), torch.zeros(num_images, dtype=torch.int32).share_memory_())

    def __reduce__(self) -> tuple:
        return SharedBlock, self._tensors

    def __str__(self) -> str:
        return "ram"

    def write(self, index: int, start: int, pixels: np.ndarray, checksum: int) -> None:
        self._pixels[start : start + pixels.size] = pixels.ravel()
        self._sums[index] = checksum


class FileBlock:
    """A block in a file, mapped into memory, that later and simultaneous runs use too.

    The file takes room on the disk as it is filled. A file of the same name that is no such block, or not a whole one,
    is left as it is, with a warning, and another one made. Pickled, a block is a few hundred bytes: it is opened anew.

    Args:
        folder: Its folder, which is made.
        digest: 32 bytes that tell the images from all others.
        num_images: Number of images.
        num_bytes: Bytes of all images.

    Raises:
        InvalidValueError: The folder cannot be used, or the file would take more than four fifths of its disk's room.
    """

    def __init__(self, folder: str | os.PathLike[str], digest: bytes, num_images: int, num_bytes: int) -> None:
        self._folder = Path(folder).expanduser().absolute()
        self._arguments = str(self._folder), digest, num_images, num_bytes
        self._header = _MAGIC + digest
        self._start = len(self._header) + 4 * num_images
        self._size = self._start + num_bytes
        self._complained = False
        try:
            self.path, self._file = self._opened(digest[:8].hex())
            weakref.finalize(self, self._file.close)
            whole = np.asarray(np.memmap(self._file, np.uint8, "r"))
        except OSError as error:
            raise InvalidValueError(
                f"cache is {str(self._folder)!r}, where no file can be kept: {error}. Write 'ram' or a folder that can "
                "be written to."
            ) from None
        self.sums = whole[len(self._header) : self._start].view("<u4")
        self.pixels = whole[self._start :]

    def __reduce__(self) -> tuple:
        return FileBlock, self._arguments

    def __str__(self) -> str:
        return str(self.path)

    def write(self, index: int, start: int, pixels: np.ndarray, checksum: int) -> None:
        # A full disk is an error here; through the mapped memory it would end the process.
        try:
            self._put(pixels, self._start + start)
            self._put(np.array([checksum], "<u4"), len(self._header) + 4 * index)
        except OSError as error:
            if not self._complained:
                warnings.warn(
                    f"The cache {self.path} cannot be written to ({error.strerror or error}). Images that are not in "
                    "it are decoded each time."
                )
            self._complained = True

    def _put(self, values: np.ndarray, place: int) -> None:
        rest = values.reshape(-1).view(np.uint8).data
        while rest:
            done = os.pwrite(self._file.fileno(), rest, place)
            rest, place = rest[done:], place + done

    def _opened(self, name: str) -> tuple[Path, BinaryIO]:
        """The first file of this name, or of this name and a number, that is this block."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = self._folder / f"pixels-{name}{f'-{number}' if number > 1 else ''}.cache"
            if not path.exists():
                self._make(path)
            file = open(path, "r+b", buffering=0)  # noqa: SIM115
            size = os.fstat(file.fileno()).st_size
            if size == self._size and file.read(len(self._header)) == self._header:
                return path, file
            file.close()
            fault = f"has {size} bytes in place of {self._size}" if size != self._size else "holds something else"
            warnings.warn(
                f"{path} is not the cache that its name says: it {fault}. It is left as it is, and another file is "
                "used. Remove it."
            )
            number += 1

    def _make(self, path: Path) -> None:
        """Put an empty block there, unless another process does so first. Nobody sees a part of it."""
        folder, _, num_images, _ = self._arguments
        check_room(
            f"cache is {folder!r}, but {num_images} decoded images",
            self._size,
            shutil.disk_usage(self._folder).free,
            "on its disk",
            f"Write a folder on a larger one, {_SMALLER}",
        )
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with open(part, "xb") as file:
                file.write(self._header)
                file.truncate(self._size)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(part, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of an array that cannot be written to.

    Example:
        >>> read_only(np.zeros(2)).flags.writeable
        False
    """
    view = array.view()
    view.flags.writeable = False
    return view
