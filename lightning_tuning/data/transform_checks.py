"""Finds out at set-up what a list of transforms would do wrong, by trying it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import albumentations as A
import cv2
import numpy as np

from lightning_tuning.data.pipeline import SeededPipeline, Transform
from lightning_tuning.errors import InvalidValueError

_SEEDS = range(4)
_NEAREST = (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
_CHAINS = (A.Compose, A.Sequential)
_CHOICES = (A.OneOf, A.SomeOf, A.OneOrOther)
_LEAVE_OUT = "Leave it out"


def check_transforms(
    transforms: Sequence[Transform],
    channels: int,
    image_size: int,
    source_size: tuple[int, int] | None = None,
    masks: bool = False,
    argument: str = "transforms",
) -> None:
    """Refuse transforms that do not turn uint8 images into uint8 images of ``image_size``, as a function of the seed.

    Each transform is tried on random images, whatever its probability, also inside ``OneOf``, ``Compose`` and the like.
    Refused are those that raise, that change the type or the number of channels, that write into the image they are
    given, whose result differs for the same random numbers, and on other than three channels those that warn or have
    no effect there, but do on three.

    Args:
        transforms: The transforms, in order.
        channels: Of the images, at least 1.
        image_size: Height and width in pixels that the images must have in the end.
        source_size: Height and width of the images that come in. None: ``image_size``.
        masks: Whether masks are moved along.
        argument: What the list is called in messages.

    Raises:
        InvalidValueError: What the transform does, and what to do about it.

    Example:
        >>> check_transforms([A.ToSepia()], channels=1, image_size=8)
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: transforms: ToSepia has no effect on images of 1 channel. Leave it \
out: it is for images of 3.
    """
    pipeline = SeededPipeline(transforms)
    check = _Check(channels, masks, argument)
    height, width = source_size or (image_size, image_size)
    source = last = _picture((height, width, channels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for transform in pipeline.transforms:
            last = check.step(transform, last)
        wanted = (image_size, image_size, channels)
        for seed in _SEEDS:
            try:
                view = pipeline(source, seed, _mask(source))[0] if masks else pipeline(source, seed)
            except Exception as error:
                raise InvalidValueError(f"{argument} cannot be applied one after the other: {error}") from error
            if view.shape != wanted:
                blame = f" {check.resizer} is the last that changes the size." if check.resizer else ""
                raise InvalidValueError(
                    f"{argument} turn images of {[height, width, channels]} into {list(view.shape)}; they must become "
                    f"{list(wanted)}.{blame} Crop or resize to {image_size}."
                )


class _Check:
    def __init__(self, channels: int, masks: bool, argument: str) -> None:
        self.channels = channels
        self.masks = masks
        self.argument = argument
        self.resizer: str | None = None

    def step(self, transform: Any, image: np.ndarray) -> np.ndarray:
        """Check a transform on an image, and return what it makes of it."""
        if isinstance(transform, (*_CHAINS, *_CHOICES)):
            result = image
            for inner in transform.transforms:
                result = self.step(inner, result if isinstance(transform, _CHAINS) else image)
            return result
        name = type(transform).__name__
        results = [self._try(name, transform, image, seed) for seed in _SEEDS]
        if self.channels != 3:
            self._check_effect(name, transform, image, results)
        if any(result.shape != image.shape for result in results):
            self.resizer = name
        return results[-1]

    def refuse(self, what: str, remedy: str) -> NoReturn:
        raise InvalidValueError(f"{self.argument}: {what}. {remedy}.")

    def _try(self, name: str, transform: Any, image: np.ndarray, seed: int) -> np.ndarray:
        shape = list(image.shape)
        given, mask = image.copy(), _mask(image) if self.masks else None
        try:
            moved = _apply(transform, given, mask, seed)
            again = _apply(transform, image.copy(), None if mask is None else mask.copy(), seed)
        except Exception as error:
            remedy = f"{_LEAVE_OUT}, or change its arguments"
            if self.channels != 3 and _works_on_three(transform, image, mask, seed):
                remedy = f"{_LEAVE_OUT}: it is for images of 3 channels"
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            self.refuse(f"{name} fails on images of {shape}: {reason}", remedy)
        if not isinstance(moved, dict) or not isinstance(moved.get("image"), np.ndarray):
            got = type(moved["image"] if isinstance(moved, dict) and "image" in moved else moved).__name__
            self.refuse(
                f"{name} gives no NumPy array but a {got}", f"{_LEAVE_OUT}: tensors are made after the transforms"
            )
        result = moved["image"]
        if result.dtype != np.uint8:
            self.refuse(
                f"{name} turns uint8 images into {result.dtype}",
                f"{_LEAVE_OUT}: images are normalised after the transforms",
            )
        if result.ndim != 3 or result.shape[2] != self.channels:
            self.refuse(f"{name} turns images of {shape} into {list(result.shape)}", _LEAVE_OUT)
        if not np.array_equal(given, image):
            self.refuse(f"{name} writes into the image that it is given", "Let it work on a copy")
        if not np.array_equal(result, again["image"]):
            self.refuse(
                f"{name} gives two results with the same random numbers",
                "Let it draw from the generators of set_random_state alone",
            )
        if mask is not None:
            self._check_mask(name, transform, mask, moved)
        return result

    def _check_mask(self, name: str, transform: Any, mask: np.ndarray, moved: dict[str, Any]) -> None:
        new = moved.get("mask")
        if not isinstance(new, np.ndarray) or new.shape != moved["image"].shape[:2] or new.dtype != mask.dtype:
            what = f"{new.dtype} {list(new.shape)}" if isinstance(new, np.ndarray) else type(new).__name__
            size = list(moved["image"].shape[:2])
            self.refuse(
                f"{name} makes of a mask {mask.dtype} {list(mask.shape)} {what}, where the image is {size}", _LEAVE_OUT
            )
        if getattr(transform, "mask_interpolation", cv2.INTER_NEAREST) not in _NEAREST:
            self.refuse(f"{name} interpolates between class ids", f"Give it mask_interpolation={cv2.INTER_NEAREST}")

    def _check_effect(self, name: str, transform: Any, image: np.ndarray, results: list[np.ndarray]) -> None:
        """Albumentations' transforms alone: only they can be made to act whatever their probability."""
        if not isinstance(transform, A.BasicTransform):
            return
        colored = _picture((*image.shape[:2], 3))
        try:
            changed, warned_colored = self._effect(transform, colored)
        except Exception:  # it fails on three channels, so it is not made for them
            return
        if changed and all(np.array_equal(result, image) for result in results):
            self.refuse(f"{name} has no effect on images of {self._count()}", f"{_LEAVE_OUT}: it is for images of 3")
        warned = self._effect(transform, image)[1]
        if warned and not warned_colored:
            reason = warned.splitlines()[0].rstrip(".")
            self.refuse(f"{name} warns about images of {self._count()}: {reason}", f"{_LEAVE_OUT}, or do as it says")

    def _effect(self, transform: Any, image: np.ndarray) -> tuple[bool, str]:
        """Whether it changes the image for some random numbers, and what it warns about."""
        mask = _mask(image) if self.masks else None
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            views = [_apply(transform, image, mask, seed)["image"] for seed in _SEEDS]
        return any(not np.array_equal(view, image) for view in views), str(warned[0].message) if warned else ""

    def _count(self) -> str:
        return f"{self.channels} channel{'s' if self.channels > 1 else ''}"


def _apply(transform: Any, image: np.ndarray, mask: np.ndarray | None, seed: int) -> Any:
    bits = np.random.Philox(key=seed)
    transform.set_random_state(np.random.Generator(bits), random.Random(seed))
    force = {"force_apply": True} if isinstance(transform, A.BasicTransform) else {}
    return transform(image=image, **force) if mask is None else transform(image=image, mask=mask, **force)


def _works_on_three(transform: Any, image: np.ndarray, mask: np.ndarray | None, seed: int) -> bool:
    try:
        _apply(transform, _picture((*image.shape[:2], 3)), mask, seed)
    except Exception:
        return False
    return True


def _picture(shape: tuple[int, ...]) -> np.ndarray:
    """Noise ``[H, W, C]`` of different brightness in its quarters and channels."""
    noise = np.random.Generator(np.random.Philox(key=0)).integers(40, 216, shape)
    noise[: shape[0] // 2] //= 2
    noise[:, : shape[1] // 2, 0] += 40
    return noise.astype(np.uint8)


def _mask(image: np.ndarray) -> np.ndarray:
    return (image[..., 0] // 64).astype(np.uint8)
