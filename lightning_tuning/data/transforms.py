"""Named lists of augmentations for small grey images such as digits: none flips or mirrors."""

from __future__ import annotations

from collections.abc import Callable

import albumentations as A

from lightning_tuning.errors import check_choice

Transforms = list[A.BasicTransform | A.BaseCompose]


def no_transforms(image_size: int) -> Transforms:
    """No augmentation."""
    return []


def weak_transforms(image_size: int) -> Transforms:
    """Shifts by up to an eighth of the image, filled with black: pad, then crop at random."""
    return [A.Pad(padding=max(1, image_size // 8), fill=0), A.RandomCrop(image_size, image_size)]


def strong_transforms(image_size: int) -> Transforms:
    """Shift, scale, rotate and shear; brightness and contrast; one dark rectangle on half of the images."""
    return [
        A.Affine(translate_percent=(-0.1, 0.1), scale=(0.8, 1.15), rotate=(-20, 20), shear=(-12, 12), fill=0, p=1.0),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.3, p=0.8),
        A.Erasing(scale=(0.02, 0.08), ratio=(0.5, 2.0), fill=0, p=0.5),
    ]


NAMED_TRANSFORMS: dict[str, Callable[[int], Transforms]] = {
    "none": no_transforms,
    "weak": weak_transforms,
    "strong": strong_transforms,
}


def named_transforms(name: str, image_size: int) -> Transforms:
    """The list of transforms called ``name``.

    Args:
        name: 'none', 'weak' or 'strong'.
        image_size: Height and width of the images in pixels, at least 4.

    Raises:
        InvalidValueError: There is no list of that name.

    Example:
        >>> [type(transform).__name__ for transform in named_transforms("weak", 16)]
        ['Pad', 'RandomCrop']
    """
    check_choice("name", name, NAMED_TRANSFORMS)
    return NAMED_TRANSFORMS[name](image_size)
