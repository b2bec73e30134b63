"""The named pipeline 'weak' for a whole batch at once, bit for bit what the pipeline makes of each image."""

from __future__ import annotations

from _random import Random
from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np

from lightning_tuning.data.pipeline import SeededPipeline
from lightning_tuning.data.transforms import named_transforms


class WeakBatch:
    """Mirrors images if wanted, shifts them and fills with black, like a :class:`SeededPipeline` of the 'weak' list.

    Albumentations takes about 8 microseconds for each transform of each image, whatever it does. Here only the random
    numbers are drawn for each image; they are those that the transforms draw.

    Args:
        size: Height and width of the images in pixels, at least 1.
        padding: Furthest shift in pixels, at least 0.
        flip: Whether half of the images are mirrored.
        salt: That of the pipeline.

    Example:
        >>> pipeline = SeededPipeline(named_transforms("weak", 8), salt=3)
        >>> images = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
        >>> batch = WeakBatch.of(pipeline)(images, np.array([5, 6], dtype=np.uint64))
        >>> bool((batch == np.stack([pipeline(images[0], 5), pipeline(images[1], 6)])).all())
        True
    """

    def __init__(self, size: int, padding: int, flip: bool, salt: int = 0) -> None:
        self.size = size
        self.padding = padding
        self.flip = flip
        self.salt = salt

    @classmethod
    def of(cls, pipeline: SeededPipeline) -> WeakBatch | None:
        """What does the same as ``pipeline``, if it consists of the transforms of the 'weak' list; else None."""
        given = pipeline.transforms
        if not given or not isinstance(given[-1], A.RandomCrop):
            return None
        size, flip = given[-1].height, isinstance(given[0], A.HorizontalFlip)
        named = named_transforms("weak", size, flip=flip)
        if list(map(type, given)) != list(map(type, named)) or any(
            mine.to_dict() != theirs.to_dict()  # type: ignore[attr-defined]
            for mine, theirs in zip(given, named, strict=True)
        ):
            return None
        return cls(size, named[-2].padding, flip, pipeline.salt)  # type: ignore[attr-defined]

    def takes(self, images: Sequence[np.ndarray] | np.ndarray) -> bool:
        """Whether all images are ``[size, size, C]`` with the same ``C``."""
        shapes = {image.shape for image in images}
        return len(shapes) == 1 and shapes.pop()[:-1] == (self.size, self.size)

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Of images, uint8 ``[size, size, C]`` each, and seeds, uint64 ``[B]``, the batch ``[B, size, size, C]``."""
        size, far = self.size, 2 * self.padding
        batch = np.empty((len(images), size, size, images[0].shape[2]), np.uint8)
        # One small frame for all images stays in the cache. A padded batch would be several times slower: the system
        # clears its memory anew each time.
        frame = np.zeros((size + far, size + far, batch.shape[3]), np.uint8)
        inside = frame[self.padding : self.padding + size, self.padding : self.padding + size]
        # The class below random.Random, which adds checks of the seed's type: a tenth of the time.
        generator = Random()
        set_seed, draw, salt = generator.seed, generator.random, self.salt << 64
        for view, image, seed in zip(batch, images, seeds.tolist(), strict=True):
            set_seed(salt | seed)
            mirrored = self.flip and draw() < 0.5
            inside[...] = cv2.flip(image, 1).reshape(image.shape) if mirrored else image
            top, left = int((far + 1) * draw()), int((far + 1) * draw())
            view[...] = frame[top : top + size, left : left + size]
        return batch
