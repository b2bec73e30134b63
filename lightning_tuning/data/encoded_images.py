"""Base of the datamodules whose images are decoded when they are needed, one by one, and may be of any size."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lightning_tuning.data.bad_samples import BadSamples
from lightning_tuning.data.decode import MAX_PIXELS
from lightning_tuning.data.image_datamodule import ImageDataModule
from lightning_tuning.data.image_files import MaskedImages
from lightning_tuning.data.image_statistics import fitted
from lightning_tuning.data.normalize import Normalize, check_statistics
from lightning_tuning.data.pipeline import Transform
from lightning_tuning.data.pixel_cache import PixelCache
from lightning_tuning.data.transforms import RESIZES, evaluation_transforms
from lightning_tuning.errors import InvalidValueError, check_choice, check_count


class EncodedImageDataModule(ImageDataModule, ABC):
    """Batches of :class:`ImageDataModule` of images that are decoded when they are needed and brought to one size.

    A named augmentation works on the image that evaluation sees, unless it begins with 'resized_crop', which takes its
    part of the whole image. A list of Albumentations transforms gets the whole image, of whatever size, and has to make
    ``image_size`` of it.

    Args:
        image_size: Height and width in pixels of the images that the model gets, at least 4.
        in_channels: 3: colour; 1: grey. Images of the other kind are converted.
        resize: How images become square. 'crop': the shorter side becomes 8/7 of `image_size` and the middle is kept;
            'squash': both sides become `image_size`; 'pad': the longer side does, with black beside or above and below.
        on_bad_sample: What is done about an image that is missing, truncated, corrupt or no image. 'raise': the run
            ends with a message. 'skip': it is counted and told of at the end, the next image takes its place in
            training, and evaluation goes without it; above 1 % the run ends.
        mean: Mean of each channel, of values in [0, 1], that images are normalised with. None: that of the training
            part, of 2048 images at most; it is kept in ``~/.cache/lightning-tuning``.
        std: Standard deviation of each channel, above 0, with `mean`.
        cache: Where decoded images are kept, so that each is decoded once: 'ram', memory that the worker processes
            share, or a folder, for later runs too. Masks are not kept. None: nowhere.
        max_pixels: The largest height times width that is decoded, at least 1. A larger image counts as bad: a PNG of
            32 kilobytes can be one that takes all memory.
        val_size: Validation images: a number or a share, in (0, 1). None: all that the data give, or else a tenth.
        test_size: Test images, likewise.
        **kwargs: See :class:`ImageDataModule`.

    Raises:
        InvalidValueError: An argument is outside its range, or the transforms do not fit the images.
    """

    in_memory = False

    def __init__(
        self,
        image_size: int = 224,
        in_channels: int = 3,
        resize: Literal["crop", "squash", "pad"] = "crop",
        on_bad_sample: Literal["raise", "skip"] = "raise",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        cache: str | None = None,
        max_pixels: int = MAX_PIXELS,
        val_size: int | float | None = None,
        test_size: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        if in_channels not in (1, 3):
            raise InvalidValueError(f"in_channels is {in_channels!r}; it must be 3 (colour) or 1 (grey).")
        check_statistics(mean, std, in_channels)
        super().__init__(image_size=image_size, mean=mean, std=std, val_size=val_size, test_size=test_size, **kwargs)
        check_choice("resize", resize, RESIZES)
        check_choice("on_bad_sample", on_bad_sample, ("raise", "skip"))
        check_count("max_pixels", max_pixels, 1)
        if isinstance(cache, str) and cache != "ram" and cache.lower() == "ram":
            raise InvalidValueError(f"cache is {cache!r}; write 'ram', or './{cache}' for a folder of that name.")
        self.in_channels = in_channels
        self.resize = resize
        self.on_bad_sample = on_bad_sample
        self.cache = cache
        self.max_pixels = max_pixels
        self._cached: tuple[str, PixelCache] | None = None

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        skips = self.on_bad_sample == "skip"
        self.bad_samples = BadSamples(len(self.samples), self.samples.__getitem__, "skip") if skips else None

    def kept(self, samples: Any) -> Sequence[Any]:
        self._identity = getattr(samples, "identity", None)
        if self.cache is None:
            return samples
        images = samples.images if isinstance(samples, MaskedImages) else samples
        key = "\n".join(map(images.identity, range(len(images))))
        if self._cached is None or self._cached[0] != key:  # a second set-up takes no second one
            self._cached = key, PixelCache.of_files(images, self.cache)
        if not isinstance(samples, MaskedImages):
            return self._cached[1]
        samples.pixels = self._cached[1]
        return samples

    def fit_normalize(self) -> Normalize:
        if self.mean is not None:
            return super().fit_normalize()
        purpose = f"{self.image_size} {self.in_channels} {self.resize} {self.max_pixels}"
        return fitted(self.train_indices, self.split_seed, self._plain, self._identity, purpose)

    def _plain(self, index: int) -> np.ndarray:
        """An image as evaluation sees it, before normalisation."""
        sample = self.samples[index]
        return self.pipelines["none"](sample[0] if self.task == "segmentation" else sample, 0)

    def to_size(self, name: str) -> list[Transform]:
        if name.lstrip().startswith("resized_crop"):
            return []
        return evaluation_transforms(self.image_size, self.resize, self.ignore_index)

    def source_sizes(self) -> list[tuple[int, int] | None]:
        short, long = self.image_size + 8, 2 * self.image_size + 1
        return [(short, long), (long, short)]
