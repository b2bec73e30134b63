"""Images in files, decoded when they are asked for, alone or with their masks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.decode import MAX_PIXELS, image_size, read_image, read_mask

ENDINGS = frozenset(["bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "tif", "tiff", "webp"])
"""How the names of image files end, behind the dot and in small letters."""
_NOT_MEANT = frozenset({"thumbs.db", "desktop.ini"})


class ImageFiles(Sequence[np.ndarray]):
    """The images of files, uint8 ``[H, W, C]`` each, of any size.

    Args:
        paths: The files.
        channels: 3 for RGB, 1 for grey.
        max_pixels: The largest height times width that is decoded.
    """

    def __init__(self, paths: Sequence[str | Path], channels: int = 3, max_pixels: int = MAX_PIXELS) -> None:
        self.paths = [os.fspath(path) for path in paths]
        self.channels = channels
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return read_image(self.paths[index], self.channels, max_pixels=self.max_pixels)

    def shape(self, index: int) -> tuple[int, int, int]:
        """The shape of an image, from its file's header alone."""
        return (*image_size(self.paths[index]), self.channels)

    def identity(self, index: int) -> str:
        """A text that changes with the file: its path, size and time of change."""
        try:
            status = os.stat(self.paths[index])
        except OSError:
            return f"{self.paths[index]} is missing"
        return f"{os.path.abspath(self.paths[index])} {status.st_size} {status.st_mtime_ns} {self.channels}"


class MaskedImages(Sequence[tuple[np.ndarray, np.ndarray]]):
    """Images with the class id of each pixel: uint8 ``[H, W, C]``, and uint8 or int32 ``[H, W]``.

    Args:
        images: The images.
        masks: The files of their masks.
        num_classes: Class ids must be below it, or ``ignore_index``.
        ignore_index: Stands for pixels that have no class.
        drawn_on: Whether masks without an EXIF rotation of their own were drawn on the images as they are stored or as
            they are shown; see :func:`~lightning_tuning.data.decode.read_mask`.

    Attributes:
        pixels: What the images are read from: ``images``, or a cache of them.
    """

    def __init__(
        self,
        images: ImageFiles,
        masks: Sequence[str | Path],
        num_classes: int,
        ignore_index: int = 255,
        drawn_on: Literal["auto", "stored", "shown"] = "auto",
    ) -> None:
        self.images = images
        self.pixels: Sequence[np.ndarray] = images
        self.masks = [os.fspath(path) for path in masks]
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.drawn_on: Literal["auto", "stored", "shown"] = drawn_on

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[np.ndarray, np.ndarray]]: ...
    def __getitem__(self, index: int | slice) -> tuple[np.ndarray, np.ndarray] | list[tuple[np.ndarray, np.ndarray]]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        path = self.masks[index]
        mask = read_mask(path, self.images.paths[index], self.drawn_on, max_pixels=self.images.max_pixels)
        strange = np.setdiff1d(mask, [*range(self.num_classes), self.ignore_index])
        if len(strange):
            raise BadSampleError(
                path,
                f"it holds the class ids {', '.join(map(str, strange[:5]))}{', ...' if len(strange) > 5 else ''}, but "
                f"there are {self.num_classes} classes, from 0, and {self.ignore_index} for pixels without one",
                "Correct the mask, or name all classes.",
            )
        return self.pixels[index], mask.astype(np.uint8 if mask.max() < 256 else np.int32)

    def identity(self, index: int) -> str:
        """A text that changes with the image's file."""
        return self.images.identity(index)


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """The image files in a folder and all below it, told by their endings, and what else is there, both in order.

    Hidden files and folders are left out. Links are followed, each folder once.
    """
    images, others = [], []
    for path in _files(folder, set()):
        if path.suffix[1:].lower() in ENDINGS:
            images.append(path)
        elif path.name.lower() not in _NOT_MEANT:
            others.append(path)
    return images, others


def _files(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, seen)
        else:
            yield path
