"""Named lists of transforms, for digits and the like as for photographs, and what evaluation does instead."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import albumentations as A
import cv2

from lightning_tuning.data.affine import Affine
from lightning_tuning.data.pipeline import Transform, leaves
from lightning_tuning.data.policies import augmix, randaugment, trivialaugment
from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range, did_you_mean

Transforms = list[Transform]

VIEWS = ("weak", "strong", *(f"{kind}_{number}" for number in range(2, 9) for kind in ("weak", "strong")))
RESIZES = ("crop", "squash", "pad")

_FORM = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
_CENTRE = 0.875


def no_transforms(image_size: int, channels: int = 1, flip: bool = False) -> Transforms:
    """No augmentation."""
    return []


def weak_transforms(image_size: int, channels: int = 1, flip: bool = False) -> Transforms:
    """Shifts by up to an eighth of the image, filled with black: pad, then crop at random."""
    return [A.Pad(padding=max(1, image_size // 8), fill=0), A.RandomCrop(image_size, image_size)]


def strong_transforms(image_size: int, channels: int = 1, flip: bool = False) -> Transforms:
    """Shift, scale, rotate and shear; brightness and contrast; one dark rectangle on half of the images."""
    return [
        Affine(translate_percent=(-0.1, 0.1), scale=(0.8, 1.15), rotate=(-20, 20), shear=(-12, 12), fill=0, p=1.0),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.3, p=0.8),
        A.Erasing(scale=(0.02, 0.08), ratio=(0.5, 2.0), fill=0, p=0.5),
    ]


def resized_crop(image_size: int, channels: int = 1, flip: bool = False, area: float = 0.08) -> Transforms:
    """A random part of the image, resized: for images larger than ``image_size``, of any shape.

    Args:
        image_size: Height and width in pixels of the result.
        channels: Of the images.
        flip: Has no effect here: :func:`named_transforms` mirrors.
        area: Smallest share of the image's area, above 0, at most 1. Its width is 3/4 to 4/3 of its height.

    Source:
        Szegedy et al., 2015, "Going deeper with convolutions", section 6.
    """
    check_range("resized_crop's area", area, 0, 1, open_low=True)
    size = (image_size, image_size)
    return [A.RandomResizedCrop(size=size, scale=(area, 1.0), area_for_downscale="image", p=1.0)]


NAMED_TRANSFORMS: dict[str, Callable[..., Transforms]] = {
    "none": no_transforms,
    "weak": weak_transforms,
    "strong": strong_transforms,
    "resized_crop": resized_crop,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
    "augmix": augmix,
}


def named_transforms(
    name: str, image_size: int, channels: int = 1, flip: bool = False, fill_mask: int = 0, argument: str = "name"
) -> Transforms:
    """The list of transforms called ``name``.

    Args:
        name: One of the names of ``NAMED_TRANSFORMS``, with settings in brackets where it has some,
            ``randaugment(n=2, m=9)``, or several with plus signs between, in order: ``weak + randaugment``.
        image_size: Height and width of the images in pixels, at least 4.
        channels: Of the images. Operations on colours are there for three alone.
        flip: Whether a mirrored image shows the same, as it does in photographs, but not in digits or writing. If so,
            all lists but 'none' begin with mirroring half of the images.
        fill_mask: Class id of mask pixels that come in from outside the image.
        argument: What ``name`` is called in messages.

    Raises:
        InvalidValueError: There is no list of that name, or a setting is not allowed.

    Example:
        >>> [type(transform).__name__ for transform in named_transforms("weak", 16)]
        ['Pad', 'RandomCrop']
        >>> [type(transform).__name__ for transform in named_transforms("resized_crop + augmix", 16, 3, flip=True)]
        ['HorizontalFlip', 'RandomResizedCrop', 'AugMix']
    """
    transforms: Transforms = []
    for part in name.split("+") if isinstance(name, str) else [name]:
        build, settings = _parse(part, argument)
        transforms += build(image_size, channels, flip, **settings)
    _fill_masks(transforms, fill_mask)
    return [A.HorizontalFlip(p=0.5), *transforms] if flip and transforms else transforms


def _fill_masks(transforms: Transforms, fill_mask: int) -> None:
    for leaf in leaves(transforms):
        # None stands for masks that a transform leaves alone.
        if getattr(leaf, "fill_mask", None) is not None:
            leaf.fill_mask = float(fill_mask)  # type: ignore[attr-defined]


def _parse(text: Any, argument: str) -> tuple[Callable[..., Transforms], dict[str, Any]]:
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    name = found[1] if found else text
    check_choice(argument, name, NAMED_TRANSFORMS)
    build = NAMED_TRANSFORMS[name]
    return build, settings_of(text, list(inspect.signature(build).parameters)[3:], argument)


def settings_of(text: str, names: list[str], argument: str) -> dict[str, Any]:
    """The settings in the brackets of ``name(2, m=9)``, by their names.

    Args:
        text: The whole text.
        names: The settings that there are, in order.
        argument: What ``text`` is called in messages.

    Raises:
        InvalidValueError: A setting is unknown or twice there.
    """
    found = _FORM.fullmatch(text)
    name = found[1] if found else text
    items = [item.strip() for item in (found[2] if found and found[2] else "").split(",") if item.strip()]
    settings: dict[str, Any] = {}
    for position, item in enumerate(items):
        key, equals, value = (part.strip() for part in item.rpartition("="))
        key = key if equals else names[position] if position < len(names) else item
        if key not in names or key in settings:
            has = f"It has: {', '.join(names)}." if names else "It has none."
            twice = f"{key!r} twice." if key in names else f"no setting {key!r}{did_you_mean(key, names)}"
            raise InvalidValueError(f"{argument} is {text.strip()!r}, but {name} has {twice} {has}")
        settings[key] = _number(value)
    return settings


def _number(text: str) -> int | float | str:
    for form in (int, float):
        with suppress(ValueError):
            return form(text)
    return text


def evaluation_transforms(image_size: int, resize: str = "crop", fill_mask: int = 0) -> Transforms:
    """What makes images of any shape square for validation and test, without chance.

    Args:
        image_size: Height and width in pixels of the result, at least 4.
        resize: 'crop': the shorter side becomes 8/7 of ``image_size`` and the middle is kept, as with 256 and 224
            pixels for ImageNet; the counterpart of 'resized_crop'. 'squash': both sides become ``image_size``. 'pad':
            the longer side becomes ``image_size``, with black beside or above and below.
        fill_mask: Class id of mask pixels that come in so.

    Raises:
        InvalidValueError: An argument is not allowed.

    Example:
        >>> [type(transform).__name__ for transform in evaluation_transforms(224)]
        ['SmallestMaxSize', 'CenterCrop']
    """
    check_count("image_size", image_size, 4)
    check_choice("resize", resize, RESIZES)
    shrink: dict[str, Any] = {"interpolation": cv2.INTER_LINEAR, "area_for_downscale": "image", "p": 1.0}
    if resize == "squash":
        return [A.Resize(image_size, image_size, **shrink)]
    if resize == "pad":
        pad = A.PadIfNeeded(image_size, image_size, fill=0, fill_mask=fill_mask, p=1.0)
        return [A.LongestMaxSize(image_size, **shrink), pad]
    return [A.SmallestMaxSize(round(image_size / _CENTRE), **shrink), A.CenterCrop(image_size, image_size, p=1.0)]


def view_names(text: str) -> tuple[str, ...]:
    """The views that ``unlabeled_views`` names.

    Args:
        text: Some of 'weak', 'strong', 'weak_2', 'strong_2', ..., 'weak_8', 'strong_8', in any order, with spaces
            between.

    Raises:
        InvalidValueError: There is none, an unknown one, or one twice.

    Example:
        >>> view_names("weak strong strong_2")
        ('weak', 'strong', 'strong_2')
    """
    names = tuple(text.split()) if isinstance(text, str) else ()
    unknown = next((name for name in names if name not in VIEWS), None)
    if not names or unknown is not None or len(set(names)) < len(names):
        hint = "" if unknown is None else f" It has {unknown!r}{did_you_mean(unknown, VIEWS)}"
        raise InvalidValueError(
            f"unlabeled_views is {text!r}.{hint} It must be different names with spaces between, out of 'weak', "
            "'strong', 'weak_2', 'strong_2', ... up to 'weak_8', 'strong_8'; write 'weak strong' for one of each."
        )
    return names
