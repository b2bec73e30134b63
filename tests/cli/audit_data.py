"""Data for the audit that can be named on the command line."""

from pathlib import Path

import numpy as np

from lightning_tuning.data import BadSampleError, ImageDataModule
from tests.data.audit.fakes import Samples, noise


class Photographs(ImageDataModule):
    """Small images.

    Args:
        bad: Which image cannot be read.
        copied: Whether the first two images are equal.
        pale: Whether the third one is of one colour.
        broken: Whether loading fails as a bug would.
    """

    in_channels, num_classes, class_names = 3, 2, ("cat", "dog")

    def __init__(self, bad: int | None = None, copied: bool = False, pale: bool = False, broken: bool = False):
        super().__init__(image_size=8, val_size=4, test_size=4)
        self.bad, self.copied, self.pale, self.broken = bad, copied, pale, broken

    def load(self):
        if self.broken:
            raise KeyError("a bug")
        images = [noise(seed) for seed in range(20)]
        if self.copied:
            images[: self.num_classes] = images[0], images[0]
        if self.pale:
            images[2][:] = 9
        bad = {} if self.bad is None else {self.bad: BadSampleError("a.png", "it is empty", "Copy it again.")}
        return Samples(images, bad), np.arange(20) % 2


class Noticed:
    """Leaves a file in the working folder when it is made.

    Args:
        name: Of the file.
    """

    def __init__(self, name: str = "made") -> None:
        Path(name).touch()
