"""Augmentation of a whole batch on the device it is on."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_tuning.data.transforms import settings_of
from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range
from lightning_tuning.functional import keyed_bits, random_crop, random_erase, random_flip

STEPS = ("flip", "crop", "erase")
_NAME = re.compile(r"\s*batch\s*(\(.*)?")


class DeviceAugment:
    """Augments batches without a loop over the samples, on the device that they are on.

    The result is a function of image, seed and view: it depends neither on the device nor on the other samples of the
    batch, and torch's generators are not touched.

    Args:
        steps: What is done, in this order, each with its amount; off: 0. ``flip``: probability of mirroring left to
            right, in [0, 1]. ``crop``: pixels by which an image is shifted at most, an integer of at least 0.
            ``erase``: probability of overwriting a box, in [0, 1]. Empty: nothing is done.
        fill: Value of the pixels that a crop brings in or that are erased, in the units of the batch: on uint8 0 is
            black, on normalised images 0 is the mean.
        erase_scale: Smallest and largest share of the image's area that is erased, in (0, 1].
        erase_ratio: Smallest and largest height of the erased box divided by its width, above 0.

    Raises:
        InvalidValueError: A step is unknown or a value not allowed.

    Example:
        >>> augment = DeviceAugment({"flip": 0.5, "crop": 4, "erase": 0.25})
        >>> x = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> seeds = torch.arange(8)
        >>> torch.equal(augment(x, seeds)[2:4], augment(x[2:4], seeds[2:4]))
        True
    """

    def __init__(
        self,
        steps: Mapping[str, int | float],
        fill: float = 0.0,
        erase_scale: tuple[float, float] = (0.02, 0.4),
        erase_ratio: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        if not isinstance(steps, Mapping):
            raise InvalidValueError(f"steps is {steps!r}; it must be names with amounts, such as {{'flip': 0.5}}.")
        for name, amount in steps.items():
            check_choice("A name in steps", name, STEPS)
            if name == "crop":
                check_count("crop", amount, 0)
            else:
                check_range(name, amount, 0, 1)
        check_range("fill", fill, float("-inf"), open_low=True)
        self.steps = dict(steps)
        self.fill = fill
        self.erase_scale = _pair("erase_scale", erase_scale, 1.0)
        self.erase_ratio = _pair("erase_ratio", erase_ratio, float("inf"))

    def __call__(self, x: Tensor, seeds: Tensor, view_salt: int = 0) -> Tensor:
        """Augment a batch.

        Args:
            x: Images ``[N, C, H, W]``, uint8 or floating.
            seeds: The bits of one unsigned 64-bit number for each sample, int64 ``[N]``, on the device of ``x``.
            view_salt: The view's number: two views of the same seeds get unrelated random numbers.

        Returns:
            A batch of the same shape, type and layout; ``x`` itself if all steps are off.

        Raises:
            InvalidValueError: The seeds are no int64 ``[N]``, or ``fill`` is no value of uint8 where the batch is.
        """
        return self._apply(x, seeds, view_salt, self.fill, STEPS)

    def of_masks(self, masks: Tensor, seeds: Tensor, view_salt: int = 0, fill: float = 255) -> Tensor:
        """Move segmentation masks as the images of the same seeds are moved; nothing is erased from them.

        Args:
            masks: Class ids ``[N, H, W]``.
            seeds: As for the images.
            view_salt: As for the images.
            fill: Class id of the pixels that a crop brings in: the one that the loss ignores.

        Raises:
            InvalidValueError: As for the images.
        """
        return self._apply(masks, seeds, view_salt, fill, ("flip", "crop"))

    def _apply(self, x: Tensor, seeds: Tensor, view_salt: int, fill: float, names: tuple[str, ...]) -> Tensor:
        steps = {name: amount for name, amount in self.steps.items() if amount and name in names}
        if x.dtype == torch.uint8 and fill not in range(256):
            raise InvalidValueError(f"fill is {fill!r}; on a batch of uint8 it must be an integer from 0 to 255.")
        if steps:
            seeds = keyed_bits(seeds, view_salt)[:, 0]
        for name, amount in steps.items():
            if name == "flip":
                x = random_flip(x, seeds, amount)
            elif name == "crop":
                x = random_crop(x, seeds, int(amount), fill)
            else:
                x = random_erase(x, seeds, amount, self.erase_scale, self.erase_ratio, fill)
        return x


def named_device_augment(text: object, flip: bool = False, argument: str = "name") -> DeviceAugment | None:
    """The augmentation that ``batch(flip=0.5, crop=4, erase=0.25)`` names; None if the text names something else.

    Args:
        text: What may be such a name.
        flip: Whether half of the images are mirrored unless the text says how many.
        argument: What it is called in messages.

    Raises:
        InvalidValueError: A setting is unknown or not allowed.

    Example:
        >>> named_device_augment("batch(crop=4)", flip=True).steps
        {'flip': 0.5, 'crop': 4}
        >>> named_device_augment("weak")
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        return None
    settings = settings_of(text, [*STEPS], argument)
    steps = {"flip": 0.5 if flip else 0.0, **settings}
    return DeviceAugment({name: steps[name] for name in STEPS if steps.get(name)})


def _pair(name: str, pair: object, high: float) -> tuple[float, float]:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise InvalidValueError(f"{name} is {pair!r}; it must be two numbers, the smallest and the largest.")
    for value in pair:
        check_range(name, value, 0, high, open_low=True)
    if pair[0] > pair[1]:
        raise InvalidValueError(f"{name} is {pair!r}; the smallest must come first: write {pair[::-1]!r}.")
    return pair[0], pair[1]
