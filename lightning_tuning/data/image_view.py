"""From images as they are read to a batch: augment each with its seed, stack, and normalise unless the device does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lightning_tuning.data.normalize import Normalize, stack
from lightning_tuning.data.pipeline import SeededPipeline


class ImageView:
    """One view of a batch of images.

    Args:
        pipeline: Augments an image with a seed.
        normalize: Makes float32 of the batch. None: it stays uint8, a quarter of the bytes to hand over, and is
            normalised on the device.
    """

    def __init__(self, pipeline: SeededPipeline, normalize: Normalize | None) -> None:
        self.pipeline = pipeline
        self.normalize = normalize

    def __call__(self, samples: Sequence[np.ndarray], seeds: np.ndarray | None) -> Tensor:
        """Of uint8 images ``[H, W, C]`` the batch ``[B, C, H, W]``."""
        keys = [0] * len(samples) if seeds is None else seeds.tolist()
        batch = stack([self.pipeline(image, seed) for image, seed in zip(samples, keys, strict=True)])
        return batch if self.normalize is None else self.normalize.batch(batch)
