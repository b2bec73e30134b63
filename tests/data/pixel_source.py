"""Images for tests of caches."""

import os

import numpy as np

from lightning_tuning.data import BadSampleError

SHAPES = [(5, 7, 3), (4, 4, 3), (1, 1, 3), (6, 2, 3), (3, 9, 3)]


def image(index):
    return np.random.default_rng(index).integers(0, 256, SHAPES[index], dtype=np.uint8)


class Source:
    """Notes which images were decoded. ``bad`` ones cannot be."""

    def __init__(self, bad=()):
        self.asked = []
        self.bad = bad

    def __len__(self):
        return len(SHAPES)

    def __getitem__(self, index):
        self.asked.append(index)
        if index in self.bad:
            raise BadSampleError(f"{index}.png", "it is empty", "Copy it again.")
        return image(index)


class Nothing(Source):
    def __getitem__(self, index):
        raise AssertionError(f"{index} was decoded")


def only_file(folder):
    (name,) = os.listdir(folder)
    return folder / name


def check(cache, times=1):
    for index in [*range(len(SHAPES))] * times:
        np.testing.assert_array_equal(cache[index], image(index))
