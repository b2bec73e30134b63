"""Albumentations transforms driven by one seed for each call."""

from __future__ import annotations

import random
from collections.abc import Sequence

import albumentations as A
import numpy as np


class SeededPipeline:
    """Applies transforms one after the other; the result is a function of image and seed.

    Albumentations keeps a random state in every transform, which forked workers inherit and so repeat, and its
    ``set_random_seed`` gives all transforms of a list the same numbers. Here all transforms draw from one state, which
    is set anew at each call.

    Args:
        transforms: The transforms, in order. Empty: the image stays as it is.
        salt: Makes two pipelines draw different numbers from the same seed, 0 to 2**64 - 1.

    Example:
        >>> pipeline = SeededPipeline([A.RandomCrop(2, 2)])
        >>> image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
        >>> bool((pipeline(image, seed=5) == pipeline(image, seed=5)).all())
        True
    """

    def __init__(self, transforms: Sequence[A.BasicTransform | A.BaseCompose], salt: int = 0) -> None:
        self.transforms = list(transforms)
        self.salt = salt
        self._bits = np.random.Philox(key=0)
        self._state = self._bits.state
        self._numpy_random = np.random.Generator(self._bits)
        self._python_random = random.Random()

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Transform ``image``, uint8 ``[H, W, C]``, with the random numbers of ``seed``, 0 to 2**64 - 1."""
        # Writing the key of a counter-based generator takes a tenth of the time that seeding a new one takes.
        self._state["state"]["key"][:] = seed, self.salt
        self._bits.state = self._state
        self._python_random.seed(self.salt << 64 | int(seed))
        for transform in self.transforms:
            transform.set_random_state(self._numpy_random, self._python_random)
            image = transform(image=image)["image"]
        return image
