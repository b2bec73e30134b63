"""scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels, no download."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from lightning_tuning.data.image_datamodule import ImageDataModule


class DigitsDataModule(ImageDataModule):
    """The handwritten digits of scikit-learn (Alpaydin and Kaynak, 1998), resized once.

    Batches, views and attributes are those of :class:`ImageDataModule`.

    Args:
        image_size: Height and width in pixels to which the 8x8 images are resized, at least 4.
        val_size: Number of validation images, at least 0; 0: no validation.
        test_size: Number of test images, at least 0.
        **kwargs: See :class:`ImageDataModule`.

    Example:
        >>> data = DigitsDataModule(num_labels=40, batch_size=8, unlabeled_batch_size=24)
        >>> data.setup()
        >>> batch = next(iter(data.train_dataloader()))
        >>> x, y = batch["labeled"]
        >>> x.shape, y.shape, batch["unlabeled"]["strong"].shape
        (torch.Size([8, 1, 16, 16]), torch.Size([8]), torch.Size([24, 1, 16, 16]))
    """

    num_classes = 10
    in_channels = 1
    class_names = tuple("0123456789")

    def __init__(self, image_size: int = 16, val_size: int = 180, test_size: int = 360, **kwargs: Any) -> None:
        super().__init__(image_size=image_size, val_size=val_size, test_size=test_size, **kwargs)

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All 1797 images, their values scaled from 0..16 to 0..255, and their digits."""
        from sklearn.datasets import load_digits  # here, as every spawned worker imports this module

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        shrinks = self.image_size < images.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        size = (self.image_size, self.image_size)
        resized = np.stack([cv2.resize(image, size, interpolation=method) for image in images])
        return resized[..., None], digits.target.astype(np.int64)
