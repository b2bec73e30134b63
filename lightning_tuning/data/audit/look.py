"""One sample: its content's hash, its size, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lightning_tuning.data.audit.faults import NARROW, Fault


class Look(NamedTuple):
    """What is kept of one sample.

    Attributes:
        content: Hash of the image, text, vector, 16 bytes; of an image and a mask the image's.
        mask: Hash of the mask, 16 bytes; zeros if there is none.
        size: Height and width of an image; 0 for all else.
        faults: What is wrong with it.
        pixels: How often each class comes in the mask, ``[K]``. None if there is no mask.
    """

    content: bytes
    mask: bytes
    size: tuple[int, int]
    faults: list[Fault]
    pixels: np.ndarray | None


def look_at(sample: Any, num_classes: int, ignored: int = 255) -> Look:
    """Look at one sample as it was read.

    Args:
        sample: An image ``[H, W, C]``, such an image and its mask ``[H, W]``, a vector, a text, or anything else, which
            is then only hashed.
        num_classes: Number of classes that a mask may hold.
        ignored: What a pixel of a mask is that belongs to no class.

    Example:
        >>> look_at(np.array([0.5, np.nan, np.inf]), 2).faults
        [Fault(kind='not_finite', reason='2 of its 3 numbers are NaN or infinite')]
    """
    content, mask = sample if is_pair(sample) else (sample, None)
    faults: list[Fault] = []
    size = (0, 0)
    if isinstance(content, str) and not content.strip():
        faults.append(Fault("empty", "it has no character but blanks" if content else "it has no character"))
    if isinstance(content, np.ndarray) and content.dtype.kind == "f":
        count = int((~np.isfinite(content)).sum())
        if count:
            faults.append(Fault("not_finite", f"{count} of its {content.size} numbers are NaN or infinite"))
    if is_image(content):
        size = content.shape[:2]
        faults += _image_faults(content)
    pixels = None
    if mask is not None:
        pixels, mask_faults = _in_mask(mask, num_classes, ignored, size)
        faults += mask_faults
    return Look(digest(content), bytes(16) if mask is None else digest(mask), size, faults, pixels)


def is_image(sample: Any) -> bool:
    """Whether a sample is an image ``[H, W, C]``."""
    return isinstance(sample, np.ndarray) and sample.ndim == 3


def is_pair(sample: Any) -> bool:
    """Whether a sample is an image with a mask."""
    if not (isinstance(sample, tuple) and len(sample) == 2):
        return False
    image, mask = sample
    return is_image(image) and isinstance(mask, np.ndarray) and mask.ndim == 2


def digest(content: Any) -> bytes:
    """A hash of arrays, tensors, texts and numbers, or of tuples, lists and mappings of them: 16 bytes.

    Example:
        >>> digest([np.zeros(2), "a"]) == digest([np.zeros(2), "a"]) != digest([np.zeros((2, 1)), "a"])
        True
    """
    hashed = blake2b(digest_size=16)
    _feed(hashed, content)
    return hashed.digest()


def _feed(hashed: Any, content: Any) -> None:
    if isinstance(content, Tensor):
        content = content.numpy()
    if isinstance(content, Mapping):
        content = sorted(content.items())
    if isinstance(content, (tuple, list)):
        hashed.update(f"{len(content)} values ".encode())
        for value in content:
            _feed(hashed, value)
    elif isinstance(content, np.ndarray):
        hashed.update(f"{content.dtype} {content.shape} ".encode())
        hashed.update(content.tobytes())
    else:
        hashed.update(repr(content).encode())


def _image_faults(image: np.ndarray) -> list[Fault]:
    height, width = image.shape[:2]
    faults = []
    if (image == image[:1, :1]).all():
        faults.append(Fault("one_colour", f"all its pixels are {' '.join(map(str, image[0, 0].tolist()))}"))
    if max(height, width) > NARROW * min(height, width):
        faults.append(Fault("narrow", f"it is {width} x {height} pixels"))
    return faults


def _in_mask(mask: np.ndarray, num_classes: int, ignored: int, size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
    """How often each class comes, ``[K]``, and what is wrong with the mask."""
    known = (mask >= 0) & (mask < num_classes)
    faults = []
    if mask.shape != size:
        sizes = [f"{width} x {height}" for height, width in (mask.shape, size)]
        faults.append(Fault("mask", f"its mask is {sizes[0]} pixels, the image {sizes[1]}"))
    strange = np.unique(mask[~known & (mask != ignored)])
    if len(strange):
        ids = ", ".join(map(str, strange[:5].tolist())) + (", ..." if len(strange) > 5 else "")
        faults.append(Fault("mask", f"its mask holds {ids}; class ids are 0 to {num_classes - 1}, and {ignored}"))
    return np.bincount(mask[known].astype(np.int64), minlength=num_classes), faults
