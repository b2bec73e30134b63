"""Transforms of images, driven by one seed for each call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

import albumentations as A
import numpy as np

from lightning_tuning.errors import InvalidValueError


class Transform(Protocol):
    """What a :class:`SeededPipeline` can apply: every Albumentations transform, and any object of this form.

    All random numbers come from the two generators that ``set_random_state`` gave last. They are set anew before each
    call, so a transform draws from them and keeps no state of its own.
    """

    def set_random_state(self, numpy_random: np.random.Generator, python_random: random.Random, /) -> None:
        """Draw from these generators from now on, and let the transforms inside do so."""

    def __call__(self, *, image: np.ndarray, mask: np.ndarray | None = None) -> Mapping[str, Any]:
        """Return ``{"image": ...}``, and with a mask ``{"image": ..., "mask": ...}``, both moved alike.

        ``image`` is uint8 ``[H, W, C]`` and must not be written to, ``mask`` is ``[H, W]``.
        """


class Deterministic:
    """Makes a plain function a :class:`Transform`, and declares that it draws no random numbers.

    Args:
        function: From an image, uint8 ``[H, W, C]``, to an image.
        mask_function: From a mask ``[H, W]`` to the mask that fits the image then. None: the mask stays.

    Example:
        >>> pipeline = SeededPipeline([Deterministic(np.flipud)])
        >>> pipeline(np.array([[[1]], [[2]]], dtype=np.uint8), seed=0).ravel().tolist()
        [2, 1]
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        mask_function: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.function = function
        self.mask_function = mask_function

    def set_random_state(self, numpy_random: np.random.Generator, python_random: random.Random, /) -> None:
        """Nothing here is random."""

    def __call__(self, *, image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Any]:
        moved = {"image": self.function(image)}
        if mask is not None:
            moved["mask"] = mask if self.mask_function is None else self.mask_function(mask)
        return moved


class SeededPipeline:
    """Applies transforms one after the other; the result is a function of image and seed.

    Albumentations keeps a random state in every transform, which forked workers inherit and so repeat, and its
    ``set_random_seed`` gives all transforms of a list the same numbers. Here all transforms draw from one state, which
    is set anew at each call.

    Args:
        transforms: The transforms, in order. Empty: the image stays as it is.
        salt: Makes two pipelines draw different numbers from the same seed, 0 to 2**64 - 1.

    Raises:
        InvalidValueError: One of the transforms cannot be told which random numbers to use.

    Example:
        >>> pipeline = SeededPipeline([A.RandomCrop(2, 2)])
        >>> image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
        >>> bool((pipeline(image, seed=5) == pipeline(image, seed=5)).all())
        True
        >>> view, mask = pipeline(image, seed=5, mask=image[..., 0])
        >>> bool((view[..., 0] == mask).all())
        True
    """

    def __init__(self, transforms: Sequence[Transform], salt: int = 0) -> None:
        self.transforms = list(transforms)
        for _ in leaves(self.transforms):
            pass
        self.salt = salt
        self._numpy_random = np.random.Generator(np.random.Philox(key=0))
        self._state = self._numpy_random.bit_generator.state
        self._python_random = random.Random()

    @overload
    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray: ...
    @overload
    def __call__(self, image: np.ndarray, seed: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def __call__(
        self, image: np.ndarray, seed: int, mask: np.ndarray | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Transform ``image``, uint8 ``[H, W, C]``, with the random numbers of ``seed``, 0 to 2**64 - 1.

        Args:
            image: The image. It is not written to.
            seed: Decides all random numbers.
            mask: Class ids of the pixels, ``[H, W]`` of uint8, int16, int32 or float32 (OpenCV moves no others). It
                takes the same ways as the image, with the nearest pixel where the image is interpolated.

        Returns:
            The image; with a mask, image and mask.
        """
        # Writing the key of a counter-based generator takes a tenth of the time that seeding a new one takes. It is
        # reached through the Generator: NumPy before 2.0 unpickles one with a bit generator of its own.
        self._state["state"]["key"][:] = seed, self.salt
        self._numpy_random.bit_generator.state = self._state
        self._python_random.seed(self.salt << 64 | int(seed))
        if mask is None:
            for transform in self.transforms:
                transform.set_random_state(self._numpy_random, self._python_random)
                image = transform(image=image)["image"]
            return image
        if mask.shape != image.shape[:2]:
            raise InvalidValueError(f"The mask is {list(mask.shape)}; the image's is {list(image.shape[:2])}.")
        for transform in self.transforms:
            transform.set_random_state(self._numpy_random, self._python_random)
            moved = transform(image=image, mask=mask)
            image, mask = moved["image"], moved["mask"]
        return image, mask


def leaves(transforms: Sequence[Any]) -> Iterator[Transform]:
    """The transforms in a list, those inside ``OneOf``, ``Compose`` and the like included.

    Raises:
        InvalidValueError: One of them cannot be told which random numbers to use.
    """
    for transform in transforms:
        name = getattr(transform, "__name__", type(transform).__name__)
        if isinstance(transform, type) or not callable(transform) or not hasattr(transform, "set_random_state"):
            raise InvalidValueError(
                f"The transform {name} cannot be used as it is: it must be an object with set_random_state(generator, "
                "random) that is called with image=... and returns {'image': ...}. A function from image to image that "
                "draws no random numbers can be written as lightning_tuning.data.Deterministic(function)."
            )
        if isinstance(transform, A.BaseCompose):
            yield from leaves(transform.transforms)
        else:
            yield transform
