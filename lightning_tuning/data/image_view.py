"""From images as they are read to a batch: augment each with its seed, stack, and normalise unless the device does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_tuning.data.normalize import Normalize, stack
from lightning_tuning.data.pipeline import SeededPipeline
from lightning_tuning.data.weak_batch import WeakBatch


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
        self._weak = WeakBatch.of(pipeline)

    def __call__(self, samples: Sequence[np.ndarray], seeds: np.ndarray | None) -> Tensor:
        """Of uint8 images ``[H, W, C]`` the batch ``[B, C, H, W]``."""
        batch = self.unnormalized(samples, seeds)
        return batch if self.normalize is None else self.normalize.batch(batch)

    def unnormalized(self, samples: Sequence[np.ndarray], seeds: np.ndarray | None) -> Tensor:
        """The batch in uint8."""
        if self._weak is not None and seeds is not None and self._weak.takes(samples):
            return stack(self._weak(samples, seeds))
        return stack([self.pipeline(image, seed) for image, seed in _seeded(samples, seeds)])


class MaskedImageView(ImageView):
    """One view of a batch of images with masks, which are moved alike."""

    def __call__(  # type: ignore[override]
        self, samples: Sequence[tuple[np.ndarray, np.ndarray]], seeds: np.ndarray | None
    ) -> tuple[Tensor, Tensor]:
        """The batch ``[B, C, H, W]`` and the class ids of its pixels, int64 ``[B, H, W]``."""
        x, masks = self.unnormalized(samples, seeds)
        return x if self.normalize is None else self.normalize.batch(x), masks

    def unnormalized(  # type: ignore[override]
        self, samples: Sequence[tuple[np.ndarray, np.ndarray]], seeds: np.ndarray | None
    ) -> tuple[Tensor, Tensor]:
        """The batch in uint8, and the masks."""
        moved = [self.pipeline(image, seed, mask) for (image, mask), seed in _seeded(samples, seeds)]
        images, masks = zip(*moved, strict=True)
        return stack(images), torch.from_numpy(np.stack(masks).astype(np.int64))


def _seeded(samples: Sequence[Any], seeds: np.ndarray | None) -> Iterator[tuple[Any, int]]:
    """Each sample with its seed."""
    return zip(samples, [0] * len(samples) if seeds is None else seeds.tolist(), strict=True)
