"""A view whose images are augmented all at once, on the device that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_tuning.data.device_augment import DeviceAugment
from lightning_tuning.data.image_view import ImageView


class Keyed(NamedTuple):
    """A batch on its way to the device that augments it.

    Attributes:
        view: The name of the view.
        x: Images, uint8 ``[B, C, H, W]``.
        seeds: The bits of an unsigned 64-bit number for each, int64 ``[B]``.
        masks: The class ids of their pixels, int64 ``[B, H, W]``. None: there are none.
    """

    view: str
    x: Tensor
    seeds: Tensor
    masks: Tensor | None


class BatchView:
    """One view of a batch of images that are augmented after their transfer.

    Args:
        name: The name of the view.
        plain: The view without augmentation. If it normalises, the batch is read by hand, and is augmented here.
        augment: What augments a batch.
        salt: The view's number.
        ignore_index: Class id of the pixels that come in from outside.
    """

    def __init__(self, name: str, plain: ImageView, augment: DeviceAugment, salt: int, ignore_index: int = 255) -> None:
        self.name = name
        self.plain = plain
        self.augment = augment
        self.salt = salt
        self.ignore_index = ignore_index

    def __call__(self, samples: Sequence[Any], seeds: np.ndarray | None) -> Any:
        """As the plain view, augmented; or a :class:`Keyed` batch."""
        if seeds is None:
            return self.plain(samples, None)
        normalize = self.plain.normalize
        if normalize is None:
            return self._keyed(samples, seeds)
        batch = self.unnormalized(samples, seeds)
        return (normalize.batch(batch[0]), batch[1]) if isinstance(batch, tuple) else normalize.batch(batch)

    def unnormalized(self, samples: Sequence[Any], seeds: np.ndarray) -> Tensor | tuple[Tensor, Tensor]:
        """The augmented batch in uint8, with its masks where there are some."""
        return self.augmented(self._keyed(samples, seeds))

    def _keyed(self, samples: Sequence[Any], seeds: np.ndarray) -> Keyed:
        batch: Any = self.plain.unnormalized(samples, None)
        x, masks = batch if isinstance(batch, tuple) else (batch, None)
        return Keyed(self.name, x, torch.from_numpy(seeds.view(np.int64)), masks)

    def augmented(self, batch: Keyed) -> Tensor | tuple[Tensor, Tensor]:
        """Images, or images and masks, on the device that they are on."""
        x = self.augment(batch.x, batch.seeds, self.salt)
        if batch.masks is None:
            return x
        return x, self.augment.of_masks(batch.masks, batch.seeds, self.salt, self.ignore_index)
