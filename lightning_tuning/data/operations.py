"""The operations of AutoAugment and its descendants, made of Albumentations transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import albumentations as A
import cv2
import numpy as np

from lightning_tuning.data.affine import Affine

Range = tuple[float, float]
Spread = Callable[[Callable[[Range], A.BasicTransform], float, float], A.BasicTransform | A.BaseCompose]
Operations = list[A.BasicTransform | A.BaseCompose]

_STILL: dict[str, Range] = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}


def between(build: Callable[[Range], A.BasicTransform], low: float, high: float) -> A.BasicTransform:
    """The operation with a strength drawn uniformly from ``low`` to ``high``."""
    return build((low, high))


def either(build: Callable[[Range], A.BasicTransform], low: float, high: float) -> A.BaseCompose:
    """The operation with the strength ``low`` or the strength ``high``, with equal chances."""
    return A.OneOf([build((low, low)), build((high, high))], p=1.0)


class Sharpness(A.ImageOnlyTransform):
    """``s + f (x - s)`` of the smoothed image ``s``: blurs with a factor f below 1, sharpens above 1.

    The smoothing kernel is that of Pillow's ``ImageEnhance.Sharpness``, a 3x3 mean in which the middle counts five
    times. Albumentations' ``Sharpen`` cannot blur, and its Gaussian variant overflows in uint8.

    Args:
        factor: Range that f is drawn from, uniformly, at least 0.
        p: Probability of applying it.
    """

    def __init__(self, factor: Range, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.factor = factor

    def get_params(self) -> dict[str, Any]:
        """Draw the factor."""
        return {"factor": self.py_random.uniform(*self.factor)}

    def apply(self, img: np.ndarray, factor: float, **params: Any) -> np.ndarray:
        """Filter the image."""
        kernel = np.full((3, 3), (1 - factor) / 13)
        kernel[1, 1] = factor + 5 * (1 - factor) / 13
        return cv2.filter2D(img, -1, kernel).reshape(img.shape)


def movements(spread: Spread, shear: float, translate: int, rotate: float) -> Operations:
    """Shear and shift along each axis, and rotation; what comes in from outside is black.

    Args:
        spread: :func:`between` or :func:`either`, from minus to plus each strength.
        shear: Shift of a row for each row further from the centre (of columns likewise), at least 0.
        translate: Pixels, at least 0.
        rotate: Degrees, at least 0.
    """
    angle = math.degrees(math.atan(shear))
    # Albumentations shears by one degree along an axis that is not named.
    return [
        spread(lambda r: Affine(shear={"x": r, "y": (0.0, 0.0)}, p=1.0), -angle, angle),
        spread(lambda r: Affine(shear={"x": (0.0, 0.0), "y": r}, p=1.0), -angle, angle),
        spread(lambda r: Affine(translate_px={"x": r, "y": (0, 0)}, p=1.0), -translate, translate),
        spread(lambda r: Affine(translate_px={"x": (0, 0), "y": r}, p=1.0), -translate, translate),
        spread(lambda r: Affine(rotate=r, p=1.0), -rotate, rotate),
    ]


def tones(bits: tuple[int, int], threshold: Range) -> Operations:
    """Automatic contrast, equalised histogram, fewer bits, inverted bright pixels.

    Args:
        bits: Range of the bits kept by posterising, 1 to 8.
        threshold: Range of the share of 255 from which on solarising inverts, 0 to 1.
    """
    return [
        A.AutoContrast(method="pil", p=1.0),
        # With mode="pil" a black background of more than half of the image becomes white.
        A.Equalize(mode="cv", p=1.0),
        A.Posterize(num_bits=bits, p=1.0),
        A.Solarize(threshold_range=threshold, p=1.0),
    ]


def enhancers(spread: Spread, low: float, high: float, channels: int) -> Operations:
    """Brightness, contrast and sharpness, and of three channels the saturation, each multiplied by a factor.

    Args:
        spread: :func:`between` or :func:`either`.
        low: Lowest factor, at least 0; 1 changes nothing.
        high: Highest factor.
        channels: Of the images.
    """

    def jitter(what: str) -> Callable[[Range], A.BasicTransform]:
        return lambda r: A.ColorJitter(**{**_STILL, what: r}, p=1.0)

    colors = [jitter("saturation")] if channels == 3 else []
    builds = [jitter("brightness"), jitter("contrast"), *colors, Sharpness]
    return [spread(build, low, high) for build in builds]
